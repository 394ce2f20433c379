"""ChatQwen3VL without a server: what is sent for what is asked, what comes of answers and failures."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from langchain_core import exceptions
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from qwen3vl_compat.adapters import client
from qwen3vl_compat.adapters.calling import connections
from qwen3vl_compat.adapters.langchain import ChatQwen3VL
from tests.adapters.faulty import Hangs, Says, faulty, refusal, streamed, whole
from tests.adapters.test_client import HEAVY, ROOMS


def test_importing_it_is_light() -> None:
    probe = "import sys, qwen3vl_compat.adapters.langchain; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert "qwen3vl_compat.adapters.langchain" in out
    assert [name for name in out if name.partition(".")[0] in HEAVY] == []
    assert [name for name in out if name.startswith(tuple(f"qwen3vl_compat.{room}" for room in ROOMS))] == []


# ------------------------------------------------------------------------------------------------------ what is sent


class Sign(BaseModel):
    """What a sign says."""

    text: str


class SignDict(TypedDict):
    """What a sign says."""

    text: str


SCHEMA = Sign.model_json_schema()


def read(text: str, language: str = "en") -> str:
    """Read a text."""
    return text + language


READ = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "Read a text.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "language": {"type": "string", "default": "en"}},
            "required": ["text"],
        },
    },
}


def sent(bound: Any = None, asked: Any = "Well?", **fields: Any) -> dict[str, Any]:
    """The body of a request; `bound` makes something to be asked of a ChatQwen3VL with these fields."""
    with faulty(whole('{"text": "yes"}')) as server:
        made = ChatQwen3VL(base_url=server.url, **fields)
        (bound(made) if bound else made).invoke(asked)
        return json.loads(server.seen[0].body)


def test_nothing_is_sent_that_was_not_asked() -> None:
    assert sent() == {"model": "qwen3-vl", "messages": [{"role": "user", "content": "Well?"}]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0, "max_tokens": 5}, {"temperature": 0, "max_completion_tokens": 5}),
        ({"model": "other"}, {"model": "other"}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}),
        ({"stop": []}, {"stop": None}),
        ({"top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7}, {"top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7}),
        ({"presence_penalty": 1, "frequency_penalty": 2, "repetition_penalty": 1.5},
         {"presence_penalty": 1, "frequency_penalty": 2, "repetition_penalty": 1.5}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"enable_thinking": True, "thinking_budget": 9}, {"enable_thinking": True, "thinking_budget": 9}),
        ({"reasoning_effort": "low"}, {"enable_thinking": True, "thinking_budget": 1024}),
    ],
)  # fmt: skip
def test_what_is_sent_for_a_field_and_for_a_call(fields: dict[str, Any], expected: Mapping[str, Any]) -> None:
    for body in (sent(**fields), sent(lambda model: model.bind(**fields))):
        assert {name: body.get(name) for name in expected} == dict(expected)


def test_a_call_wins_over_the_model() -> None:
    body = sent(lambda model: model.bind(temperature=1, stop=["b"], model="b"), temperature=0, stop=["a"], model="a")
    assert (body["temperature"], body["stop"], body["model"]) == (1, ["b"], "b")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        (False, None),
        ("auto", None),
        ({"type": "auto"}, None),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        ({"type": "any"}, "required"),
        ("read", "read"),
        ({"type": "tool", "name": "read"}, "read"),
        ({"type": "function", "function": {"name": "read"}}, "read"),
    ],
)
def test_tools(choice: Any, expected: str | None) -> None:
    body = sent(lambda model: model.bind_tools([read], tool_choice=choice))
    assert body["tools"] == [READ]
    if expected == "read":
        (name,) = body["tool_choice"]["allowed_tools"]["tools"]
        assert (name["function"]["name"], body["tool_choice"]["allowed_tools"]["mode"]) == ("read", "required")
    else:
        assert body.get("tool_choice") == expected


def test_strict_and_single_calls() -> None:
    body = sent(lambda model: model.bind_tools([read], strict=True, parallel_tool_calls=False))
    assert body["tools"][0]["function"]["strict"]
    assert body["parallel_tool_calls"] is False


@pytest.mark.parametrize("form", [Sign, SCHEMA, {"type": "json_schema", "json_schema": {"schema": SCHEMA}}])
def test_a_form_beside_tools(form: Any) -> None:
    body = sent(lambda model: model.bind_tools([read], response_format=form))
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert body["tools"] == [READ]


NAMELESS = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.mark.parametrize(
    ("schema", "strict", "expected"),
    [
        (Sign, None, SCHEMA),
        (Sign, True, SCHEMA),
        (SCHEMA, None, SCHEMA),
        (NAMELESS, None, NAMELESS),
        (SignDict, None, {"title": "SignDict", "description": "What a sign says."} | NAMELESS),
        ({"name": "Sign", "parameters": NAMELESS}, None, {"title": "Sign"} | NAMELESS),
    ],
)
def test_an_answer_held_to_a_schema(schema: Any, strict: bool | None, expected: dict[str, Any]) -> None:
    body = sent(lambda model: model.with_structured_output(schema, strict=strict))
    form = {"name": "answer", "schema": expected, "strict": bool(strict)}
    assert body["response_format"] == {"type": "json_schema", "json_schema": form}


def test_an_answer_that_is_json() -> None:
    body = sent(lambda model: model.with_structured_output(Sign, method="json_mode"))
    assert body["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": 3}, "temperature: must be between 0 and 2"),
        ({"temperature": "hot"}, "temperature: Expected a number, got a string"),
        ({"stop": ["x"] * 17}, "stop: at most 16 strings"),
        ({"temprature": 1}, "temprature: there is no such argument"),
        ({"reasoning_effort": "huge"}, "reasoning_effort: must be one of none, minimal"),
        ({"tool_choice": "any"}, "tool_choice: there are no tools to call"),
        ({"tools": [READ], "tool_choice": "write"}, "tool_choice: there is no function 'write'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type: only 'function' is supported"),
        ({"tools": [READ, READ]}, "tools: the function 'read' is declared twice"),
        ({"functions": [READ]}, "functions: the deprecated functions are not supported; use tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type: must be text, json_object or json_schema"),
        ({"user": object()}, "user: has no form in JSON (Encoding objects of type object is unsupported)"),
        ({"stop": ["\ud800"]}, "stop: has no form in JSON ('utf-8' codec can't encode"),
        ({"tools": [read]}, "tools: has no form in JSON (Encoding objects of type function is unsupported)"),
        ({"tools": ["read"]}, "tools[0]: Expected an object, got a string"),
        ({"tools": 5}, "tools: Expected a list, got a whole number"),
        ({"tools": [{"function": 5}]}, "tools[0]"),
        ({"timeout": 0}, "timeout: must be a number of seconds above 0"),
        ({"headers": {"x": "\n"}}, "headers[x]: must be printable ASCII characters"),
    ],
)
def test_what_cannot_be_asked(fields: dict[str, Any], sentence: str) -> None:
    with faulty() as server:
        model = ChatQwen3VL(base_url=server.url)
        with pytest.raises(client.InvalidInput) as caught:
            model.invoke("Well?", **fields)
        assert str(caught.value).startswith(sentence)
        assert server.seen == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"base_url": "here"}, "base_url: must be like http://localhost:8080"),
        ({"timeout": -1}, "timeout: must be a number of seconds above 0"),
        ({"max_retries": -1}, "max_retries\n  Input should be greater than or equal to 0"),
        ({"api_key": "ü"}, "api_key: must be printable ASCII characters"),
        ({"temprature": 1}, "temprature\n  Extra inputs are not permitted"),
    ],
)
def test_what_it_cannot_be_made_of(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatQwen3VL(**fields)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "xml"}, "method: must be one of json_schema, function_calling, json_mode"),
        ({"method": "json_mode", "strict": True}, "strict: json_mode knows no schema"),
        ({"strictly": True}, "strictly: there is no such argument"),
    ],
)
def test_forms_that_there_are_not(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ChatQwen3VL().with_structured_output(Sign, **options)


def test_the_key_and_the_callers_own_headers_are_sent() -> None:
    with faulty(whole("yes")) as server:
        ChatQwen3VL(base_url=server.url, api_key="sk-1").invoke("Well?", headers={"cache-control": "no-cache"})
        (seen,) = server.seen
    assert (seen.headers["authorization"], seen.headers["cache-control"]) == ("Bearer sk-1", "no-cache")
    assert seen.headers["idempotency-key"]


# ------------------------------------------------------------------------------------------------------ what comes


def call(arguments: str) -> Says:
    function = {"name": "read", "arguments": arguments}
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": function}]}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 7,
                      "prompt_tokens_details": {"cached_tokens": 80, "image_tokens": 64, "video_tokens": 0},
                      "completion_tokens_details": {"reasoning_tokens": 2}}}  # fmt: skip
    return Says(
        200, json.dumps(body).encode(), {"x-request-id": "r1", "x-cost-total": "0.25", "x-cost-currency": "EUR"}
    )


def answer(says: Says, **fields: Any) -> AIMessage:
    with faulty(says) as server:
        return ChatQwen3VL(base_url=server.url, **fields).invoke("Well?")


def test_a_call_and_what_it_took() -> None:
    said = answer(call('{"text": "a"}'))
    assert said.tool_calls == [{"name": "read", "args": {"text": "a"}, "id": "c1", "type": "tool_call"}]
    assert said.content_blocks == said.tool_calls
    assert said.usage_metadata == {
        "input_tokens": 100,
        "output_tokens": 7,
        "total_tokens": 107,
        "input_token_details": {"cache_read": 80, "image": 64},
        "output_token_details": {"reasoning": 2},
    }
    assert said.response_metadata == {
        "model_provider": "qwen3vl",
        "model_name": "qwen3-vl",
        "finish_reason": "tool_calls",
        "request_id": "r1",
        "cost": "0.25",
        "currency": "EUR",
    }


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("arguments", ['{"text": ', "5", '{"text": ' + "[" * 5000])
def test_a_call_that_is_no_object_is_told_apart_and_goes_back_as_it_came(arguments: str, version: str) -> None:
    said = answer(call(arguments), output_version=version)
    (bad,) = said.invalid_tool_calls
    assert (said.tool_calls, bad["name"], bad["args"], bad["id"]) == ([], "read", arguments, "c1")
    (block,) = said.content_blocks
    assert (block["type"], block["id"]) == ("invalid_tool_call", "c1")
    (back,) = sent(asked=[said])["messages"]
    assert back["tool_calls"][0]["function"] == {"name": "read", "arguments": arguments}


def test_several_answers() -> None:
    choices = [{"index": n, "message": {"content": text}, "finish_reason": "stop"} for n, text in enumerate("ab")]
    body = {"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    with faulty(Says(200, json.dumps(body).encode())) as server:
        model = ChatQwen3VL(base_url=server.url)
        (made,) = model.generate([[HumanMessage("Well?")]], n=2).generations
        assert [each.text for each in made] == ["a", "b"]
        with pytest.raises(client.InvalidInput, match="n: a stream has one answer"):
            list(model.stream("Well?", n=2))


@pytest.mark.parametrize(
    ("text", "raw"), [('{"text": "yes"}', Sign(text="yes")), ('{"text": ', None), ('{"test": 1}', None)]
)
def test_the_message_beside_what_is_read_out_of_it(text: str, raw: Sign | None) -> None:
    with faulty(whole(text)) as server:
        model = ChatQwen3VL(base_url=server.url).with_structured_output(Sign, include_raw=True)
        read_out = model.invoke("Well?")
    assert isinstance(read_out, dict)
    assert (read_out["raw"].content, read_out["parsed"]) == (text, raw)
    assert (read_out["parsing_error"] is None) == (raw is not None)


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_an_answer_that_does_not_fit_is_an_error(method: Any) -> None:
    with faulty(whole('{"test": 1}')) as server:
        model = ChatQwen3VL(base_url=server.url).with_structured_output(Sign, method=method)
        with pytest.raises(exceptions.OutputParserException):
            model.invoke("Well?")


def cut_off(delta: dict[str, Any], *, stream: bool) -> Says:
    """An answer that ended with `length`."""
    choice = {"index": 0, "delta" if stream else "message": delta, "finish_reason": "length"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    data = json.dumps(body).encode()
    return Says(200, b"data: %b\n\ndata: [DONE]\n\n" % data if stream else data)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("schema", [Sign, SCHEMA])
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_the_end_of_an_answer_that_was_cut_off_is_not_made_up(schema: Any, method: Any, stream: bool) -> None:
    cut = '{"text": "Do not'
    function = {"index": 0, "id": "c1", "function": {"name": "Sign", "arguments": cut}}
    said = {"tool_calls": [function]} if method == "function_calling" else {"content": cut}
    with faulty(*[cut_off(said, stream=stream)] * 3) as server:
        made = ChatQwen3VL(base_url=server.url, streaming=stream)
        model = made.with_structured_output(schema, method=method)
        with pytest.raises(exceptions.OutputParserException, match="it ended with length"):
            model.invoke("Well?")
        with pytest.raises(exceptions.OutputParserException, match="it ended with length"):
            asyncio.run(model.ainvoke("Well?"))
        both: Any = made.with_structured_output(schema, method=method, include_raw=True).invoke("Well?")
    assert both["parsed"] is None
    assert "it ended with length" in str(both["parsing_error"])


def test_a_whole_answer_that_took_all_of_its_tokens_is_read() -> None:
    with faulty(cut_off({"content": '{"text": "yes"}'}, stream=False)) as server:
        assert ChatQwen3VL(base_url=server.url).with_structured_output(Sign).invoke("Well?") == Sign(text="yes")


def test_tokens_are_counted_by_the_server() -> None:
    with faulty(*[Says(200, b'{"object": "response.input_tokens", "input_tokens": 12}')] * 2) as server:
        model = ChatQwen3VL(base_url=server.url)
        assert model.get_num_tokens_from_messages([HumanMessage("Well?")], tools=[read]) == 12
        assert model.get_num_tokens("Well?") == 12
        first, second = server.seen
    assert {first.path, second.path} == {"/v1/chat/completions/input_tokens"}
    assert json.loads(first.body)["tools"] == [READ]


# ------------------------------------------------------------------------------------------------------ what fails

FAILURES: list[tuple[Says, type[Exception], type[Exception]]] = [
    (refusal(400), client.BadRequest, exceptions.ModelInvalidRequestError),
    (refusal(400, "context_length_exceeded"), client.BadRequest, exceptions.ContextOverflowError),
    (refusal(401), client.Unauthorized, exceptions.ModelAuthenticationError),
    (refusal(403), client.Forbidden, exceptions.ModelPermissionDeniedError),
    (refusal(404), client.NotFound, exceptions.ModelNotFoundError),
    (refusal(409), client.Conflict, exceptions.ModelInvalidRequestError),
    (refusal(429), client.RateLimited, exceptions.ModelRateLimitError),
    (refusal(429, "insufficient_quota"), client.OutOfCredit, exceptions.ModelRateLimitError),
    (refusal(500), client.ServerFailed, exceptions.ModelAPIError),
    (refusal(503), client.Overloaded, exceptions.ModelAPIError),
    (refusal(504), client.TimeIsUp, exceptions.ModelTimeoutError),
    (Says(200, b"data: <html>\n\n"), client.Unreadable, exceptions.ModelError),
]


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
@pytest.mark.parametrize(("says", "ours", "theirs"), FAILURES)
def test_errors_are_both_the_clients_and_langchains(
    says: Says, ours: type[Exception], theirs: type[Exception], way: str
) -> None:
    with faulty(says) as server:
        model = ChatQwen3VL(base_url=server.url, max_retries=0)
        with pytest.raises(theirs) as caught:
            asked(model, way)
    assert isinstance(caught.value, ours)
    assert isinstance(caught.value, client.ClientError)
    assert (caught.value.request_id == "r1") == (says.status != 200)


def asked(model: ChatQwen3VL, way: str) -> str:
    """What it says, asked in one of the four ways."""

    async def gone_through() -> str:
        return "".join([str(chunk.content) async for chunk in model.astream("Well?")])

    async def awaited() -> str:
        return str((await model.ainvoke("Well?")).content)

    match way:
        case "invoke":
            return str(model.invoke("Well?").content)
        case "stream":
            return "".join(str(chunk.content) for chunk in model.stream("Well?"))
        case _:
            return asyncio.run(awaited() if way == "ainvoke" else gone_through())


def test_what_is_worth_trying_again() -> None:
    for says, retryable in ((refusal(429), True), (refusal(429, "insufficient_quota"), False), (refusal(404), False)):
        with faulty(says) as server, pytest.raises(exceptions.ModelError) as caught:
            ChatQwen3VL(base_url=server.url, max_retries=0).invoke("Well?")
        assert caught.value.is_retryable == retryable


def test_connections_that_fail_are_errors_of_both() -> None:
    model = ChatQwen3VL(base_url="http://127.0.0.1:9", max_retries=0)
    with pytest.raises(exceptions.ModelConnectionError) as caught:
        model.invoke("Well?")
    assert isinstance(caught.value, client.ConnectionFailed)
    with faulty(Hangs(breaks=False)) as server, pytest.raises(exceptions.ModelTimeoutError) as late:
        ChatQwen3VL(base_url=server.url, timeout=0.2).invoke("Well?")
    assert isinstance(late.value, client.TimedOut)


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
def test_what_is_tried_again_is_the_servers_to_say(way: str) -> None:
    good = streamed("yes") if way.endswith("stream") else whole("yes")
    with faulty(refusal(503, retry_after_ms="1"), refusal(429, retry_after_ms="1"), good) as server:
        assert asked(ChatQwen3VL(base_url=server.url), way) == "yes"
        assert len(server.seen) == 3
    with faulty(refusal(503, x_should_retry="false")) as server:
        with pytest.raises(exceptions.ModelAPIError):
            asked(ChatQwen3VL(base_url=server.url), way)
        assert len(server.seen) == 1


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_cookies_do_not_pass_from_one_key_to_another(way: str) -> None:
    cookie = Says(200, whole("yes").body, {"set-cookie": "session=a"})
    with faulty(cookie, cookie) as server:
        for key in "ab":
            asked(ChatQwen3VL(base_url=server.url, api_key=key), way)
        assert [seen.headers.get("cookie") for seen in server.seen] == [None, None]


def test_a_forked_process_has_connections_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would read each other's answers from one."""
    own = connections.waiting("http://there:1")
    assert connections.waiting("http://there:1") is own
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert connections.waiting("http://there:1") is not own


