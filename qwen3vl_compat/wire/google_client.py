"""The client's half of Google's generateContent: the body that is sent and the stream that comes back."""

import base64
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import ApiError, ContentRefused
from qwen3vl_compat.events import (
    Delta,
    Events,
    FinishReason,
    Likely,
    Logprob,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen3vl_compat.messages import (
    Link,
    Media,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Upload,
)
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.received import Received


def encode_request(request: Request) -> bytes:
    """The body a client sends for `request`; the model and the streaming are in the address, not in the body."""
    sampling = request.sampling
    config: Json = {
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "topK": sampling.top_k,
        "presencePenalty": sampling.presence_penalty or None,
        "frequencyPenalty": sampling.frequency_penalty or None,
        "responseLogprobs": None if sampling.logprobs is None else True,
        "logprobs": sampling.logprobs,
        "maxOutputTokens": sampling.max_tokens,
        "stopSequences": list(sampling.stop) or None,
        "seed": sampling.seed,
        "candidateCount": request.choices if request.choices != 1 else None,
        "thinkingConfig": _encode_thinking(request.thinking),
        **_encode_format(request.format),
    }
    config = {name: value for name, value in config.items() if value is not None}
    messages = list(request.messages)
    body: Json = {"generationConfig": config} if config else {}
    if messages and messages[0].role == "system":
        body["systemInstruction"] = {"parts": [_encode_part(part) for part in messages.pop(0).parts]}
    body["contents"] = [_encode_content(item) for item in messages]
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_encode_tool(tool) for tool in request.tools]}]
    if (choice := _encode_choice(request.tool_choice)) is not None:
        body["toolConfig"] = {"functionCallingConfig": choice}
    return msgspec.json.encode(body)


def _encode_thinking(thinking: Thinking) -> Json:
    config: Json = {"includeThoughts": thinking.shown}
    if thinking.enabled is not None:
        unbounded = -1 if thinking.enabled else 0
        config["thinkingBudget"] = unbounded if thinking.budget is None else thinking.budget
    return config


def _encode_format(form: OutputFormat) -> Json:
    match form.kind:
        case "json_object":
            return {"responseMimeType": "application/json"}
        case "json_schema":
            return {"responseMimeType": "application/json", "responseJsonSchema": msgspec.Raw(form.value.encode())}
        case "choice":
            schema = {"type": "STRING", "enum": json.loads(form.value)}
            return {"responseMimeType": "text/x.enum", "responseSchema": schema}
        case _:
            return {}


def _encode_tool(tool: Tool) -> Json:
    schema = {"parametersJsonSchema": msgspec.Raw(tool.parameters.encode())} if tool.parameters else {}
    return {"name": tool.name, "description": tool.description, **schema}


def _encode_choice(choice: ToolChoice) -> Json | None:
    mode = {"auto": "AUTO", "none": "NONE", "required": "ANY"}[choice.mode]
    if choice.names:
        return {"mode": mode, "allowedFunctionNames": list(choice.names)}
    return {"mode": mode} if choice.mode != "auto" else None


def _encode_content(message: Message) -> Json:
    names = {"user": "user", "assistant": "model", "system": "user", "tool": "user"}
    return {"role": names[message.role], "parts": [_encode_part(part) for part in message.parts]}


def _encode_part(part: Part) -> Json:
    match part:
        case Text(text):
            return {"text": text}
        case Reasoning(text):
            return {"text": text, "thought": True}
        case ToolCall(number, name, arguments):
            return {"functionCall": {"id": number, "name": name, "args": msgspec.Raw(arguments.encode())}}
        case ToolResult(number, name, parts):
            response: Json = {"id": number, "name": name, "response": _encode_response(parts[0])}
            if parts[1:]:
                response["parts"] = [_encode_part(each) for each in parts[1:]]
            return {"functionResponse": response}
        case Media():
            return _encode_media(part)
        case _:
            raise AssertionError("checked media and lists of frames have no form on this wire")


def _encode_media(media: Media) -> Json:
    body: Json
    match media.source:
        case bytes(data):
            blob = {"mimeType": media.mime_type, "data": base64.b64encode(data).decode("ascii")}
            body = {"inlineData": blob}
        case Link(uri) | Upload(uri):
            body = {"fileData": {"mimeType": media.mime_type, "fileUri": uri}}
    if media.name:
        next(iter(body.values()))["displayName"] = media.name
    if media.detail != "auto" or media.budget is not None:
        level = f"MEDIA_RESOLUTION_{media.detail.upper() if media.detail != 'auto' else 'UNSPECIFIED'}"
        body["mediaResolution"] = {"level": level} | ({"numTokens": media.budget} if media.budget else {})
    clip = {
        name: value if name == "fps" else f"{value:f}s"
        for name, value in (("startOffset", media.start), ("endOffset", media.end), ("fps", media.fps))
        if value is not None
    }
    if media.pages is not None:
        body["documentMetadata"] = {"startPage": media.pages[0], "endPage": media.pages[1]}
    return body | ({"videoMetadata": clip} if clip else {})


