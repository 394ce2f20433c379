"""Anthropic's Messages API: `POST /v1/messages`, its stream and its errors, `count_tokens`, and the models."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from qwen3vl_compat.errors import ApiError, OutOfCredit
from qwen3vl_compat.events import (
    Choice,
    Completion,
    Event,
    Finish,
    FinishReason,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen3vl_compat.messages import ModelInfo, Request, ToolCall
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.anthropic_request import decode_count, decode_request
from qwen3vl_compat.wire.body import Json

__all__ = [
    "decode_count",
    "decode_request",
    "encode_completion",
    "encode_count",
    "encode_error",
    "encode_model",
    "encode_models",
    "encode_stream",
    "status_of",
]

PING = sse.named("ping", b'{"type":"ping"}')
"""What a silent stream says."""

_REASONS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def _usage(usage: Usage) -> Json:
    """What was read anew and what was known are told apart: their sum is the prompt, and that of its details."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "input_tokens_details": {
            "text_tokens": usage.prompt_text,
            "image_tokens": usage.prompt_image,
            "video_tokens": usage.prompt_video,
        },
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def _message(request: Request, content: list[Json], usage: Usage) -> Json:
    return {
        "id": f"msg_{request.id}",
        "type": "message",
        "role": "assistant",
        "model": request.called,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(usage),
    }


def _ending(end: Finish | Choice) -> Json:
    """Why it ended. What Anthropic has no word for stands under OpenAI's `finish_details`, as on the other wire."""
    stopped = end.reason == "stop" and bool(end.stop)
    ending: Json = {
        "stop_reason": "stop_sequence" if stopped else _REASONS[end.reason],
        "stop_sequence": end.stop if stopped else None,
    }
    if end.reason == "content_filter":
        ending["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
    return ending | ({"finish_details": {"type": end.details}} if end.details else {})


def encode_completion(request: Request, completion: Completion) -> bytes:
    """The whole answer as one body."""
    (choice,) = completion.choices
    return msgspec.json.encode(_message(request, _content(request, choice), completion.usage) | _ending(choice))


def _content(request: Request, choice: Choice) -> list[Json]:
    """The blocks of an answer, at least one: clients take the first without a look."""
    blocks: list[Json] = []
    if choice.reasoning and request.thinking.shown:
        blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": request.id})
    if choice.text:
        blocks.append({"type": "text", "text": choice.text})
    blocks += [block for call in choice.calls for block in _called(call)]
    return blocks or [{"type": "text", "text": ""}]


def _called(call: ToolCall) -> Iterator[Json]:
    """The call as a block; nothing for one that was cut off inside its arguments, or whose arguments are no object."""
    try:
        line = msgspec.json.format(call.arguments.encode(), indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return
    if line.startswith(b"{"):
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": msgspec.Raw(line)}


def encode_count(usage: Usage) -> bytes:
    """The answer to count_tokens."""
    return msgspec.json.encode({"input_tokens": usage.prompt})


# ------------------------------------------------------------------------------------------------------------ streams


async def encode_stream(request: Request, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
    """The answer as named events: the message's start, its blocks one after another, its end with the usage.

    A failure after the first byte becomes the stream's last event.
    """
    blocks = _Blocks(request)
    try:
        async for event in events:
            match event:
                case Started(usage):
                    yield _event("message_start", message=_message(request, [], usage))
                case TextDelta(_, text):
                    if text:
                        yield blocks.add("text", {"type": "text", "text": ""}, type="text_delta", text=text)
                case ReasoningDelta(_, text):
                    if request.thinking.shown:
                        head: Json = {"type": "thinking", "thinking": "", "signature": ""}
                        yield blocks.add("thinking", head, type="thinking_delta", thinking=text)
                case ToolCallDelta():
                    head = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
                    delta = {"type": "input_json_delta", "partial_json": event.arguments}
                    yield blocks.add(f"call {event.call}", head, **delta)
                case Progress():
                    pass
                case Finish(_, _, usage):
                    yield blocks.end()
                    yield _event("message_delta", delta=_ending(event), usage=_usage(usage))
                    yield _event("message_stop")
    except ApiError as error:
        yield sse.named("error", encode_error(error, request.id))


class _Blocks:
    """The blocks of a streamed answer: one is open at a time."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._open = ""
        self._index = -1

    def add(self, name: str, head: Json, **delta: str) -> bytes:
        """More of the block of that name, which begins with `head` where it is not the one that is open."""
        opened = b"" if name == self._open else self._close() + self._begin(name, head)
        return opened + _event("content_block_delta", index=self._index, delta=delta)

    def end(self) -> bytes:
        """The end of the last block; of an empty one where there was none, which is what a whole answer has then."""
        begun = b"" if self._index >= 0 else self._begin("text", {"type": "text", "text": ""})
        return begun + self._close()

    def _begin(self, name: str, head: Json) -> bytes:
        self._open, self._index = name, self._index + 1
        return _event("content_block_start", index=self._index, content_block=head)

    def _close(self) -> bytes:
        if not self._open:
            return b""
        signed = b""
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": self._request.id}
            signed = _event("content_block_delta", index=self._index, delta=delta)
        self._open = ""
        return signed + _event("content_block_stop", index=self._index)


def _event(name: str, **fields: object) -> bytes:
    return sse.named(name, msgspec.json.encode({"type": name, **fields}))


# ------------------------------------------------------------------------------------------------------------ errors

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def status_of(error: ApiError) -> int:
    """The HTTP status on this wire, which has its own for who must pay first, and for a server without room."""
    if error.code == OutOfCredit.code:
        return 402
    return 529 if error.status == 503 else error.status


def encode_error(error: ApiError, request_id: str | None = None) -> bytes:
    """Anthropic's error envelope; its client shows `details.error_code` as the error's code."""
    status = status_of(error)
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    details = {"error_code": error.code, "param": error.param}
    told: Json = {"type": kind, "message": error.message, "details": details}
    return msgspec.json.encode({"type": "error", "error": told, "request_id": request_id})


# ------------------------------------------------------------------------------------------------------------ models


def encode_models(models: Sequence[ModelInfo]) -> Json:
    """The model list, which has one page."""
    ids = [model.id for model in models]
    ends = {"first_id": ids[0], "last_id": ids[-1]} if ids else {"first_id": None, "last_id": None}
    return {"data": [encode_model(model) for model in models], "has_more": False, **ends}


def encode_model(model: ModelInfo) -> Json:
    """One entry of the model list."""
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "max_input_tokens": model.context,
        "max_tokens": model.max_output,
    }
