"""An answer is judged by what its clients need of it: each of these good ones fails as soon as one thing is changed."""

import json

import pytest

from qwen3vl_compat.doctor.finding import Failed
from qwen3vl_compat.doctor.visit import Reply
from qwen3vl_compat.doctor.wires import WIRES, Answer, Wire

BY_NAME: dict[str, Wire] = {wire.name: wire for wire in WIRES}


def sse(*events: tuple[str, object]) -> str:
    """Events; one without a name has no line for it."""
    return "".join((f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n" for name, data in events)


def chunk(choices: list[object], usage: object = None) -> tuple[str, object]:
    of_all = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return "", of_all | {"choices": choices, "usage": usage}


def delta(finish: str | None = None, **told: str) -> object:
    return {"index": 0, "delta": told, "finish_reason": finish}


def told(kind: str, **fields: object) -> tuple[str, object]:
    return kind, {"type": kind, **fields}


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hi!"}]}],
    "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}


def google(text: str, **more: object) -> tuple[str, object]:
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    usage = {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7}} if more else {}
    return "", {"candidates": [candidate | more], "modelVersion": "m", "responseId": "r"} | usage


STREAMS = {
    "OpenAI chat": sse(
        chunk([delta(role="assistant", content="")]),
        chunk([delta(content="Hi")]),
        chunk([delta(content="!")]),
        chunk([delta("stop")]),
        chunk([], USAGE),
    )
    + "data: [DONE]\n\n",
    "OpenAI responses": sse(
        told("response.created", sequence_number=0, response=RESPONSE | {"status": "in_progress", "usage": None}),
        told("response.output_text.delta", sequence_number=1, delta="Hi"),
        told("response.output_text.delta", sequence_number=2, delta="!"),
        told("response.completed", sequence_number=3, response=RESPONSE),
    ),
    "Google": sse(google("Hi"), google("!", finishReason="STOP")),
    "Anthropic": sse(
        told("message_start", message=MESSAGE | {"usage": {"input_tokens": 5, "output_tokens": 0}}),
        told("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        told("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"}),
        told("ping"),
        told("content_block_delta", index=0, delta={"type": "text_delta", "text": "!"}),
        told("content_block_stop", index=0),
        told("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
        told("message_stop"),
    ),
}
FINISHES = {"OpenAI chat": "stop", "OpenAI responses": "completed", "Google": "STOP", "Anthropic": "end_turn"}


def read(name: str, stream: str) -> Answer:
    return BY_NAME[name].read_stream(Reply(200, {"content-type": "text/event-stream"}, stream.encode(), 0.0, 0.0))


@pytest.mark.parametrize("name", STREAMS)
def test_a_good_stream_is_read(name: str) -> None:
    assert read(name, STREAMS[name]) == Answer("Hi!", FINISHES[name], 5, 2)


@pytest.mark.parametrize(
    ("name", "was", "becomes", "expected"),
    [
        ("OpenAI chat", "data: [DONE]\n\n", "", "[DONE]"),
        ("OpenAI chat", '"delta": {"content": "Hi"}', '"delta": {"role": "assistant", "content": "Hi"}', "one role"),
        ("OpenAI chat", '"finish_reason": "stop"', '"finish_reason": null', "one finish_reason"),
        ("OpenAI chat", '"finish_reason": "stop"', '"finish_reason": "end"', "a chunk"),
        ("OpenAI chat", json.dumps(USAGE), "null", "one usage"),
        ("OpenAI chat", '"object": "chat.completion.chunk"', '"object": "chunk"', "a chunk"),
        ("OpenAI chat", '{"id": "c",', '{"error": {"message": "The engine broke."},', "a chunk"),
        ("OpenAI responses", '"sequence_number": 2', '"sequence_number": 1', "event 2"),
        ("OpenAI responses", "event: response.completed", "event: response.done", "event 3"),
        ("OpenAI responses", '"delta": "Hi"', '"delta": "Ho"', "pieces that make up"),
        ("OpenAI responses", '"status": "completed"', '"status": "failed"', "completed or incomplete"),
        ("OpenAI responses", "response.created", "response.begun", "response.created"),
        ("Google", '"finishReason": "STOP"', '"finishReason": null', "one finishReason"),
        ("Google", '"usageMetadata"', '"usage"', "usageMetadata"),
        ("Google", "modelVersion", "model", "in the stream"),
        ("Anthropic", 'event: message_stop\ndata: {"type": "message_stop"}\n\n', "", "message_stop"),
        ("Anthropic", "event: ping", "event: pong", "type pong"),
        ("Anthropic", '"stop_reason": "end_turn"', '"stop_reason": null', "one stop_reason"),
        ("Anthropic", '"usage": {"output_tokens": 2}', '"usage": null', "one usage"),
        ("Anthropic", '"role": "assistant"', '"role": "user"', "message_start"),
    ],
)
def test_a_stream_that_a_client_could_not_read_fails(name: str, was: str, becomes: str, expected: str) -> None:
    assert was in STREAMS[name]
    with pytest.raises(Failed) as failed:
        read(name, STREAMS[name].replace(was, becomes))
    assert expected in failed.value.expected
    assert failed.value.seen


CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Hi!"}, "finish_reason": "stop"}
WHOLE = {
    "OpenAI chat": {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [CHOICE],
        "usage": USAGE,
    },
    "OpenAI responses": RESPONSE,
    "Google": google("Hi!", finishReason="STOP")[1],
    "Anthropic": MESSAGE
    | {
        "content": [{"type": "text", "text": "Hi!"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 2, "cache_read_input_tokens": 3, "output_tokens": 2},
    },
}


def whole(name: str, body: object) -> Answer:
    return BY_NAME[name].read(Reply(200, {}, json.dumps(body).encode(), 0.0, 0.0))


@pytest.mark.parametrize("name", WHOLE)
def test_a_good_answer_is_read_and_none_of_its_fields_may_be_missing(name: str) -> None:
    body = WHOLE[name]
    assert isinstance(body, dict)
    assert whole(name, body) == Answer("Hi!", FINISHES[name], 5, 2)
    for field in body:
        with pytest.raises(Failed):
            whole(name, {left: value for left, value in body.items() if left != field})
