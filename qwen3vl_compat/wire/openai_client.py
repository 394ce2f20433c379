"""The client's half of OpenAI's chat completions: the body that is sent; `openai_answers` reads what comes back."""

import base64
import json
from typing import Any

import msgspec

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
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_answers import decode_stream
from qwen3vl_compat.wire.openai_media import PIXELS_OF_A_TOKEN

__all__ = ["decode_stream", "encode_request"]


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