def _encode_response(part: Part) -> Any:
    """An object as it is; other words as the `output` of one."""
    text = part.text if isinstance(part, Text) else ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return value if isinstance(value, dict) else {"output": text}  # pyright: ignore[reportUnknownVariableType]


_REASONS: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "BLOCKLIST": "content_filter",
    "SPII": "content_filter",
}


class _Call(Struct):
    name: str
    id: str = ""
    args: dict[str, Any] = {}


class _StreamedPart(Struct, rename="camel"):
    text: str = ""
    thought: bool = False
    function_call: _Call | None = None


class _StreamedContent(Struct, frozen=True):
    parts: list[_StreamedPart] = []


class _Likely(Struct, rename="camel"):
    token: str = ""
    token_id: int = -1
    log_probability: float = 0.0

    def read(self) -> Likely:
        return Likely(self.token_id, self.token.encode(), self.log_probability)


class _Top(Struct):
    candidates: list[_Likely] = []


class _Logprobs(Struct, rename="camel"):
    chosen_candidates: list[_Likely] = []
    top_candidates: list[_Top] = []

    def read(self) -> tuple[Logprob, ...]:
        tops = [tuple(each.read() for each in top.candidates) for top in self.top_candidates]
        tops += [()] * (len(self.chosen_candidates) - len(tops))
        return tuple(Logprob(each.read(), top) for each, top in zip(self.chosen_candidates, tops, strict=False))


class _StreamedCandidate(Struct, rename="camel"):
    index: int = 0
    content: _StreamedContent = _StreamedContent()
    finish_reason: str | None = None
    finish_message: str = ""
    logprobs_result: _Logprobs | None = None


class _StreamedUsage(Struct, rename="camel"):
    prompt_token_count: int = 0
    candidates_token_count: int = 0
    thoughts_token_count: int = 0
    prompt_tokens_details: list[dict[str, Any]] = []

    def counted(self) -> Usage:
        images, videos = (
            sum(
                int(detail.get("tokenCount") or 0)
                for detail in self.prompt_tokens_details
                if detail.get("modality") == modality
            )
            for modality in ("IMAGE", "VIDEO")
        )
        return Usage(
            prompt_text=self.prompt_token_count - images - videos,
            prompt_image=images,
            prompt_video=videos,
            completion=self.candidates_token_count + self.thoughts_token_count,
            reasoning=self.thoughts_token_count,
        )


class _Feedback(Struct, rename="camel"):
    block_reason: str = ""


class _Streamed(Struct, rename="camel"):
    candidates: list[_StreamedCandidate] = []
    usage_metadata: _StreamedUsage | None = None
    prompt_feedback: _Feedback | None = None
    error: dict[str, Any] | None = None


async def decode_stream(chunks: AsyncIterator[bytes]) -> Events:
    """The events of an `alt=sse` stream another server sends; its error element is raised as an ApiError.

    Token counts come only at the end of such a stream, so `Started` carries none and a delta counts as one token.
    """
    received, calls = Received(), dict[int, int]()
    yield Started(Usage(prompt_text=0))
    async for data in sse.decode(chunks):
        message = msgspec.json.decode(data, type=_Streamed)
        if message.error is not None:
            raise _received_error(message.error)
        if message.prompt_feedback and message.prompt_feedback.block_reason:
            raise ContentRefused
        if message.usage_metadata:
            received.usage = message.usage_metadata.counted()
        for candidate in message.candidates:
            for event in _deltas(received, candidate, calls):
                yield event
            if candidate.finish_reason is not None:
                reason = _REASONS.get(candidate.finish_reason, "stop")
                called = reason == "stop" and calls.get(candidate.index)
                received.end(candidate.index, "tool_calls" if called else reason, candidate.finish_message)
    for end in received.finishes():
        yield end


def _deltas(received: Received, candidate: _StreamedCandidate, calls: dict[int, int]) -> Iterator[Delta]:
    """`calls` counts the calls of each candidate."""
    index = candidate.index
    logprobs = candidate.logprobs_result.read() if candidate.logprobs_result else ()
    for part in candidate.content.parts:
        if part.function_call is not None:
            call, number = part.function_call, calls.get(index, 0)
            calls[index] = number + 1
            arguments = json.dumps(call.args, ensure_ascii=False)
            yield ToolCallDelta(index, number, call.id, call.name, arguments, received.count(index))
        elif part.thought:
            yield ReasoningDelta(index, part.text, received.count(index))
        elif part.text or logprobs:
            yield TextDelta(index, part.text, received.count(index), logprobs)
            logprobs = ()


def _received_error(body: dict[str, Any]) -> ApiError:
    return ApiError(str(body.get("message") or "the other server failed"), status=502, code="upstream_error")
