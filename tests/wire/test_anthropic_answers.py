"""What Anthropic's wire says of an answer: blocks, reasons, counts, the order of a stream's events, errors, models."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from qwen3vl_compat.errors import (
    ApiError,
    ContentRefused,
    DeadlineExceeded,
    EngineFailed,
    Forbidden,
    InvalidRequest,
    ModerationUnavailable,
    NotFound,
    OutOfCredit,
    Overloaded,
    RateLimited,
    TooSlow,
    Unauthorized,
)
from qwen3vl_compat.events import (
    Event,
    Finish,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
    fold,
)
from qwen3vl_compat.messages import ModelInfo, Request, Thinking
from qwen3vl_compat.wire import anthropic_messages as wire

PROMPT = Usage(prompt_text=7, prompt_image=12, cached=4)
TOTAL = Usage(prompt_text=7, prompt_image=12, cached=4, completion=6, reasoning=2)
REQUEST = Request(id="r1", created=1, model="m", messages=(), stream=True)
TEXT = [TextDelta(0, "Hel", 1), Progress(0, 2), TextDelta(0, "", 3), TextDelta(0, "lo", 4)]
THOUGHT = [ReasoningDelta(0, "so ", 1), ReasoningDelta(0, "then", 2)]
CALLS = [
    ToolCallDelta(0, 0, "call_a", "f", '{"x": ', 1),
    ToolCallDelta(0, 0, "", "", '"ü"}', 2),
    ToolCallDelta(0, 1, "call_b", "g", "{}", 3),
]
CUT = [ToolCallDelta(0, 0, "call_a", "f", '{"x": [', 1)]

TEXT_BLOCK = {"type": "text", "text": "Hello"}
THOUGHT_BLOCK = {"type": "thinking", "thinking": "so then", "signature": "r1"}
CALL_BLOCKS = [
    {"type": "tool_use", "id": "call_a", "name": "f", "input": {"x": "ü"}},
    {"type": "tool_use", "id": "call_b", "name": "g", "input": {}},
]
USAGE = {
    "input_tokens": 15,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 4,
    "output_tokens": 6,
    "input_tokens_details": {"text_tokens": 7, "image_tokens": 12, "video_tokens": 0},
    "output_tokens_details": {"thinking_tokens": 2},
}

ANSWERS: list[tuple[list[Event], Finish, list[dict[str, Any]], dict[str, Any]]] = [
    ([*TEXT], Finish(0, "stop", TOTAL), [TEXT_BLOCK], {"stop_reason": "end_turn"}),
    ([*TEXT], Finish(0, "length", TOTAL), [TEXT_BLOCK], {"stop_reason": "max_tokens"}),
    ([*TEXT], Finish(0, "stop", TOTAL, stop="END"), [TEXT_BLOCK],
     {"stop_reason": "stop_sequence", "stop_sequence": "END"}),
    ([*TEXT], Finish(0, "stop", TOTAL, "closed"), [TEXT_BLOCK],
     {"stop_reason": "end_turn", "finish_details": {"type": "closed"}}),
    ([*TEXT], Finish(0, "content_filter", TOTAL, moderation="words:violence"), [TEXT_BLOCK],
     {"stop_reason": "refusal", "stop_details": {"type": "refusal", "category": None, "explanation": None}}),
    ([], Finish(0, "content_filter", TOTAL), [{"type": "text", "text": ""}],
     {"stop_reason": "refusal", "stop_details": {"type": "refusal", "category": None, "explanation": None}}),
    ([*THOUGHT, *TEXT], Finish(0, "stop", TOTAL), [THOUGHT_BLOCK, TEXT_BLOCK], {"stop_reason": "end_turn"}),
    ([*THOUGHT, *TEXT, *CALLS], Finish(0, "tool_calls", TOTAL), [THOUGHT_BLOCK, TEXT_BLOCK, *CALL_BLOCKS],
     {"stop_reason": "tool_use"}),
    ([*CALLS], Finish(0, "tool_calls", TOTAL, stop="x"), CALL_BLOCKS, {"stop_reason": "tool_use"}),
]  # fmt: skip
answers = pytest.mark.parametrize(("made", "end", "blocks", "ending"), ANSWERS)


async def played(events: list[Event], failure: ApiError | None = None) -> AsyncIterator[Event]:
    for event in (Started(PROMPT), *events):
        yield event
    if failure is not None:
        raise failure


async def whole(events: list[Event], request: Request = REQUEST) -> Any:
    return json.loads(wire.encode_completion(request, await fold(played(events))))


async def streamed(events: list[Event], request: Request = REQUEST, failure: ApiError | None = None) -> list[Any]:
    """The data of each event, whose name must be its type."""
    sent = b"".join([chunk async for chunk in wire.encode_stream(request, played(events, failure))])
    found: list[Any] = []
    for event in sent.removesuffix(b"\n\n").split(b"\n\n"):
        name, _, data = event.partition(b"\n")
        found.append(json.loads(data.removeprefix(b"data: ")))
        assert name.decode() == f"event: {found[-1]['type']}"
    return found


def told(ending: dict[str, Any]) -> dict[str, Any]:
    return {"stop_sequence": None} | ending


@answers
async def test_a_whole_answer(
    made: list[Event], end: Finish, blocks: list[dict[str, Any]], ending: dict[str, Any]
) -> None:
    body = await whole([*made, end])
    head = {"id": "msg_r1", "type": "message", "role": "assistant", "model": "m"}
    assert body == head | {"content": blocks, "usage": USAGE} | told(ending)
    Message.model_validate(body, strict=True)


@answers
async def test_a_stream_says_the_same_in_pieces(
    made: list[Event], end: Finish, blocks: list[dict[str, Any]], ending: dict[str, Any]
) -> None:
    events = await streamed([*made, end])
    for event in events:
        TypeAdapter(RawMessageStreamEvent).validate_python(event, strict=True)
    first, *inside, delta, last = events
    message = first["message"]
    assert (first["type"], message["content"], message["stop_reason"]) == ("message_start", [], None)
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == 19
    assert delta == {"type": "message_delta", "delta": told(ending), "usage": USAGE}
    assert last == {"type": "message_stop"}
    assert put_together(inside) == blocks


def put_together(events: list[Any]) -> list[dict[str, Any]]:
    """The blocks, each of which must be begun and ended in its turn."""
    blocks: list[dict[str, Any]] = []
    opened = False
    arguments = ""
    for event in events:
        match event:
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert (index, opened) == (len(blocks), False)
                blocks.append(dict(block))
                opened, arguments = True, ""
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                assert (index, opened) == (len(blocks) - 1, True)
                name = delta["type"].removesuffix("_delta")
                if name == "input_json":
                    arguments += delta["partial_json"]
                else:
                    blocks[-1][name] += delta[name]
            case {"type": "content_block_stop", "index": index}:
                assert (index, opened) == (len(blocks) - 1, True)
                opened = False
                if arguments:
                    blocks[-1]["input"] = json.loads(arguments)
    assert not opened
    return blocks


async def test_a_call_that_was_cut_is_none_in_a_whole_answer() -> None:
    """Its input could not be the object that it must be; in a stream it has been begun."""
    end = Finish(0, "length", TOTAL)
    assert (await whole([*TEXT, *CUT, end]))["content"] == [TEXT_BLOCK]
    assert (await whole([*CUT, end]))["content"] == [{"type": "text", "text": ""}]
    starts = [each["content_block"]["type"] for each in await streamed([*CUT, end]) if "content_block" in each]
    assert starts == ["tool_use"]


async def test_thoughts_that_nobody_asked_for_stay_out() -> None:
    request = Request(id="r1", created=1, model="m", messages=(), thinking=Thinking(shown=False))
    events = [*THOUGHT, *TEXT, Finish(0, "stop", TOTAL)]
    assert (await whole(events, request))["content"] == [TEXT_BLOCK]
    assert [each["content_block"]["type"] for each in await streamed(events, request) if "content_block" in each] == [
        "text"
    ]


async def test_a_failure_in_a_stream_is_its_last_event() -> None:
    *_, last = await streamed([*TEXT], failure=Overloaded("full", retry_after=5))
    details = {"error_code": "server_is_overloaded", "param": None}
    error = {"type": "overloaded_error", "message": "full", "details": details}
    assert last == {"type": "error", "error": error, "request_id": "r1"}


LIMIT: Any = {"quota": "requests", "retry_after": 5, "headers": ()}
ERRORS: list[tuple[ApiError, int, str]] = [
    (InvalidRequest("m"), 400, "invalid_request_error"),
    (InvalidRequest("m", status=405), 405, "invalid_request_error"),
    (InvalidRequest("m", status=415), 415, "invalid_request_error"),
    (InvalidRequest("m", status=413), 413, "request_too_large"),
    (ContentRefused(), 400, "invalid_request_error"),
    (Unauthorized("m"), 401, "authentication_error"),
    (Unauthorized("m", code="missing_api_key"), 401, "authentication_error"),
    (Forbidden("m"), 403, "permission_error"),
    (NotFound("m"), 404, "not_found_error"),
    (TooSlow("m"), 408, "timeout_error"),
    (ApiError("m", status=409, code="conflict"), 409, "conflict_error"),
    (RateLimited("m", **LIMIT), 429, "rate_limit_error"),
    (OutOfCredit("m", quota="budget", headers=()), 402, "billing_error"),
    (Overloaded("m"), 529, "overloaded_error"),
    (ModerationUnavailable("m"), 529, "overloaded_error"),
    (DeadlineExceeded("m"), 504, "timeout_error"),
    (EngineFailed("m"), 500, "api_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), ERRORS)
def test_errors(error: ApiError, status: int, kind: str) -> None:
    body = json.loads(wire.encode_error(error, "r1"))
    details = {"error_code": error.code, "param": error.param}
    assert wire.status_of(error) == status
    assert body == {
        "type": "error", "error": {"type": kind, "message": error.message, "details": details}, "request_id": "r1",
    }  # fmt: skip


def test_models_are_one_page() -> None:
    models = [ModelInfo(id=name, created=1_760_000_000, context=32_768, max_output=4_096) for name in ("a", "b")]
    listed = wire.encode_models(models)
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("a", "b", False)
    assert listed["data"][0] == {
        "type": "model", "id": "a", "display_name": "a", "created_at": "2025-10-09T08:53:20Z",
        "max_input_tokens": 32_768, "max_tokens": 4_096,
    }  # fmt: skip
    assert wire.encode_models([]) == {"data": [], "has_more": False, "first_id": None, "last_id": None}


def test_a_count() -> None:
    assert json.loads(wire.encode_count(PROMPT)) == {"input_tokens": 19}
