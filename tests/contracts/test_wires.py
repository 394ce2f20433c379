"""What every wire keeps: a request survives the way out and in, and so do the events of an answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.errors import ApiError, ContentRefused, InvalidRequest
from qwen3vl_compat.events import (
    Choice,
    Completion,
    Event,
    Finish,
    Likely,
    Logprob,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
    fold,
)
from qwen3vl_compat.messages import (
    Media,
    Message,
    OutputFormat,
    Reasoning,
    Request,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from qwen3vl_compat.wire import (
    anthropic_client,
    anthropic_messages,
    generate_content,
    google_client,
    openai_answers,
    openai_chat,
    openai_client,
)

SERVER_HALF = ("decode_request", "encode_completion", "encode_stream", "encode_error")
CLIENT_HALF = ("encode_request", "decode_stream")


def read_openai(body: bytes, request: Request) -> Request:
    return openai_chat.decode_request(body, request_id=request.id, now=request.created)


def read_google(body: bytes, request: Request) -> Request:
    return generate_content.decode_request(
        body, model=request.model, request_id=request.id, now=request.created, stream=request.stream
    )


def read_anthropic(body: bytes, request: Request) -> Request:
    return anthropic_messages.decode_request(body, request_id=request.id, now=request.created)


WIRES: dict[str, tuple[Any, Any, Callable[[bytes, Request], Request]]] = {
    "openai_chat": (openai_chat, openai_client, read_openai),
    "generate_content": (generate_content, google_client, read_google),
    "anthropic_messages": (anthropic_messages, anthropic_client, read_anthropic),
}
wires = pytest.mark.parametrize("name", WIRES)

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
texts = words.map(Text)
images = st.binary(min_size=1, max_size=60).map(lambda data: Media(source=data, mime_type="image/png"))
names = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
objects = st.dictionaries(words, st.integers() | words | st.none(), max_size=3).map(json.dumps)
calls = st.builds(ToolCall, st.just("call_1") | st.just("call_2"), st.just("f"), objects)
turns = st.lists(
    st.builds(Message, st.just("user"), st.lists(texts | images, min_size=1, max_size=3).map(tuple))
    | st.builds(Message, st.just("assistant"), st.tuples(texts))
    | st.builds(Message, st.just("assistant"), st.tuples(words.filter(bool).map(Reasoning), texts, calls)),
    min_size=1,
    max_size=4,
)
results = st.builds(ToolResult, st.just("call_1"), st.just("f"), st.tuples(objects.map(Text), images))
told = st.builds(lambda call, result: (Message("assistant", (Text("x"), call)), Message("tool", (result,))),
                 st.builds(ToolCall, st.just("call_1"), st.just("f"), objects), results)  # fmt: skip
schemas = st.sampled_from(('{"type": "object", "properties": {"b": {}, "a": {}}}', '{"type": "integer"}'))
samplings = st.builds(
    Sampling,
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    top_k=st.none() | st.integers(0, 100),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logprobs=st.none() | st.integers(0, 20),
    max_tokens=st.none() | st.integers(100, 10_000),
    stop=st.lists(words.filter(bool), max_size=3).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
formats = (
    st.just(OutputFormat())
    | st.just(OutputFormat(kind="json_object"))
    | st.builds(OutputFormat, kind=st.just("json_schema"), value=schemas, strict=st.just(True))
    | st.builds(OutputFormat, kind=st.just("choice"), value=st.just('["a", "ü"]'))
)
thoughts = st.just(Thinking()) | st.builds(
    Thinking, enabled=st.just(True), budget=st.none() | st.integers(1, 99), shown=st.booleans()
)
tools = st.lists(
    st.builds(Tool, name=names, description=words, parameters=st.just("") | schemas),
    max_size=3,
    unique_by=lambda tool: tool.name,
).map(tuple)


@st.composite
def with_tools(draw: st.DrawFn) -> dict[str, Any]:
    known = draw(tools)
    named = tuple(tool.name for tool in known[:1])
    modes = st.sampled_from(("none", "auto", "required") if known else ("none", "auto"))
    mode = draw(modes)
    choice = ToolChoice(mode=mode, names=draw(st.sampled_from(((), named))) if mode != "none" else ())
    return {"tools": known, "tool_choice": choice}


@st.composite
def requests_of(draw: st.DrawFn, wire: str) -> Request:
    """Any request that a wire can carry."""
    system = draw(st.sampled_from(((), (Message("system", (Text("Be brief."),)),))))
    messages = (*system, *draw(turns), *draw(st.just(()) | told))
    sampling, more = draw(samplings), draw(with_tools())
    form = draw(formats)
    if wire == "openai_chat":
        extra: dict[str, Any] = {
            "min_p": draw(st.none() | st.floats(0, 1)),
            "repetition_penalty": draw(st.none() | st.floats(0.5, 2)),
            "logit_bias": draw(st.sampled_from(((), ((5, 1.5), (7, -100.0))))),
            "min_tokens": draw(st.integers(0, 100)),
            "ignore_eos": draw(st.booleans()),
            "stop_tokens": draw(st.sampled_from(((), (3, 4)))),
        }
        sampling = msgspec.structs.replace(sampling, **extra)
        more["tool_choice"] = msgspec.structs.replace(more["tool_choice"], parallel=draw(st.booleans()))
        more["tools"] = tuple(msgspec.structs.replace(tool, strict=draw(st.booleans())) for tool in more["tools"])
        form = draw(st.just(form) | st.just(OutputFormat(kind="regex", value="[a-z]+")))
    request = Request(
        id="r1", created=1_760_000_000, model="qwen3-vl", messages=messages, sampling=sampling, format=form,
        thinking=draw(thoughts), choices=draw(st.integers(1, 4)), stream=draw(st.booleans()), **more,
    )  # fmt: skip
    return as_anthropic(request) if wire == "anthropic_messages" else request


def as_anthropic(request: Request) -> Request:
    """The same without what this API has no field for; it ends with the user, is bounded, says what media are."""

    def seen(part: Any) -> Any:
        match part:
            case Media():
                return msgspec.structs.replace(part, wanted="image")
            case ToolResult(parts=parts):
                return msgspec.structs.replace(part, parts=tuple(map(seen, parts)))
            case _:
                return part

    last = () if request.messages[-1].role in ("user", "tool") else (Message("user", (Text("Go on."),)),)
    messages = tuple(Message(turn.role, tuple(map(seen, turn.parts))) for turn in (*request.messages, *last))
    asked, choice, thinking = request.sampling, request.tool_choice, request.thinking
    if choice.names:
        choice = msgspec.structs.replace(choice, mode="required")
    if thinking.budget is None:
        thinking = Thinking(shown=thinking.shown)
    form = request.format if request.format.kind == "json_schema" else OutputFormat()
    tools = tuple(msgspec.structs.replace(tool, parameters=tool.parameters or "{}") for tool in request.tools)
    sampling = Sampling(
        temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k, stop=asked.stop,
        max_tokens=asked.max_tokens or 4096,
    )  # fmt: skip
    return msgspec.structs.replace(
        request, messages=messages, tools=tools, tool_choice=choice, thinking=thinking, format=form,
        sampling=sampling, choices=1,
    )  # fmt: skip


@wires
def test_the_six_names(name: str) -> None:
    server, client, _ = WIRES[name]
    assert all(callable(getattr(server, each)) for each in SERVER_HALF)
    assert all(callable(getattr(client, each)) for each in CLIENT_HALF)


def without_places(value: Any) -> Any:
    """The same without the field names that decoding notes for error messages, and JSON text in one spelling."""
    match value:
        case tuple():
            return tuple(map(without_places, value))
        case msgspec.Struct():
            inner = {name: without_places(getattr(value, name)) for name in value.__struct_fields__}
            if isinstance(value, ToolCall | OutputFormat | Tool | Text):
                named = {ToolCall: "arguments", OutputFormat: "value", Tool: "parameters", Text: "text"}[type(value)]
                inner[named] = respelt(inner[named])
            places = {name: "" for name in ("param", "start_param", "pages_param") if name in inner}
            return msgspec.structs.replace(value, **(inner | places))
        case _:
            return value


def respelt(text: str) -> str:
    try:
        return json.dumps(json.loads(text))
    except ValueError:
        return text


@wires
@given(data=st.data())
def test_a_request_survives(name: str, data: st.DataObject) -> None:
    _, client, read = WIRES[name]
    request = data.draw(requests_of(name))
    assert without_places(read(client.encode_request(request), request)) == without_places(request)


async def played(events: list[Event], failure: ApiError | None = None) -> AsyncIterator[Event]:
    for event in events:
        yield event
    if failure is not None:
        raise failure


async def cut(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `size`, as a network might deliver them."""
    async for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


