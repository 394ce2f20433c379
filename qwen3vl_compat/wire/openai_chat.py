"""OpenAI's chat completions: `POST /v1/chat/completions`, its stream and its errors."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec

from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import (
    Choice,
    Completion,
    Event,
    Finish,
    Likely,
    Logprob,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen3vl_compat.messages import ModelInfo, Request
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_request import decode_request

__all__ = [
    "decode_request",
    "encode_completion",
    "encode_error",
    "encode_model",
    "encode_stream",
    "encode_usage",
]


def encode_usage(usage: Usage) -> Json:
    """The tokens of a whole request."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": 0,
            "audio_tokens": 0,
            "text_tokens": usage.prompt_text,
            "image_tokens": usage.prompt_image,
            "video_tokens": usage.prompt_video,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _head(request: Request, kind: str) -> Json:
    return {"id": f"chatcmpl-{request.id}", "object": kind, "created": request.created, "model": request.called}


def encode_completion(request: Request, completion: Completion) -> bytes:
    """The whole answer as one body."""
    body: Json = _head(request, "chat.completion") | {
        "choices": [_choice(request, choice) for choice in completion.choices],
        "usage": encode_usage(completion.usage),
        "service_tier": "default",
        "system_fingerprint": None,
    }
    return msgspec.json.encode(body)


def _choice(request: Request, choice: Choice) -> Json:
    message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning and request.thinking.shown:
        message |= _thought(choice.reasoning)
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    asked = request.sampling.logprobs is not None
    return {
        "index": choice.index,
        "message": message,
        "logprobs": encode_logprobs(choice.logprobs) if asked else None,
        "finish_reason": choice.reason,
    } | _details(choice.details)


def _thought(text: str) -> Json:
    """Under both names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


def _details(details: str) -> Json:
    return {"finish_details": {"type": details}} if details else {}


def encode_logprobs(logprobs: Sequence[Logprob]) -> Json:
    """The log-probabilities of tokens."""
    return {"content": [_likely(each.chosen) | {"top_logprobs": list(map(_likely, each.top))} for each in logprobs],
            "refusal": None}  # fmt: skip


def _likely(token: Likely) -> Json:
    return {"token": token.data.decode(errors="replace"), "logprob": token.logprob, "bytes": list(token.data)}


async def encode_stream(request: Request, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events: roles, deltas, one end per choice, the usage if asked for, [DONE].

    A failure after the first byte becomes the stream's last event.
    """
    last: Usage | None = None
    try:
        async for event in events:
            match event:
                case Started():
                    for index in range(request.choices):
                        yield _chunk(request, index, {"role": "assistant", "content": ""})
                case TextDelta(index, text):
                    logprobs = encode_logprobs(event.logprobs) if event.logprobs else None
                    yield _chunk(request, index, {"content": text}, logprobs=logprobs)
                case ReasoningDelta(index, text):
                    if request.thinking.shown:
                        yield _chunk(request, index, _thought(text))
                case ToolCallDelta(index):
                    yield _chunk(request, index, {"tool_calls": [_call_delta(event)]})
                case Progress():
                    pass
                case Finish(index, _, usage):
                    last = usage
                    yield _chunk(request, index, {}, end=event)
    except ApiError as error:
        yield sse.encode(encode_error(error))
        return
    if request.stream_usage and last is not None:
        body: Json = _head(request, "chat.completion.chunk") | {"choices": [], "usage": encode_usage(last)}
        yield sse.encode(msgspec.json.encode(body))
    yield sse.DONE


def _call_delta(delta: ToolCallDelta) -> Json:
    """Id, type and name come once: clients join what is repeated."""
    if not delta.id:
        return {"index": delta.call, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.call, "id": delta.id, "type": "function", "function": function}


def _chunk(
    request: Request, index: int, delta: Json, *, logprobs: Json | None = None, end: Finish | None = None
) -> bytes:
    choice: Json = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end.reason if end else None}
    if end is not None:
        choice |= _details(end.details)
    return sse.encode(msgspec.json.encode(_head(request, "chat.completion.chunk") | {"choices": [choice]}))


# ------------------------------------------------------------------------------------------------------------ errors

_TYPES = {401: "invalid_request_error", 403: "permission_denied", 429: "rate_limit_error"}


def _error_type(status: int) -> str:
    if status in (503, 504):
        return "service_unavailable_error"
    return "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")


def encode_error(error: ApiError) -> bytes:
    """The error envelope, all four keys always there."""
    body = {
        "message": error.message,
        "type": error.code if error.code == "insufficient_quota" else _error_type(error.status),
        "param": error.param,
        "code": "invalid_api_key" if error.code == "missing_api_key" else error.code,
    }
    return msgspec.json.encode({"error": body})


# ------------------------------------------------------------------------------------------------------------ models


def encode_model(model: ModelInfo) -> Json:
    """One entry of the model list."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "qwen",
        "max_model_len": model.context,
    }
