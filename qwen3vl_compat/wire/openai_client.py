"""The client's half of OpenAI's chat completions: the body that is sent and the stream that comes back."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import Events, FinishReason, Started, Usage
from qwen3vl_compat.messages import Image, Message, Part, Request, Text
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.received import Received


def encode_request(request: Request) -> bytes:
    """The body a client sends for `request`; what it holds of checked pictures cannot be sent."""
    sampling = request.sampling
    body: Json = {"model": request.model, "messages": [_encode_message(item) for item in request.messages]}
    optional = {
        "n": request.choices if request.choices != 1 else None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_completion_tokens": sampling.max_tokens,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "stream": request.stream or None,
        "stream_options": {"include_usage": True} if request.stream_usage else None,
    }
    body.update({name: value for name, value in optional.items() if value is not None})
    return msgspec.json.encode(body)


def _encode_message(message: Message) -> Json:
    if len(message.parts) == 1 and isinstance(message.parts[0], Text):
        return {"role": message.role, "content": message.parts[0].text}
    return {"role": message.role, "content": [_encode_part(part) for part in message.parts]}


def _encode_part(part: Part) -> Json:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    assert isinstance(part, Image), "a checked picture has no wire form"
    data = base64.b64encode(part.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.mime_type};base64,{data}"}}


class _StreamedChoice(Struct):
    index: int
    delta: dict[str, Any] = {}
    finish_reason: FinishReason | None = None


class _StreamedUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: dict[str, Any] | None = None

    def counted(self) -> Usage:
        images = int((self.prompt_tokens_details or {}).get("image_tokens") or 0)
        return Usage(prompt_text=self.prompt_tokens - images, prompt_image=images, completion=self.completion_tokens)


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
            if text := choice.delta.get("content"):
                yield received.text(choice.index, text)
            if choice.finish_reason is not None:
                received.end(choice.index, choice.finish_reason)
    for end in received.finishes():
        yield end


def _received_error(body: dict[str, Any]) -> ApiError:
    return ApiError(
        str(body.get("message") or "the other server failed"),
        status=502,
        code=str(body.get("code") or "upstream_error"),
    )
