"""The client's half of Anthropic's Messages API: the body that is sent and the stream that comes back."""

import base64
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import ApiError, InvalidRequest
from qwen3vl_compat.events import (
    Delta,
    Events,
    Finish,
    FinishReason,
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
    Part,
    Reasoning,
    Request,
    Sampling,
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

DEFAULT_TOKENS = 4_096
"""Of an answer whose length nobody has bounded: the API demands a number."""
_CARRIED = ("temperature", "top_p", "top_k", "max_tokens", "stop")


def encode_request(request: Request) -> bytes:
    """The body a client sends for `request`; InvalidRequest for what this API has no field for."""
    _check_carried(request)
    messages, sampling = list(request.messages), request.sampling
    body: Json = {"model": request.model, "max_tokens": sampling.max_tokens or DEFAULT_TOKENS}
    if messages and messages[0].role == "system":
        body["system"] = _encode_parts(messages.pop(0).parts)
    optional = {
        "stream": request.stream or None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_sequences": list(sampling.stop) or None,
        "tools": [_encode_tool(tool) for tool in request.tools] or None,
        "tool_choice": _encode_choice(request.tool_choice),
        "thinking": _encode_thinking(request.thinking),
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    if request.format.kind == "json_schema":
        form = {"type": "json_schema", "schema": msgspec.Raw(request.format.value.encode())}
        body["output_config"] = {"format": form}
    return msgspec.json.encode(body | {"messages": [_encode_message(item) for item in messages]})


def _check_carried(request: Request) -> None:
    """Refuse what would be lost on the way."""
    plain = Sampling()
    lost = [
        name
        for name in Sampling.__struct_fields__
        if name not in _CARRIED and getattr(request.sampling, name) != getattr(plain, name)
    ]
    if request.choices != 1:
        lost.append("choices")
    if request.format.kind not in ("text", "json_schema"):
        lost.append("format")
    if lost:
        raise InvalidRequest(f"{lost[0]}: cannot be said on Anthropic's API", param=lost[0])


def _encode_tool(tool: Tool) -> Json:
    schema = msgspec.Raw(tool.parameters.encode()) if tool.parameters else {"type": "object"}
    return {"name": tool.name, "description": tool.description, "input_schema": schema, "strict": tool.strict}


def _encode_choice(choice: ToolChoice) -> Json | None:
    if choice.mode == "none":
        return {"type": "none"}
    match choice.mode, choice.names:
        case mode, ():
            asked: Json = {"type": "auto" if mode == "auto" else "any"}
        case "required", (name,):
            asked = {"type": "tool", "name": name}
        case _:
            raise InvalidRequest("tool_choice: must be one function or any on Anthropic's API", param="tool_choice")
    if not choice.parallel:
        asked["disable_parallel_tool_use"] = True
    return None if asked == {"type": "auto"} else asked


def _encode_thinking(thinking: Thinking) -> Json | None:
    display: Json = {} if thinking.shown else {"display": "omitted"}
    if thinking.enabled is False or thinking.budget == 0:
        return {"type": "disabled"}
    if thinking.budget is not None:
        return {"type": "enabled", "budget_tokens": thinking.budget, **display}
    return {"type": "adaptive", **display}


def _encode_message(message: Message) -> Json:
    role = "user" if message.role == "tool" else message.role
    return {"role": role, "content": _encode_parts(message.parts)}


def _encode_parts(parts: tuple[Part, ...]) -> str | list[Json]:
    match parts:
        case (Text(text),):
            return text
        case _:
            return [_encode_part(part) for part in parts]


def _encode_part(part: Part) -> Json:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Reasoning(text):
            return {"type": "thinking", "thinking": text}
        case ToolCall(number, name, arguments):
            return {"type": "tool_use", "id": number, "name": name, "input": msgspec.Raw(arguments.encode())}
        case ToolResult(number, _, parts):
            return {"type": "tool_result", "tool_use_id": number, "content": _encode_parts(parts)}
        case Media():
            return _encode_media(part)
        case _:
            raise InvalidRequest("messages: videos and lists of frames cannot be said on Anthropic's API")


def _encode_media(media: Media) -> Json:
    source: Json
    match media.source:
        case bytes(data):
            encoded = base64.b64encode(data).decode("ascii")
            source = {"type": "base64", "media_type": media.mime_type, "data": encoded}
        case Link(url):
            source = {"type": "url", "url": url}
        case Upload(number):
            source = {"type": "file", "file_id": number}
    if media.wanted == "document" or media.mime_type == "application/pdf":
        return {"type": "document", "source": source, **({"title": media.name} if media.name else {})}
    return {"type": "image", "source": source}


_REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class _Details(Struct):
    text_tokens: int = 0
    image_tokens: int = 0
    video_tokens: int = 0
    thinking_tokens: int = 0


class _StreamedUsage(Struct):
    """Counts as far as they are told; those at the end complete those at the start."""

    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int = 0
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None

    def counted(self, before: Usage) -> Usage:
        """What is known now; the pictures' part is told by servers of this house only."""
        thought = self.output_tokens_details.thinking_tokens if self.output_tokens_details else 0
        if self.input_tokens is None:
            return msgspec.structs.replace(before, completion=self.output_tokens, reasoning=thought)
        cached = self.cache_read_input_tokens or 0
        prompt = self.input_tokens + cached + (self.cache_creation_input_tokens or 0)
        details = self.input_tokens_details or _Details()
        return Usage(
            prompt_text=prompt - details.image_tokens - details.video_tokens,
            prompt_image=details.image_tokens,
            prompt_video=details.video_tokens,
            cached=cached,
            completion=self.output_tokens,
            reasoning=thought,
        )


class _Block(Struct):
    type: str
    id: str = ""
    name: str = ""


class _Ending(Struct):
    type: str = ""


class _Delta(Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    finish_details: _Ending | None = None


class _Start(Struct):
    usage: _StreamedUsage


class _Streamed(Struct):
    type: str
    message: _Start | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _StreamedUsage | None = None
    error: dict[str, Any] | None = None


class _Gathered:
    """What is known of an answer that is coming in: what it took, how many deltas and calls there were."""

    def __init__(self) -> None:
        self.usage = Usage(prompt_text=0)
        self._deltas = 0
        self._calls = -1
        self._bare = False
        """Whether the open block is a call without arguments until now."""

    def take(self, event: _Streamed) -> Iterator[Delta]:
        """The deltas that a streamed event comes to, each counted as one token."""
        match event:
            case _Streamed(type="content_block_start", content_block=_Block(type="tool_use") as block):
                self._calls, self._bare = self._calls + 1, True
                yield ToolCallDelta(0, self._calls, block.id, block.name, "", self._counted())
            case _Streamed(type="content_block_delta", delta=_Delta(type="text_delta") as delta):
                yield TextDelta(0, delta.text, self._counted())
            case _Streamed(type="content_block_delta", delta=_Delta(type="thinking_delta") as delta):
                yield ReasoningDelta(0, delta.thinking, self._counted())
            case _Streamed(type="content_block_delta", delta=_Delta(type="input_json_delta") as delta):
                self._bare &= not delta.partial_json
                yield ToolCallDelta(0, self._calls, "", "", delta.partial_json, self._counted())
            case _Streamed(type="content_block_stop") if self._bare:
                self._bare = False
                yield ToolCallDelta(0, self._calls, "", "", "{}", self._counted())
            case _:
                pass

    def _counted(self) -> int:
        self._deltas += 1
        return self._deltas


async def decode_stream(chunks: AsyncIterator[bytes]) -> Events:
    """The events of a stream another server sends; its error event is raised as an ApiError.

    Its counts of an answer's tokens come only at the end, so a delta counts as one token.
    """
    gathered = _Gathered()
    async for data in sse.decode(chunks):
        event = msgspec.json.decode(data, type=_Streamed)
        if event.error is not None:
            message = str(event.error.get("message") or "the other server failed")
            raise ApiError(message, status=502, code="upstream_error")
        if event.message is not None:
            gathered.usage = event.message.usage.counted(gathered.usage)
            yield Started(gathered.usage)
        for delta in gathered.take(event):
            yield delta
        if event.type == "message_delta" and event.delta is not None:
            end = event.delta
            usage = event.usage.counted(gathered.usage) if event.usage else gathered.usage
            details = end.finish_details.type if end.finish_details else ""
            yield Finish(0, _REASONS.get(end.stop_reason or "", "stop"), usage, details, stop=end.stop_sequence or "")