def test_connections_end_with_their_loop() -> None:
    """Warnings are errors here: one that is left open when its loop is closed would be told."""
    with faulty(*[whole("yes")] * 4) as server:
        for _ in range(2):
            model = ChatQwen3VL(base_url=server.url)
            assert [asked(model, "ainvoke"), asked(model, "ainvoke")] == ["yes", "yes"]
    assert all(not loop.is_closed() for loop in connections._looping)


# ------------------------------------------------------------------------------------------------------ what it is


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_it_comes_back_from_its_serialized_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3VL_API_KEY", "sk-env")
    model = ChatQwen3VL(base_url="http://there:1", temperature=0.5, api_key="sk-secret", stop="x")
    kept = dumpd(model)
    assert "sk-secret" not in json.dumps(kept) + repr(model) + str(model.asdict())
    back = load(kept, allowed_objects=[ChatQwen3VL], valid_namespaces=["qwen3vl_compat"], secrets_from_env=True)
    assert isinstance(back, ChatQwen3VL)
    assert back.asdict() == model.asdict()
    assert back.api_key is not None
    assert back.api_key.get_secret_value() == "sk-env"


def test_what_traces_are_told() -> None:
    model = ChatQwen3VL(temperature=0.5, max_tokens=9, stop="x")
    known = {"ls_provider": "qwen3vl", "ls_model_name": "qwen3-vl", "ls_model_type": "chat", "ls_temperature": 0.5,
             "ls_max_tokens": 9, "ls_stop": ["x"]}  # fmt: skip
    assert model._get_ls_params() == known
    assert model._get_ls_params(stop=["y"], model="b", temperature=1.0) == known | {
        "ls_stop": ["y"], "ls_model_name": "b", "ls_temperature": 1.0,
    }  # fmt: skip


def test_its_profile() -> None:
    profile = ChatQwen3VL().profile
    assert profile is not None
    assert (profile.get("image_inputs"), profile.get("audio_inputs"), profile.get("tool_calling")) == (
        True,
        False,
        True,
    )
    assert ChatQwen3VL(profile={"max_input_tokens": 9}).profile == {"max_input_tokens": 9}