def request_for(choices: int, *, rich: bool = False) -> Request:
    return Request(
        id="r1", created=1, model="m", messages=(Message("user", (Text("x"),)),), choices=choices, stream=True,
        stream_usage=True, sampling=Sampling(logprobs=2 if rich else None),
    )  # fmt: skip


LIKELY = Likely(65, b"A", -0.25)


def answer(pieces: list[list[str]], *, rich: bool = False) -> list[Event]:
    """Choices of these texts; rich ones think first, carry logprobs and end with two calls."""
    prompt, total = Usage(prompt_text=7, prompt_image=12), 0
    events: list[Event] = [Started(prompt)]
    for index, texts in enumerate(pieces):
        made: list[Event] = []
        if rich:
            made += [ReasoningDelta(index, "so ", 1), ReasoningDelta(index, "then", 2)]
        logprobs = (Logprob(LIKELY, (LIKELY, Likely(66, b"B", -2.5))),) if rich else ()
        made += [TextDelta(index, text, len(made) + place + 1, logprobs) for place, text in enumerate(texts)]
        if rich:
            made.append(ToolCallDelta(index, 0, "call_a", "f", '{"x": ', len(made) + 1))
            made.append(ToolCallDelta(index, 0, "", "", '"ü"}', len(made) + 1))
            made.append(ToolCallDelta(index, 1, "call_b", "g", "{}", len(made) + 1))
        total += len(made)
        reason = "tool_calls" if rich else "length" if index % 2 else "stop"
        usage = Usage(prompt_text=7, prompt_image=12, completion=total, reasoning=2 * (index + 1) if rich else 0)
        events += [*made, Finish(index, reason, usage, "closed" if index % 2 else "")]
    return events


