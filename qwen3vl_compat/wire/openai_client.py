"""The client's half of OpenAI's chat completions: the body that is sent and the stream that comes back."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import ApiError
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
    Content,
    Frames,
    Link,
    Media,
    Message,
    OutputFormat,
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
from qwen3vl_compat.wire.openai_media import PIXELS_OF_A_TOKEN
from qwen3vl_compat.wire.received import Received


def encode_request(request: Request) -> bytes:
    """The body a client sends for `request`; what it holds of checked pictures cannot be sent."""
    body: Json = {"model": request.model, "messages": [_encode_message(item) for item in request.messages]}
    optional = {
        "n": request.choices if request.choices != 1 else None,
        "stream": request.stream or None,
        "stream_options": {"include_usage": True} if request.stream_usage else None,
        "tools": [_encode_tool(tool) for tool in request.tools] or None,
        **_encode_sampling(request.sampling),
        **_encode_choice(request.tool_choice),
        **_encode_format(request.format),
        **_encode_thinking(request.thinking),
    }
    body.update({name: value for name, value in optional.items() if value is not None})
    return msgspec.json.encode(body)


def _encode_sampling(sampling: Sampling) -> Json:
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        "logprobs": None if sampling.logprobs is None else True,
        "top_logprobs": sampling.logprobs,
        "max_completion_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens or None,
        "ignore_eos": sampling.ignore_eos or None,
        "stop": list(sampling.stop) or None,
        "stop_token_ids": list(sampling.stop_tokens) or None,
        "seed": sampling.seed,
    }


def _encode_tool(tool: Tool) -> Json:
    function: Json = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    if tool.parameters:
        function["parameters"] = msgspec.Raw(tool.parameters.encode())
    return {"type": "function", "function": function}


def _encode_choice(choice: ToolChoice) -> Json:
    asked: Any = choice.mode if choice.mode != "auto" else None
    if choice.names:
        tools = [{"type": "function", "function": {"name": name}} for name in choice.names]
        asked = {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}
    return {"tool_choice": asked, "parallel_tool_calls": None if choice.parallel else False}


def _encode_format(form: OutputFormat) -> Json:
    match form.kind:
        case "json_object":
            return {"response_format": {"type": form.kind}}
        case "json_schema":
            schema = {"name": "answer", "schema": msgspec.Raw(form.value.encode()), "strict": form.strict}
            return {"response_format": {"type": form.kind, "json_schema": schema}}
        case "regex":
            return {"regex": form.value}
        case "choice":
            return {"choice": json.loads(form.value)}
        case _:
            return {}


def _encode_thinking(thinking: Thinking) -> Json:
    return {
        "enable_thinking": thinking.enabled,
        "thinking_budget": thinking.budget,
        "include_reasoning": None if thinking.shown else False,
    }


def _encode_message(message: Message) -> Json:
    body: Json = {"role": message.role}
    content = [part for part in message.parts if isinstance(part, Content)]
    for part in message.parts:
        match part:
            case Reasoning(text):
                body["reasoning_content"] = text
            case ToolCall(number, name, arguments):
                function = {"name": name, "arguments": arguments}
                body.setdefault("tool_calls", []).append({"id": number, "type": "function", "function": function})
            case ToolResult(number, _, parts):
                body["tool_call_id"] = number
                content = list(parts)
            case _:
                pass
    if len(content) == 1 and isinstance(content[0], Text):
        return body | {"content": content[0].text}
    return body | {"content": [_encode_part(part) for part in content]}


def _encode_part(part: Content) -> Json:
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Media():
            return _encode_media(part)
        case Frames(images, fps):
            return {"type": "video", "video": [_url(image) for image in images], "fps": fps}
        case _:
            raise AssertionError("checked media have no form on this wire")


def _encode_media(media: Media) -> Json:
    """In the part its kind has; what may be anything goes as a file."""
    closely: Json = {} if media.detail == "auto" else {"detail": media.detail}
    if media.budget is not None:
        closely["max_pixels"] = media.budget * PIXELS_OF_A_TOKEN
    clip = {"start": media.start, "end": media.end, "fps": media.fps}
    given = closely | {name: value for name, value in clip.items() if value is not None}
    match media.wanted:
        case "image":
            return {"type": "image_url", "image_url": {"url": _url(media)} | closely}
        case "video":
            return {"type": "video_url", "video_url": {"url": _url(media)} | given}
        case _:
            source = {"file_id": media.source.id} if isinstance(media.source, Upload) else {"file_data": _url(media)}
            pages = {} if media.pages is None else {"pages": f"{media.pages[0]}-{media.pages[1]}"}
            name = {"filename": media.name} if media.name else {}
            return {"type": "file", "file": source | name | pages | given}


def _url(media: Media) -> str:
    match media.source:
        case bytes(data):
            return f"data:{media.mime_type};base64,{base64.b64encode(data).decode('ascii')}"
        case Link(url):
            return url
        case Upload(number):
            return number


class _Likely(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None

    def read(self) -> Likely:
        return Likely(-1, self.token.encode() if self.bytes is None else bytes(self.bytes), self.logprob)


class _Logprob(_Likely):
    top_logprobs: list[_Likely] = []


class _Logprobs(Struct):
    content: list[_Logprob] | None = None

    def read(self) -> tuple[Logprob, ...]:
        """A token's id is not told on this wire."""
        return tuple(
            Logprob(each.read(), tuple(other.read() for other in each.top_logprobs)) for each in self.content or ()
        )


