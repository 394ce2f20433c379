"""OpenAI's chat completions: `POST /v1/chat/completions`, its stream and its errors."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import ApiError, InvalidRequest
from qwen3vl_compat.events import Completion, Event, Finish, FinishReason, Started, TextDelta, Usage
from qwen3vl_compat.messages import Image, Message, ModelInfo, Part, Request, Role, Sampling, Text
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.body import (
    Json,
    convert,
    decode_base64,
    decode_object,
    shown,
    sort_fields,
    within,
)
from qwen3vl_compat.wire.fields import OPENAI

MOST_CHOICES, MOST_STOPS, LONGEST_STOP = 4, 16, 1000
MOST_TOKENS = 10_000_000
LONGEST_MEDIA_TYPE = 512
"""Characters a data: URL may have before its comma."""

ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
PARTS_NOT_SERVED = ("image_file", "video_url", "input_audio", "file", "refusal", "image_embeds", "audio_url")


class _Top(Struct):
    model: str
    messages: list[Json]
    stream: bool = False
    stream_options: Json | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None


class _Usage(Struct):
    include_usage: bool | None = None


# ---------------------------------------------------------------------------------------------------------- requests


def decode_request(body: bytes, *, request_id: str, now: int) -> Request:
    """The body of a chat completion as a Request; every fault is an InvalidRequest that names the field."""
    ignored: list[str] = []
    fields = _known(decode_object(body), "request", "", ignored)
    for name in ("model", "messages"):
        if name not in fields:
            raise InvalidRequest(f"{name}: is required", param=name, code="missing_required_parameter")
    top = convert(fields, _Top, "")
    options = convert(_known(top.stream_options or {}, "stream_options", "stream_options", ignored), _Usage, "")
    if not top.messages:
        raise InvalidRequest("messages: must hold at least one message", param="messages")
    messages = [_message(item, f"messages[{place}]", ignored) for place, item in enumerate(top.messages)]
    return Request(
        id=request_id,
        created=now,
        model=top.model,
        messages=tuple(messages),
        sampling=_sampling(top),
        choices=top.n,
        stream=top.stream,
        stream_usage=bool(options.include_usage),
        ignored=tuple(ignored),
    )


def _known(value: Json, kind: str, path: str, ignored: list[str]) -> Json:
    kept, unknown = sort_fields(value, OPENAI[kind], path, ignored)
    ignored.extend(f"{path}.{name}" if path else name for name in unknown)
    return kept


def _sampling(top: _Top) -> Sampling:
    within(top.n, 1, MOST_CHOICES, "n")
    within(top.temperature, 0, 2, "temperature")
    within(top.top_p, 0, 1, "top_p")
    within(top.seed, -(2**63), 2**63 - 1, "seed")
    within(top.max_tokens, 1, MOST_TOKENS, "max_tokens")
    within(top.max_completion_tokens, 1, MOST_TOKENS, "max_completion_tokens")
    stops = (top.stop,) if isinstance(top.stop, str) else tuple(top.stop or ())
    if len(stops) > MOST_STOPS or any(not 1 <= len(stop) <= LONGEST_STOP for stop in stops):
        message = f"stop: at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters"
        raise InvalidRequest(message, param="stop")
    limit = top.max_completion_tokens if top.max_completion_tokens is not None else top.max_tokens
    return Sampling(temperature=top.temperature, top_p=top.top_p, max_tokens=limit, stop=stops, seed=top.seed)


def _message(item: Json, path: str, ignored: list[str]) -> Message:
    name = item.get("role")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        said = f"; {shown(name)} is not served" if isinstance(name, str) else ""
        raise InvalidRequest(f"{path}.role: must be one of {', '.join(ROLES)}{said}", param=f"{path}.role")
    content = _known(item, "message", path, ignored).get("content")
    where = f"{path}.content"
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if content is None and role == "assistant":
        return Message(role, (Text(""),))
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}: must be a string or a list of parts", param=where)
    items = convert(content, list[Any], where)
    if not items:
        raise InvalidRequest(f"{where}: must hold at least one part", param=where)
    parts = tuple(_part(part, f"{where}[{place}]", ignored) for place, part in enumerate(items))
    for place, part in enumerate(parts):
        if isinstance(part, Image) and role != "user":
            at = f"{where}[{place}]"
            raise InvalidRequest(f"{at}: only user messages may hold pictures", param=at)
    return Message(role, parts)


def _part(value: Any, path: str, ignored: list[str]) -> Part:
    item = convert(value, Json, path)
    kind = item.get("type")
    match kind:
        case "text":
            kept = _known(item, "part", path, ignored)
            return Text(convert(kept.get("text"), str, f"{path}.text"))
        case "image_url":
            kept = _known(item, "part", path, ignored)
            return _image(convert(kept.get("image_url"), Json, f"{path}.image_url"), f"{path}.image_url", ignored)
        case str() if kind in PARTS_NOT_SERVED:
            raise InvalidRequest(
                f"{path}.type: {shown(kind)} parts are not supported by this server yet",
                param=f"{path}.type",
                code="unsupported_parameter",
            )
        case _:
            raise InvalidRequest(f"{path}.type: must be 'text' or 'image_url'", param=f"{path}.type")


_DATA_URL = re.compile(r"data:(?P<mime>[^,;]*)(?P<rest>(;[^,;]*)*),", re.IGNORECASE)


def _image(value: Json, path: str, ignored: list[str]) -> Image:
    kept, where = _known(value, "image_url", path, ignored), f"{path}.url"
    url = convert(kept.get("url"), str, where)
    if re.match(r"\s*https?:", url, re.IGNORECASE):
        message = f"{where}: this server does not fetch http(s) URLs yet; send the picture as a data: URL"
        raise InvalidRequest(message, param=where, code="invalid_image_url")
    comma = url.find(",", 0, LONGEST_MEDIA_TYPE)
    found = _DATA_URL.match(url[: comma + 1])
    if found is None or not found["rest"].lower().endswith(";base64"):
        message = f"{where}: must be a data: URL in base64, data:image/jpeg;base64,..."
        raise InvalidRequest(message, param=where, code="invalid_image_url")
    data = decode_base64(url[found.end() :], where)
    return Image(data, mime_type=found["mime"].lower(), param=where)


# ----------------------------------------------------------------------------------------------------------- answers


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
        "prompt_tokens_details": {
            "cached_tokens": 0,
            "cache_write_tokens": 0,
            "audio_tokens": 0,
            "text_tokens": usage.prompt_text,
            "image_tokens": usage.prompt_image,
        },
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _head(request: Request, kind: str) -> Json:
    return {"id": f"chatcmpl-{request.id}", "object": kind, "created": request.created, "model": request.model}


def encode_completion(request: Request, completion: Completion) -> bytes:
    """The whole answer as one body."""
    choices: list[Json] = [
        {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None,
            "finish_reason": choice.reason,
        }
        for choice in completion.choices
    ]
    body: Json = _head(request, "chat.completion") | {
        "choices": choices,
        "usage": _usage(completion.usage),
        "service_tier": "default",
        "system_fingerprint": None,
    }
    return msgspec.json.encode(body)


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
                    yield _chunk(request, index, {"content": text})
                case Finish(index, reason, usage):
                    last = usage
                    yield _chunk(request, index, {}, reason)
    except ApiError as error:
        yield sse.encode(encode_error(error))
        return
    if request.stream_usage and last is not None:
        body: Json = _head(request, "chat.completion.chunk") | {"choices": [], "usage": _usage(last)}
        yield sse.encode(msgspec.json.encode(body))
    yield sse.DONE


def _chunk(request: Request, index: int, delta: Json, reason: FinishReason | None = None) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
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
        "type": _error_type(error.status),
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
