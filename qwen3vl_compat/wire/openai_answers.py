"""What a client of OpenAI's chat completions gets back, whole or message by message, as events."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import (
    Completion,
    Delta,
    Events,
    Finish,
    FinishReason,
    Likely,
    Logprob,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
    folded,
)
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.received import Received


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
    index: int | None = None
    """Which call of the choice; a whole answer has them in order and does not say."""
    id: str | None = None
    function: _CallFunction = _CallFunction()


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallDelta] | None = None


class _Details(Struct):
    type: str = ""


class _Choice(Struct):
    index: int
    delta: _Delta = _Delta()
    message: _Delta | None = None
    """All of it, where it comes whole."""
    logprobs: _Logprobs | None = None
    finish_reason: FinishReason | None = None
    finish_details: _Details | None = None


class _Usage(Struct):
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


class _Message(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


class AnswerReader:
    """One answer's messages, as they come: a stream's, or the one that is a whole answer."""

    def __init__(self) -> None:
        self.done = False
        """Whether the stream has said that nothing more comes."""
        self._received = Received()

    def read(self, data: bytes) -> Iterator[Delta]:
        """What one message tells; raises msgspec.DecodeError, and what it says of a failure as an ApiError."""
        if data == b"[DONE]":
            self.done = True
            return
        message = msgspec.json.decode(data, type=_Message)
        if message.error is not None:
            raise _received_error(message.error)
        if message.usage:
            self._received.usage = message.usage.counted()
        for choice in message.choices:
            yield from _deltas(self._received, choice)
            if choice.finish_reason is not None:
                details = choice.finish_details.type if choice.finish_details else ""
                self._received.end(choice.index, choice.finish_reason, details)

    def finishes(self) -> Iterator[Finish]:
        """The ends of all choices, with the usage of the whole."""
        return self._received.finishes()


async def decode_stream(chunks: AsyncIterator[bytes]) -> Events:
    """The events of a stream another server sends; its error event is raised as an ApiError.

    Token counts come only at the end of such a stream, so `Started` carries none and a delta counts as one token.
    """
    reader = AnswerReader()
    yield Started(Usage(prompt_text=0))
    async for data in sse.decode(chunks):
        for event in reader.read(data):
            yield event
        if reader.done:
            break
    for end in reader.finishes():
        yield end


def decode_completion(body: bytes) -> Completion:
    """A whole answer; raises msgspec.DecodeError for what is none."""
    reader = AnswerReader()
    deltas = list(reader.read(body))
    ends = list(reader.finishes())
    if not ends:
        raise msgspec.ValidationError("no choice of it has come to an end")
    return folded([*deltas, *ends])


def _deltas(received: Received, choice: _Choice) -> Iterator[Delta]:
    delta, index = choice.message or choice.delta, choice.index
    if thought := delta.reasoning_content or delta.reasoning:
        yield ReasoningDelta(index, thought, received.count(index))
    logprobs = choice.logprobs.read() if choice.logprobs else ()
    if delta.content or logprobs:
        yield TextDelta(index, delta.content or "", received.count(index), logprobs)
    for place, call in enumerate(delta.tool_calls or ()):
        number = place if call.index is None else call.index
        name, arguments = call.function.name or "", call.function.arguments or ""
        yield ToolCallDelta(index, number, call.id or "", name, arguments, received.count(index))


def _received_error(body: dict[str, Any]) -> ApiError:
    return ApiError(
        str(body.get("message") or "the other server failed"),
        status=502,
        code=str(body.get("code") or "upstream_error"),
    )