class _CallFunction(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(Struct):
    index: int
    id: str | None = None
    function: _CallFunction = _CallFunction()


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallDelta] | None = None


class _Details(Struct):
    type: str = ""


class _StreamedChoice(Struct):
    index: int
    delta: _Delta = _Delta()
    logprobs: _Logprobs | None = None
    finish_reason: FinishReason | None = None
    finish_details: _Details | None = None


class _StreamedUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None

    def counted(self) -> Usage:
        details = self.prompt_tokens_details or {}
        images, videos = (int(details.get(name) or 0) for name in ("image_tokens", "video_tokens"))
        return Usage(
            prompt_text=self.prompt_tokens - images - videos,
            prompt_image=images,
            cached=details.get("cached_tokens") or 0,
            prompt_video=videos,
            completion=self.completion_tokens,
            reasoning=int((self.completion_tokens_details or {}).get("reasoning_tokens") or 0),
        )


class _Streamed(Struct):
    choices: list[_StreamedChoice] = []
    usage: _StreamedUsage | None = None
    error: dict[str, Any] | None = None


async def decode_stream(chunks: AsyncIterator[bytes]) -> Events:
    """The events of a stream another server sends; its error event is raised as an ApiError.

    Token counts come only at the end of such a stream, so `Started` carries none and a delta counts as one token.
    """
    received = Received()
    yield Started(Usage(prompt_text=0))
    async for data in sse.decode(chunks):
        if data == b"[DONE]":
            break
        message = msgspec.json.decode(data, type=_Streamed)
        if message.error is not None:
            raise _received_error(message.error)
        if message.usage:
            received.usage = message.usage.counted()
        for choice in message.choices:
            for event in _deltas(received, choice):
                yield event
            if choice.finish_reason is not None:
                details = choice.finish_details.type if choice.finish_details else ""
                received.end(choice.index, choice.finish_reason, details)
    for end in received.finishes():
        yield end


def _deltas(received: Received, choice: _StreamedChoice) -> Iterator[Delta]:
    delta, index = choice.delta, choice.index
    if thought := delta.reasoning_content or delta.reasoning:
        yield ReasoningDelta(index, thought, received.count(index))
    logprobs = choice.logprobs.read() if choice.logprobs else ()
    if delta.content or logprobs:
        yield TextDelta(index, delta.content or "", received.count(index), logprobs)
    for call in delta.tool_calls or ():
        name, arguments = call.function.name or "", call.function.arguments or ""
        yield ToolCallDelta(index, call.index, call.id or "", name, arguments, received.count(index))


def _received_error(body: dict[str, Any]) -> ApiError:
    return ApiError(
        str(body.get("message") or "the other server failed"),
        status=502,
        code=str(body.get("code") or "upstream_error"),
    )