pieces_of = st.lists(st.lists(words.filter(bool), max_size=4), min_size=1, max_size=3)


def comparable(completion: Completion, wire: str) -> Completion:
    """OpenAI's wire carries no token ids, Anthropic's no logprobs."""

    def nameless(value: Any) -> Any:
        if isinstance(value, Likely):
            return msgspec.structs.replace(value, token=-1)
        if isinstance(value, tuple):
            return tuple(map(nameless, value))
        if isinstance(value, Choice) and wire == "anthropic_messages":
            return msgspec.structs.replace(value, logprobs=())
        if isinstance(value, msgspec.Struct):
            return msgspec.structs.replace(
                value, **{name: nameless(getattr(value, name)) for name in value.__struct_fields__}
            )
        return value

    return completion if wire == "generate_content" else nameless(completion)


@wires
@given(pieces=pieces_of, rich=st.booleans(), size=st.integers(1, 50))
def test_an_answer_survives(name: str, pieces: list[list[str]], rich: bool, size: int) -> None:
    wire, client, _ = WIRES[name]
    pieces = pieces[:1] if name == "anthropic_messages" else pieces
    events = answer(pieces, rich=rich)

    async def run() -> None:
        sent = wire.encode_stream(request_for(len(pieces), rich=rich), played(events))
        got = await fold(client.decode_stream(cut(sent, size)))
        assert comparable(got, name) == comparable(await fold(played(events)), name)

    asyncio.run(run())


@given(pieces=pieces_of, rich=st.booleans())
def test_a_whole_answer_of_openai_survives(pieces: list[list[str]], rich: bool) -> None:
    completion = asyncio.run(fold(played(answer(pieces, rich=rich))))
    body = openai_chat.encode_completion(request_for(len(pieces), rich=rich), completion)
    assert comparable(openai_answers.decode_completion(body), "openai_chat") == comparable(completion, "openai_chat")


async def whole_body(wire: Any, events: list[Event], choices: int = 1) -> dict[str, Any]:
    return json.loads(wire.encode_completion(request_for(choices, rich=True), await fold(played(events))))


