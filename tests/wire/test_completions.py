"""OpenAI's completions of plain texts: what becomes of a body, and how an answer is told."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types import Completion as Told

from qwen3vl_compat.errors import InvalidRequest, Overloaded
from qwen3vl_compat.events import Choice, Completion, Event, Finish, Likely, Logprob, Started, TextDelta, Usage
from qwen3vl_compat.messages import Message, Request, Sampling, Text
from qwen3vl_compat.wire.openai_completions import decode_request, encode_completion, encode_logprobs, encode_stream
from qwen3vl_compat.wire.openai_completions_request import COMPLETIONS, DEFAULT_TOKENS, MOST_PROMPTS


def read(body: Any = None, **fields: Any) -> Request:
    whole = {"model": "m", "prompt": "Once"} | (body or {}) | fields
    return decode_request(json.dumps(whole).encode(), request_id="r1", now=7)


def prompts(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("user", (Text(text),)) for text in texts)


def test_a_prompt_is_read_raw_and_little_is_made_of_it() -> None:
    asked = Request(
        id="r1", created=7, model="m", messages=prompts("Once"), raw=True, sampling=Sampling(max_tokens=DEFAULT_TOKENS)
    )
    assert read() == asked
    assert DEFAULT_TOKENS == 16


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": ["a", "b"]}, {"messages": prompts("a", "b")}),
        ({"n": 2, "best_of": 2}, {"choices": 2}),
        ({"n": 2, "best_of": 1}, {"choices": 2}),
        ({"echo": True}, {"echo": True}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True, "stream_usage": True}),
        ({"user": "u", "suffix": "", "suffix_": 1}, {"ignored": ("user", "suffix_")}),
        ({"suffix": None, "logprobs": None, "stop": None, "tools": []}, {}),
    ],
)
def test_what_is_asked(fields: Any, expected: dict[str, Any]) -> None:
    request = read(fields)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"logprobs": 0}, {"logprobs": 0}),
        ({"logprobs": 5}, {"logprobs": 5}),
        ({"stop": "x"}, {"stop": ("x",)}),
        ({"stop": ["x", "y"], "seed": 3, "temperature": 0}, {"stop": ("x", "y"), "seed": 3, "temperature": 0}),
        ({"logit_bias": {"5": 1.5}, "top_k": -1}, {"logit_bias": ((5, 1.5),), "top_k": 0}),
        ({"min_tokens": 3, "ignore_eos": True, "stop_token_ids": [1]},
         {"min_tokens": 3, "ignore_eos": True, "stop_tokens": (1,)}),
    ],
)  # fmt: skip
def test_how_it_is_drawn(fields: Any, expected: dict[str, Any]) -> None:
    sampling = read(fields).sampling
    assert {name: getattr(sampling, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"model": None}, "model"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": ["a", {}]}, "prompt[1]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"] * (MOST_PROMPTS + 1)}, "prompt"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 5}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True, "logprobs": 0}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"stream_options": {"include_usage": 1}}, "include_usage"),
        ({"messages": []}, "messages"),
        ({"tools": [{}]}, "tools"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_fault_names_its_field(fields: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(fields)
    assert refused.value.param == param
    assert refused.value.message.startswith(f"{param}: ")


def test_token_ids_are_refused_in_words() -> None:
    for prompt in ([1, 2], [[1, 2]]):
        with pytest.raises(InvalidRequest, match="token ids are not accepted; send the text itself"):
            read(prompt=prompt)


@pytest.mark.parametrize("name", [name for name, rule in COMPLETIONS["request"].items() if rule.kind == "refused"])
def test_what_is_refused_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read({name: "anything"})
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


# -------------------------------------------------------------------------------------------------------------- answers

USAGE = Usage(prompt_text=3, completion=5)
A, BROKEN = Likely(65, b" A", -0.25), Likely(66, b"\xf0\x9f", -2.5)


def whole(request: Request, *choices: Choice) -> dict[str, Any]:
    body = json.loads(encode_completion(request, Completion(choices, USAGE)))
    Told.model_validate(body, strict=True)
    return body


def test_a_whole_answer() -> None:
    body = whole(read(n=2), Choice(0, " a", "stop"), Choice(1, " b", "length"))
    assert (body["id"], body["object"], body["created"], body["model"]) == ("cmpl-r1", "text_completion", 7, "m")
    assert body["choices"] == [
        {"index": 0, "text": " a", "logprobs": None, "finish_reason": "stop"},
        {"index": 1, "text": " b", "logprobs": None, "finish_reason": "length"},
    ]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3, 5)


def test_each_text_begins_with_its_own_prompt() -> None:
    request = read(prompt=["x", "y"], n=2, echo=True)
    body = whole(request, *(Choice(index, "!", "stop") for index in range(4)))
    assert [choice["text"] for choice in body["choices"]] == ["x!", "x!", "y!", "y!"]


def test_logprobs_are_lists() -> None:
    told = encode_logprobs((Logprob(A, (A, BROKEN)), Logprob(BROKEN, ())), 4)
    assert told == {
        "tokens": [" A", "bytes:\\xf0\\x9f"],
        "token_logprobs": [-0.25, -2.5],
        "top_logprobs": [{" A": -0.25, "bytes:\\xf0\\x9f": -2.5}, {"bytes:\\xf0\\x9f": -2.5}],
        "text_offset": [4, 6],
    }
    body = whole(read(logprobs=1), Choice(0, " A", "stop", logprobs=(Logprob(A, ()),)))
    assert body["choices"][0]["logprobs"]["tokens"] == [" A"]


async def chunks(request: Request, *events: Event, fails: bool = False) -> list[Any]:
    async def played() -> AsyncIterator[Event]:
        for event in events:
            yield event
        if fails:
            raise Overloaded("no room")

    sent = b"".join([chunk async for chunk in encode_stream(request, played())])
    told = [line.removeprefix(b"data: ") for line in sent.split(b"\n\n") if line]
    return [each.decode() if each == b"[DONE]" else json.loads(each) for each in told]


async def test_a_stream() -> None:
    request = read(prompt=["x", "y"], echo=True, stream=True, stream_options={"include_usage": True})
    sent = await chunks(
        request, Started(USAGE), TextDelta(0, "a", 1), TextDelta(0, "b", 2), Finish(0, "stop", USAGE),
        Finish(1, "length", USAGE),
    )  # fmt: skip
    assert sent.pop() == "[DONE]"
    for chunk in sent:
        assert chunk["object"] == "text_completion"
        Told.model_validate(chunk | {"choices": []}, strict=True)
    assert sent.pop()["usage"]["total_tokens"] == 8
    told = [(each["index"], each["text"], each["finish_reason"]) for chunk in sent for each in chunk["choices"]]
    assert told == [(0, "xa", None), (0, "b", None), (0, "", "stop"), (1, "y", "length")]


async def test_a_stream_tells_where_tokens_stand() -> None:
    logprobs = (Logprob(A, ()),)
    sent = await chunks(
        read(logprobs=0, stream=True), TextDelta(0, "", 1, logprobs), TextDelta(0, " A A", 2, logprobs * 2),
        Finish(0, "stop", USAGE),
    )  # fmt: skip
    assert [each["choices"][0]["logprobs"] and each["choices"][0]["logprobs"]["text_offset"] for each in sent[:-1]] == [
        [0], [0, 2], None,
    ]  # fmt: skip


async def test_a_stream_ends_with_its_failure() -> None:
    sent = await chunks(read(stream=True), TextDelta(0, "a", 1), fails=True)
    assert sent[-1]["error"]["code"] == "server_is_overloaded"
