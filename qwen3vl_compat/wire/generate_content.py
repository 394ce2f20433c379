"""Google's native API: `models/{model}:generateContent`, `:streamGenerateContent`, `:countTokens`, and its errors."""

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
from qwen3vl_compat.wire.fields import GOOGLE
from qwen3vl_compat.wire.openai_chat import LONGEST_STOP, MOST_CHOICES, MOST_STOPS, MOST_TOKENS

VERBATIM = {"args", "response", "partMetadata", "labels", "parameters", "parametersJsonSchema", "responseSchema",
            "responseJsonSchema"}  # fmt: skip
"""Fields whose inside is the user's own and keeps its spelling."""

ROLES: Mapping[str, Role] = {"user": "user", "model": "assistant"}


class _Config(Struct, rename="camel"):
    temperature: float | None = None
    top_p: float | None = None
    candidate_count: int = 1
    max_output_tokens: int | None = None
    stop_sequences: list[str] = []
    seed: int | None = None


# ---------------------------------------------------------------------------------------------------------- requests


def decode_request(body: bytes, *, model: str, request_id: str, now: int, stream: bool = False) -> Request:
    """The body of a generateContent call as a Request; snake_case and camelCase are both read, at every depth."""
    return _request(camel_case(decode_object(body)), model, request_id, now, stream)


def decode_count(body: bytes, *, model: str, request_id: str, now: int) -> Request:
    """The body of a countTokens call, which holds contents or a whole generateContentRequest, as a Request."""
    ignored: list[str] = []
    fields = _known(camel_case(decode_object(body)), "countTokens", "", ignored)
    inner = fields.pop("generateContentRequest", None)
    if inner is None:
        return _request(fields, model, request_id, now, False)
    if fields:
        raise InvalidRequest("contents and generateContentRequest exclude each other", param="generateContentRequest")
    return _request(convert(inner, Json, "generateContentRequest"), model, request_id, now, False)


def _request(value: Json, model: str, request_id: str, now: int, stream: bool) -> Request:
    ignored: list[str] = []
    fields = _known(value, "request", "", ignored)
    config = _config(fields.get("generationConfig"), ignored)
    if not fields.get("contents"):
        raise InvalidRequest("contents: must hold at least one content", param="contents")
    turns = convert(fields["contents"], list[Json], "contents")
    messages = [_content(turn, f"contents[{place}]", ignored) for place, turn in enumerate(turns)]
    if "systemInstruction" in fields:
        messages.insert(0, _system(fields["systemInstruction"], ignored))
    return Request(
        id=request_id,
        created=now,
        model=model,
        messages=tuple(messages),
        sampling=Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_output_tokens,
            stop=tuple(config.stop_sequences),
            seed=config.seed,
        ),
        choices=config.candidate_count,
        stream=stream,
        ignored=tuple(ignored),
    )


def camel_case(value: Json) -> Json:
    """The same object with every key in camelCase, save inside fields that are the user's own."""
    result: Json = {}
    for key, item in value.items():
        name = re.sub(r"(?<=[A-Za-z0-9])_([a-z0-9])", lambda found: found[1].upper(), key)
        if name in result:
            raise InvalidRequest(f"the key {shown(name)} appears twice in one object", code="duplicate_key")
        result[name] = item if name in VERBATIM else _camel_inside(item)
    return result


def _camel_inside(item: Any) -> Any:
    if isinstance(item, dict):
        return camel_case(item)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(item, list):
        return [_camel_inside(one) for one in item]  # pyright: ignore[reportUnknownVariableType]
    return item


def _known(value: Json, kind: str, path: str, ignored: list[str]) -> Json:
    kept, unknown = sort_fields(value, GOOGLE[kind], path, ignored)
    if unknown:
        where = f"{path}.{unknown[0][:60]}" if path else unknown[0][:60]
        at = f" at '{path}'" if path else ""
        raise InvalidRequest(f"Unknown name {shown(unknown[0])}{at}: no such field", param=where)
    return kept