async def test_whole_and_streamed_answers_of_openai_say_the_same() -> None:
    events = answer([["a", "b"]], rich=True)
    message = (await whole_body(openai_chat, events))["choices"][0]
    assert message["message"]["content"] == "ab"
    assert message["message"]["reasoning_content"] == message["message"]["reasoning"] == "so then"
    assert [call["function"] for call in message["message"]["tool_calls"]] == [
        {"name": "f", "arguments": '{"x": "ü"}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert [each["token"] for each in message["logprobs"]["content"]] == ["A", "A"]
    assert message["logprobs"]["content"][0]["top_logprobs"][1] == {"token": "B", "logprob": -2.5, "bytes": [66]}
    assert message["finish_reason"] == "tool_calls"


async def test_an_id_a_type_and_a_name_come_once() -> None:
    sent = [chunk async for chunk in openai_chat.encode_stream(request_for(1), played(answer([[]], rich=True)))]
    deltas = [json.loads(chunk[6:])["choices"][0]["delta"] for chunk in sent[:-2]]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [sorted(call) for call in calls] == [
        ["function", "id", "index", "type"],
        ["function", "index"],
        ["function", "id", "index", "type"],
    ]


async def test_google_sends_a_call_whole() -> None:
    sent = [chunk async for chunk in generate_content.encode_stream(request_for(1), played(answer([["a"]], rich=True)))]
    parts = [part for chunk in sent for part in json.loads(chunk[6:])["candidates"][0]["content"]["parts"]]
    assert [part["functionCall"]["args"] for part in parts if "functionCall" in part] == [{"x": "ü"}, {}]
    body = await whole_body(generate_content, answer([["a"]], rich=True))
    assert [sorted(part) for part in body["candidates"][0]["content"]["parts"]] == [
        ["text", "thought"],
        ["text"],
        ["functionCall"],
        ["functionCall"],
    ]
    assert body["usageMetadata"]["candidatesTokenCount"] + body["usageMetadata"]["thoughtsTokenCount"] == 6
    assert body["candidates"][0]["finishReason"] == "STOP"
    assert body["candidates"][0]["logprobsResult"]["chosenCandidates"][0]["tokenId"] == 65


@pytest.mark.parametrize("arguments", ['{"x": ', '{"x": ' + "[" * 5000 + "]" * 5000 + "}", "5", '"{}"', "{} {}"])
async def test_a_call_that_was_cut_is_no_call_to_google(arguments: str) -> None:
    """Nor is one nested deeper than can be read, or without an object of arguments."""
    end = Finish(0, "length", Usage(prompt_text=1, completion=1))
    events = [Started(end.usage), ToolCallDelta(0, 0, "c", "f", arguments, 1), end]
    sent = [chunk async for chunk in generate_content.encode_stream(request_for(1), played(events))]
    assert all(b"functionCall" not in chunk for chunk in sent)
    body = await whole_body(generate_content, events)
    assert body["candidates"][0]["content"]["parts"] == [{"text": ""}]
    assert body["candidates"][0]["finishReason"] == "MAX_TOKENS"


async def test_what_can_be_read_of_a_call_can_be_sent() -> None:
    """Also where there is hardly room for the levels of the answer around it."""
    for depth in (1, 60, *range(860, 1000)):
        end = Finish(0, "stop", Usage(prompt_text=1, completion=1))
        arguments = '{"x": ' + "[" * depth + "]" * depth + "}"
        completion = await fold(played([Started(end.usage), ToolCallDelta(0, 0, "c", "f", arguments, 1), end]))
        sent = generate_content.encode_completion(request_for(1), completion)
        assert sent.startswith(b'{"candidates":')
        assert arguments.replace(" ", "").encode() in sent or depth > 60


async def test_thoughts_that_nobody_asked_for_stay_out() -> None:
    request = msgspec.structs.replace(request_for(1), thinking=Thinking(shown=False))
    for wire in (openai_chat, generate_content, anthropic_messages):
        sent = [chunk async for chunk in wire.encode_stream(request, played(answer([["a"]], rich=True)))]
        assert b"then" not in b"".join(sent)
        assert b"then" not in wire.encode_completion(request, await fold(played(answer([["a"]], rich=True))))


@wires
async def test_a_failure_in_the_stream_is_its_last_event(name: str) -> None:
    wire, client, _ = WIRES[name]
    failure = ApiError("engine lost", status=503, code="server_is_overloaded")
    sent = wire.encode_stream(request_for(1), played(answer([["a"]])[:2], failure))
    with pytest.raises(ApiError, match="engine lost"):
        await fold(client.decode_stream(sent))
    last = [chunk async for chunk in wire.encode_stream(request_for(1), played(answer([["a"]])[:2], failure))][-1]
    assert last.startswith((b'data: {"error":{', b'event: error\ndata: {"type":"error","error":{'))
    assert last.endswith(b"\n\n")
    assert b"[DONE]" not in last


@wires
@pytest.mark.parametrize("text", ["", "a"])
async def test_an_answer_that_a_moderator_ended_says_so(name: str, text: str) -> None:
    wire, client, _ = WIRES[name]
    end = Finish(0, "content_filter", Usage(prompt_text=1, completion=1), moderation="words:violence")
    events = [Started(end.usage), *([TextDelta(0, text, 1)] if text else []), end]
    sent = [chunk async for chunk in wire.encode_stream(request_for(1), played(events))]
    got = await fold(client.decode_stream(cut(wire.encode_stream(request_for(1), played(events)), 7)))
    assert (got.choices[0].reason, got.choices[0].text, got.usage.completion) == ("content_filter", text, 1)
    whole = wire.encode_completion(request_for(1), await fold(played(events)))
    assert all(b"violence" not in each for each in (*sent, whole))  # that is for the ledger
    said = {
        "openai_chat": b'"finish_reason":"content_filter"',
        "generate_content": b'"finishReason":"SAFETY"',
        "anthropic_messages": b'"stop_reason":"refusal"',
    }[name]
    assert said in b"".join(sent)
    assert said in whole


@pytest.mark.parametrize("again", [False, True])
async def test_what_is_refused_for_its_content_is_no_error_to_google(again: bool) -> None:
    """Nor when it is told again, as an error that has only the code of the first."""
    error = ApiError("no", status=400, code="content_policy_violation") if again else ContentRefused()
    assert generate_content.status_of(error) == 200
    assert json.loads(generate_content.encode_error(error))["promptFeedback"] == {"blockReason": "SAFETY"}
    assert len(json.loads(generate_content.encode_blocked(error, array=True))) == 1

    async def sent() -> AsyncIterator[bytes]:
        yield generate_content.encode_blocked(error, array=False)

    with pytest.raises(ContentRefused):
        await fold(google_client.decode_stream(sent()))
    assert json.loads(openai_chat.encode_error(error))["error"]["code"] == "content_policy_violation"


async def test_google_lines_are_data_with_a_space_and_nothing_else() -> None:
    chunks = [chunk async for chunk in generate_content.encode_stream(request_for(1), played(answer([["a", "b"]])))]
    lines = [line for line in b"".join(chunks).split(b"\n") if line]
    assert lines
    assert all(line.startswith(b"data: {") for line in lines)


async def test_openai_sends_the_role_once_and_ends_with_done() -> None:
    chunks = [chunk async for chunk in openai_chat.encode_stream(request_for(2), played(answer([["a"], ["b"]])))]
    assert chunks[-1] == b"data: [DONE]\n\n"
    decoded = [msgspec.json.decode(chunk[6:]) for chunk in chunks[:-1]]
    roles = [choice["index"] for chunk in decoded for choice in chunk["choices"] if "role" in choice["delta"]]
    assert roles == [0, 1]
    assert decoded[-1]["choices"] == []
    assert decoded[-1]["usage"]["prompt_tokens_details"]["image_tokens"] == 12
    assert all("usage" not in chunk for chunk in decoded[:-1])


@wires
@given(body=st.binary(max_size=200))
def test_bytes_are_refused_or_read_never_more(name: str, body: bytes) -> None:
    _, _, read = WIRES[name]
    with pytest.raises(InvalidRequest):
        read(body, request_for(1))


@pytest.mark.parametrize(("wire", "snake"), [("google", "snake"), ("google", "camel")])
def test_both_spellings_mean_the_same(wire: str, snake: str) -> None:
    """google-genai mixes them within one request."""
    camel = {
        "contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "__4="}}]}],
        "generationConfig": {"maxOutputTokens": "16", "topP": 0.5, "stopSequences": ["x"]},
        "systemInstruction": {"parts": [{"text": "s"}]},
    }
    snaked = {
        "contents": [{"parts": [{"inline_data": {"mime_type": "image/png", "data": "//4"}}]}],
        "generation_config": {"max_output_tokens": 16, "top_p": 0.5, "stop_sequences": ["x"]},
        "system_instruction": {"parts": {"text": "s"}},
    }
    request = request_for(1)
    assert read_google(msgspec.json.encode(camel), request) == read_google(msgspec.json.encode(snaked), request)


async def test_a_call_written_over_several_lines_is_one_event_to_google() -> None:
    end = Finish(0, "stop", Usage(prompt_text=1, completion=1))
    events = [Started(end.usage), ToolCallDelta(0, 0, "c", "f", '{"x": [1,\n  "a\\nb"]}', 1), end]
    sent = [chunk async for chunk in generate_content.encode_stream(request_for(1), played(events))]
    (event,) = [chunk for chunk in sent if b"functionCall" in chunk]
    assert event.strip().count(b"\n") == 0
    part = json.loads(event.removeprefix(b"data: "))["candidates"][0]["content"]["parts"][0]
    assert part["functionCall"]["args"] == {"x": [1, "a\nb"]}
