"""Google's native API: `models/{model}:generateContent`, `:streamGenerateContent`, `:countTokens`, and its errors."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import msgspec

from qwen3vl_compat.errors import ApiError, ContentRefused
from qwen3vl_compat.events import (
    Choice,
    Completion,
    Event,
    Finish,
    FinishReason,
    Likely,
    Logprob,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen3vl_compat.messages import ModelInfo, Request, ToolCall
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.google_request import decode_count, decode_request

__all__ = [
    "decode_count",
    "decode_request",
    "encode_completion",
    "encode_count",
    "encode_error",
    "encode_model",
    "encode_stream",
    "status_of",
]

_REASONS: Mapping[FinishReason, str] = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
}


def _modalities(usage: Usage) -> list[Json]:
    details: list[Json] = [{"modality": "TEXT", "tokenCount": usage.prompt_text}]
    for modality, count in (("IMAGE", usage.prompt_image), ("VIDEO", usage.prompt_video)):
        if count:
            details.append({"modality": modality, "tokenCount": count})
    return details


def _usage(usage: Usage) -> Json:
    visible = usage.completion - usage.reasoning
    return {
        "promptTokenCount": usage.prompt,
        "candidatesTokenCount": visible,
        "totalTokenCount": usage.total,
        "promptTokensDetails": _modalities(usage),
        "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": visible}],
        **({"cachedContentTokenCount": usage.cached} if usage.cached else {}),
        **({"thoughtsTokenCount": usage.reasoning} if usage.reasoning else {}),
    }


def _candidate(index: int, parts: list[Json], end: Finish | Choice | None = None) -> Json:
    candidate: Json = {"content": {"parts": parts, "role": "model"}}
    if end is not None:
        candidate["finishReason"] = _REASONS[end.reason]
        if end.details:
            candidate["finishMessage"] = end.details
    return candidate | {"index": index}


def _logprobs(logprobs: tuple[Logprob, ...]) -> Json:
    if not logprobs:
        return {}
    total = sum(each.chosen.logprob for each in logprobs)
    result = {
        "chosenCandidates": [_likely(each.chosen) for each in logprobs],
        "topCandidates": [{"candidates": list(map(_likely, each.top))} for each in logprobs],
        "logProbabilitySum": total,
    }
    return {"avgLogprobs": total / len(logprobs), "logprobsResult": result}


def _likely(token: Likely) -> Json:
    text = token.data.decode(errors="replace")
    return {"token": text, "tokenId": token.token, "logProbability": token.logprob}


def _answer(request: Request, candidates: list[Json], usage: Usage | None) -> bytes:
    body: Json = {"candidates": candidates}
    if usage is not None:
        body["usageMetadata"] = _usage(usage)
    return msgspec.json.encode(body | {"modelVersion": request.called, "responseId": request.id})


def encode_completion(request: Request, completion: Completion) -> bytes:
    """The whole answer as one body."""
    candidates = [
        _candidate(choice.index, _whole(request, choice), choice) | _logprobs(choice.logprobs)
        for choice in completion.choices
    ]
    return _answer(request, candidates, completion.usage)


def _whole(request: Request, choice: Choice) -> list[Json]:
    parts: list[Json] = []
    if choice.reasoning and request.thinking.shown:
        parts.append({"text": choice.reasoning, "thought": True})
    if choice.text:
        parts.append({"text": choice.text})
    parts += [part for call in choice.calls for part in _called(call)]
    return parts or [{"text": ""}]


def _called(call: ToolCall) -> list[Json]:
    """The call as a part; nothing for one that was cut off inside its arguments, or whose arguments are no object.

    They are sent as they came, on one line, which a stream needs: to build them only to write them again takes a
    level of recursion for each of theirs.
    """
    try:
        line = msgspec.json.format(call.arguments.encode(), indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return []
    if not line.startswith(b"{"):
        return []
    return [{"functionCall": {"id": call.id, "name": call.name, "args": msgspec.Raw(line)}}]


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
    calls: dict[int, ToolCall] = {}

    def whole_call(index: int) -> list[Json]:
        """This API sends a call whole: it is kept until the next thing comes."""
        call = calls.pop(index, None)
        return [] if call is None else _called(call)

    try:
        async for event in events:
            match event:
                case Started() | Progress():
                    pass
                case ToolCallDelta(index):
                    if event.id and (parts := whole_call(index)):
                        yield _answer(request, [_candidate(index, parts)], None)
                    call = calls.get(index) or ToolCall(event.id, event.name, "")
                    calls[index] = msgspec.structs.replace(call, arguments=call.arguments + event.arguments)
                case TextDelta(index, text):
                    parts = whole_call(index)
                    if text or not parts:
                        parts.append({"text": text})
                    yield _answer(request, [_candidate(index, parts) | _logprobs(event.logprobs)], None)
                case ReasoningDelta(index, text):
                    if request.thinking.shown:
                        parts = [*whole_call(index), {"text": text, "thought": True}]
                        yield _answer(request, [_candidate(index, parts)], None)
                case Finish(index, _, usage):
                    finished += 1
                    end = _candidate(index, whole_call(index) or [{"text": ""}], event)
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
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def status_of(error: ApiError) -> int:
    """The HTTP status on this wire: Google answers no key with 403, a wrong one with 400, what is blocked with 200."""
    if is_blocked(error):
        return 200
    if error.code == "missing_api_key":
        return 403
    return 400 if error.code == "invalid_api_key" else error.status


def is_blocked(error: ApiError) -> bool:
    """Whether it is a moderator's objection, told again or not: on this wire an answer without candidates."""
    return error.code == ContentRefused.code


def encode_blocked(error: ApiError, *, array: bool) -> bytes:
    """The only message of a stream that is not begun."""
    return b"[" + encode_error(error) + b"]" if array else sse.encode(encode_error(error))


def encode_error(error: ApiError) -> bytes:
    """Google's error envelope, with the field named in a BadRequest detail and a bad key in an ErrorInfo."""
    if is_blocked(error):
        counts = {"promptTokenCount": 0, "totalTokenCount": 0}  # nothing was counted before it was refused
        return msgspec.json.encode({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": counts})
    code = status_of(error)
    details: list[Json] = []
    if error.code == "invalid_api_key":
        details.append(_detail("ErrorInfo", reason="API_KEY_INVALID", domain="googleapis.com"))
    if error.param is not None and code == 400:
        violation = {"field": error.param, "description": error.message}
        details.append(_detail("BadRequest", fieldViolations=[violation]))
    if error.retry_after is not None:
        details.append(_detail("RetryInfo", retryDelay=f"{error.retry_after}s"))
    if error.quota:
        violation = {"subject": error.quota, "description": error.message}
        details.append(_detail("QuotaFailure", violations=[violation]))
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
