"""What every wire keeps: a request survives the way out and in, and so do the events of an answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.errors import ApiError, InvalidRequest
from qwen3vl_compat.events import Event, Finish, Started, TextDelta, Usage, fold
from qwen3vl_compat.messages import Image, Message, Request, Sampling, Text
from qwen3vl_compat.wire import generate_content, google_client, openai_chat, openai_client

SERVER_HALF = ("decode_request", "encode_completion", "encode_stream", "encode_error")
CLIENT_HALF = ("encode_request", "decode_stream")


def read_openai(body: bytes, request: Request) -> Request:
    return openai_chat.decode_request(body, request_id=request.id, now=request.created)


def read_google(body: bytes, request: Request) -> Request:
    return generate_content.decode_request(
        body, model=request.model, request_id=request.id, now=request.created, stream=request.stream
    )


WIRES: dict[str, tuple[Any, Any, Callable[[bytes, Request], Request]]] = {
    "openai_chat": (openai_chat, openai_client, read_openai),
    "generate_content": (generate_content, google_client, read_google),
}
wires = pytest.mark.parametrize("name", WIRES)

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
texts = words.map(Text)
images = st.binary(min_size=1, max_size=60).map(lambda data: Image(data, mime_type="image/png"))
turns = st.lists(
    st.builds(Message, st.just("user"), st.lists(texts | images, min_size=1, max_size=3).map(tuple))
    | st.builds(Message, st.just("assistant"), st.tuples(texts)),
    min_size=1,
    max_size=4,
)
samplings = st.builds(
    Sampling,
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    max_tokens=st.none() | st.integers(1, 10_000),
    stop=st.lists(words.filter(bool), max_size=3).map(tuple),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
)
requests = st.builds(
    Request,
    id=st.just("r1"),
    created=st.just(1_760_000_000),
    model=st.just("qwen3-vl"),
    messages=st.tuples(st.just(Message("system", (Text("Be brief."),))))
    .map(list)
    .flatmap(lambda system: turns.map(lambda rest: tuple(system + rest)))
    | turns.map(tuple),
    sampling=samplings,
    choices=st.integers(1, 4),
    stream=st.booleans(),
)


@wires
def test_the_six_names(name: str) -> None:
    server, client, _ = WIRES[name]
    assert all(callable(getattr(server, each)) for each in SERVER_HALF)
    assert all(callable(getattr(client, each)) for each in CLIENT_HALF)


def without_places(request: Request) -> Request:
    """The request without the field names that decoding notes for error messages."""
    messages = tuple(
        msgspec.structs.replace(
            message,
            parts=tuple(
                msgspec.structs.replace(part, param="") if isinstance(part, Image) else part for part in message.parts
            ),
        )
        for message in request.messages
    )
    return msgspec.structs.replace(request, messages=messages)


@wires
@given(request=requests)
def test_a_request_survives(name: str, request: Request) -> None:
    _, client, read = WIRES[name]
    assert without_places(read(client.encode_request(request), request)) == request


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


def request_for(choices: int) -> Request:
    return Request(
        id="r1", created=1, model="m", messages=(Message("user", (Text("x"),)),), choices=choices, stream=True,
        stream_usage=True,
    )  # fmt: skip


def answer(pieces: list[list[str]]) -> list[Event]:
    prompt, total = Usage(prompt_text=7, prompt_image=12), 0
    events: list[Event] = [Started(prompt)]
    for index, texts in enumerate(pieces):
        events += [TextDelta(index, text, place + 1) for place, text in enumerate(texts)]
        total += len(texts)
        reason = "length" if index % 2 else "stop"
        events.append(Finish(index, reason, Usage(prompt_text=7, prompt_image=12, completion=total)))
    return events


@wires
@given(pieces=st.lists(st.lists(words.filter(bool), max_size=4), min_size=1, max_size=3), size=st.integers(1, 50))
def test_an_answer_survives(name: str, pieces: list[list[str]], size: int) -> None:
    wire, client, _ = WIRES[name]
    events = answer(pieces)

    async def run() -> None:
        sent = wire.encode_stream(request_for(len(pieces)), played(events))
        got = await fold(client.decode_stream(cut(sent, size)))
        assert got == await fold(played(events))

    asyncio.run(run())


@wires
async def test_a_failure_in_the_stream_is_its_last_event(name: str) -> None:
    wire, client, _ = WIRES[name]
    failure = ApiError("engine lost", status=503, code="server_is_overloaded")
    sent = wire.encode_stream(request_for(1), played(answer([["a"]])[:2], failure))
    with pytest.raises(ApiError, match="engine lost"):
        await fold(client.decode_stream(sent))
    last = [chunk async for chunk in wire.encode_stream(request_for(1), played(answer([["a"]])[:2], failure))][-1]
    assert last.startswith(b'data: {"error":{')
    assert last.endswith(b"\n\n")
    assert b"[DONE]" not in last


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