def _config(value: Any, ignored: list[str]) -> _Config:
    path = "generationConfig"
    fields = _known(convert({} if value is None else value, Json, path), path, path, ignored)
    for name, item in fields.items():
        if isinstance(item, bool):  # lax reading would take true for 1
            raise InvalidRequest(f"{path}.{name}: must not be true or false", param=f"{path}.{name}")
    config = convert(fields, _Config, path, strict=False)
    within(config.temperature, 0, 2, f"{path}.temperature")
    within(config.top_p, 0, 1, f"{path}.topP")
    within(config.candidate_count, 1, MOST_CHOICES, f"{path}.candidateCount")
    within(config.max_output_tokens, 1, MOST_TOKENS, f"{path}.maxOutputTokens")
    within(config.seed, -(2**63), 2**63 - 1, f"{path}.seed")
    stops = config.stop_sequences
    if len(stops) > MOST_STOPS or any(not 1 <= len(stop) <= LONGEST_STOP for stop in stops):
        message = f"{path}.stopSequences: at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters"
        raise InvalidRequest(message, param=f"{path}.stopSequences")
    return config


def _content(item: Json, path: str, ignored: list[str]) -> Message:
    fields = _known(item, "content", path, ignored)
    name = fields.get("role", "user")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise InvalidRequest(f"{path}.role: must be user or model", param=f"{path}.role")
    parts = _parts(fields, path, ignored)
    if role != "user" and any(isinstance(part, Image) for part in parts):
        raise InvalidRequest(f"{path}.parts: only user contents may hold pictures", param=f"{path}.parts")
    return Message(role, parts)


def _system(value: Any, ignored: list[str]) -> Message:
    path = "systemInstruction"
    if isinstance(value, str):
        return Message("system", (Text(value),))
    parts = _parts(_known(convert(value, Json, path), "content", path, ignored), path, ignored)
    if not all(isinstance(part, Text) for part in parts):
        raise InvalidRequest(f"{path}.parts: may hold text only", param=f"{path}.parts")
    return Message("system", parts)


def _parts(fields: Json, path: str, ignored: list[str]) -> tuple[Part, ...]:
    where = f"{path}.parts"
    parts = fields.get("parts")
    if isinstance(parts, dict):  # proto-JSON readers take one part for a list of one
        parts = [parts]  # pyright: ignore[reportUnknownVariableType]
    items = convert(parts or [], list[Json], where)
    if not items:
        raise InvalidRequest(f"{where}: must hold at least one part", param=where)
    return tuple(_part(item, f"{where}[{place}]", ignored) for place, item in enumerate(items))


def _part(item: Json, path: str, ignored: list[str]) -> Part:
    fields = _known(item, "part", path, ignored)
    if ("text" in fields) == ("inlineData" in fields):
        raise InvalidRequest(f"{path}: must hold either text or inlineData", param=path)
    if "text" in fields:
        return Text(convert(fields["text"], str, f"{path}.text"))
    where = f"{path}.inlineData"
    blob = _known(convert(fields["inlineData"], Json, where), "blob", where, ignored)
    data = decode_base64(convert(blob.get("data"), str, f"{where}.data"), f"{where}.data")
    mime = convert(blob.get("mimeType", ""), str, f"{where}.mimeType").lower()
    if mime and not mime.startswith(("image/", "application/octet-stream")):
        message = f"{where}.mimeType: {shown(mime)} is not supported by this server yet"
        raise InvalidRequest(message, param=f"{where}.mimeType", code="unsupported_parameter")
    return Image(data, mime_type=mime, param=f"{where}.data")


# ----------------------------------------------------------------------------------------------------------- answers

REASONS: Mapping[FinishReason, str] = {"stop": "STOP", "length": "MAX_TOKENS"}


def _modalities(usage: Usage) -> list[Json]:
    details: list[Json] = [{"modality": "TEXT", "tokenCount": usage.prompt_text}]
    if usage.prompt_image:
        details.append({"modality": "IMAGE", "tokenCount": usage.prompt_image})
    return details


