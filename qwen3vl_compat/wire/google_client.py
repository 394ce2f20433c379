"""The client's half of Google's generateContent: the body that is sent and the stream that comes back."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import Events, FinishReason, Started, Usage
from qwen3vl_compat.messages import Image, Part, Request, Text
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.generate_content import REASONS
from qwen3vl_compat.wire.received import Received


def encode_request(request: Request) -> bytes:
    """The body a client sends for `request`; the model and the streaming are in the address, not in the body."""
    sampling = request.sampling
    config: Json = {
        "temperature": sampling.temperature,
        "topP": sampling.top_p,
        "maxOutputTokens": sampling.max_tokens,
        "stopSequences": list(sampling.stop) or None,
        "seed": sampling.seed,
        "candidateCount": request.choices if request.choices != 1 else None,
    }
    config = {name: value for name, value in config.items() if value is not None}
    messages = list(request.messages)
    body: Json = {"generationConfig": config} if config else {}
    if messages and messages[0].role == "system":
        body["systemInstruction"] = {"parts": [_encode_part(part) for part in messages.pop(0).parts]}
    names = {"user": "user", "assistant": "model", "system": "user"}
    body["contents"] = [
        {"role": names[item.role], "parts": [_encode_part(part) for part in item.parts]} for item in messages
    ]
    return msgspec.json.encode(body)


def _encode_part(part: Part) -> Json:
    if isinstance(part, Text):
        return {"text": part.text}
    assert isinstance(part, Image), "a checked picture has no wire form"
    data = base64.b64encode(part.data).decode("ascii")
    return {"inlineData": {"mimeType": part.mime_type, "data": data}}


class _StreamedPart(Struct):
    text: str = ""


class _StreamedContent(Struct, frozen=True):
    parts: list[_StreamedPart] = []


class _StreamedCandidate(Struct, rename="camel"):
    index: int = 0
    content: _StreamedContent = _StreamedContent()
    finish_reason: str | None = None


class _StreamedUsage(Struct, rename="camel"):
    prompt_token_count: int = 0
    candidates_token_count: int = 0
    prompt_tokens_details: list[dict[str, Any]] = []

    def counted(self) -> Usage:
        images = sum(
            int(detail.get("tokenCount") or 0)
            for detail in self.prompt_tokens_details
            if detail.get("modality") == "IMAGE"
        )
        return Usage(
            prompt_text=self.prompt_token_count - images, prompt_image=images, completion=self.candidates_token_count
        )


class _Streamed(Struct, rename="camel"):
    candidates: list[_StreamedCandidate] = []
    usage_metadata: _StreamedUsage | None = None
    error: dict[str, Any] | None = None


async def decode_stream(chunks: AsyncIterator[bytes]) -> Events:
    """The events of an `alt=sse` stream another server sends; its error element is raised as an ApiError.

    Token counts come only at the end of such a stream, so `Started` carries none and a delta counts as one token.
    """
    received = Received()
    reasons: dict[str, FinishReason] = {name: reason for reason, name in REASONS.items()}
    yield Started(Usage(prompt_text=0))
    async for data in sse.decode(chunks):
        message = msgspec.json.decode(data, type=_Streamed)
        if message.error is not None:
            raise _received_error(message.error)
        if message.usage_metadata:
            received.usage = message.usage_metadata.counted()
        for candidate in message.candidates:
            if text := "".join(part.text for part in candidate.content.parts):
                yield received.text(candidate.index, text)
            if candidate.finish_reason is not None:
                received.end(candidate.index, reasons.get(candidate.finish_reason, "stop"))
    for end in received.finishes():
        yield end


def _received_error(body: dict[str, Any]) -> ApiError:
    return ApiError(str(body.get("message") or "the other server failed"), status=502, code="upstream_error")