def _usage(usage: Usage) -> Json:
    return {
        "promptTokenCount": usage.prompt,
        "candidatesTokenCount": usage.completion,
        "totalTokenCount": usage.total,
        "promptTokensDetails": _modalities(usage),
        "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": usage.completion}],
    }


def _candidate(index: int, text: str, reason: FinishReason | None = None) -> Json:
    candidate: Json = {"content": {"parts": [{"text": text}], "role": "model"}}
    if reason is not None:
        candidate["finishReason"] = REASONS[reason]
    return candidate | {"index": index}


def _answer(request: Request, candidates: list[Json], usage: Usage | None) -> bytes:
    body: Json = {"candidates": candidates}
    if usage is not None:
        body["usageMetadata"] = _usage(usage)
    return msgspec.json.encode(body | {"modelVersion": request.model, "responseId": request.id})


def encode_completion(request: Request, completion: Completion) -> bytes:
    """The whole answer as one body."""
    candidates = [_candidate(choice.index, choice.text, choice.reason) for choice in completion.choices]
    return _answer(request, candidates, completion.usage)


async def encode_stream(
    request: Request, events: AsyncIterator[Event], *, array: bool = False
) -> AsyncGenerator[bytes, None]:
    """The answer as bare `data:` events (`alt=sse`), or as one JSON array that grows.

    The usage comes with the last candidate's end; a failure after the first byte becomes the last element.
    """
    opened = False
    async for message in _messages(request, events):
        if not array:
            yield sse.encode(message)
        else:
            yield (b",\r\n" if opened else b"[") + message
        opened = True
    if array:
        yield b"]" if opened else b"[]"


async def _messages(request: Request, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    finished = 0
    try:
        async for event in events:
            match event:
                case Started():
                    pass
                case TextDelta(index, text):
                    yield _answer(request, [_candidate(index, text)], None)
                case Finish(index, reason, usage):
                    finished += 1
                    end = _candidate(index, "", reason)
                    yield _answer(request, [end], usage if finished == request.choices else None)
    except ApiError as error:
        yield encode_error(error)


def encode_count(usage: Usage) -> bytes:
    """The answer to countTokens."""
    return msgspec.json.encode({"totalTokens": usage.prompt, "promptTokensDetails": _modalities(usage)})


# ------------------------------------------------------------------------------------------------------------ errors

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def status_of(error: ApiError) -> int:
    """The HTTP status on this wire: Google answers no key with 403 and a wrong one with 400."""
    if error.code == "missing_api_key":
        return 403
    return 400 if error.code == "invalid_api_key" else error.status


def encode_error(error: ApiError) -> bytes:
    """Google's error envelope, with the field named in a BadRequest detail and a bad key in an ErrorInfo."""
    code = status_of(error)
    details: list[Json] = []
    if error.code == "invalid_api_key":
        details.append(_detail("ErrorInfo", reason="API_KEY_INVALID", domain="googleapis.com"))
    if error.param is not None and code == 400:
        violation = {"field": error.param, "description": error.message}
        details.append(_detail("BadRequest", fieldViolations=[violation]))
    if error.retry_after is not None:
        details.append(_detail("RetryInfo", retryDelay=f"{error.retry_after}s"))
    default = "INVALID_ARGUMENT" if code < 500 else "INTERNAL"
    body = {"code": code, "message": error.message, "status": _STATUS.get(code, default), "details": details}
    return msgspec.json.encode({"error": body})


def _detail(kind: str, **fields: Any) -> Json:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}


# ------------------------------------------------------------------------------------------------------------ models


def encode_model(model: ModelInfo) -> Json:
    """One entry of the model list."""
    return {
        "name": f"models/{model.id}",
        "version": model.revision or "1",
        "displayName": model.id,
        "description": "Qwen3-VL: text from text and pictures",
        "inputTokenLimit": model.context,
        "outputTokenLimit": model.max_output,
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
    }
