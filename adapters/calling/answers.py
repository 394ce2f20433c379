"""What came of a request: the answer with its head, whole or in the making."""

import json
from collections.abc import Generator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, overload

import msgspec
from msgspec import Struct

from qwen3vl_compat.adapters.calling.failures import (
    ConnectionFailed,
    InvalidInput,
    Unreadable,
    failure_half_way,
    unreadable,
)
from qwen3vl_compat.adapters.calling.sending import Progress, Sending, carried_out, pause_after
from qwen3vl_compat.adapters.calling.steps import Call, Lost, Reply, Steps, T, read
from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import Choice, Completion, Delta, FinishReason, Usage, folded
from qwen3vl_compat.messages import Message, Part, Reasoning, Text, ToolCall, ToolResult
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.openai_answers import AnswerReader, decode_completion


class Answer(Struct, frozen=True):
    """A whole answer: what was said, what it took, and what the reply's head says. As text it is what was said."""

    choices: tuple[Choice, ...]
    usage: Usage
    """Tokens as they are charged."""
    headers: Mapping[str, str]
    """All of the reply, names in small letters; `x-ratelimit-...` say what is left."""

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """What the first choice says."""
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        """What it thought before."""
        return self.choices[0].reasoning

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The functions it asks for; `arguments` is JSON text."""
        return self.choices[0].calls

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended; `length` where `max_tokens` cut it."""
        return self.choices[0].reason

    @property
    def message(self) -> Message:
        """The turn it is, to go on with."""
        thought: tuple[Part, ...] = (Reasoning(self.reasoning),) if self.reasoning else ()
        return Message("assistant", (*thought, Text(self.text), *self.calls))

    @property
    def request_id(self) -> str | None:
        """The number under which the server's log and ledger have it."""
        return self.headers.get("x-request-id")

    @property
    def cost(self) -> Decimal | None:
        """What it cost; None without a price, and for a stream, whose head goes out before."""
        try:
            return Decimal(self.headers.get("x-cost-total", ""))
        except InvalidOperation:
            return None

    @property
    def currency(self) -> str | None:
        """Of the cost."""
        return self.headers.get("x-cost-currency")

    @property
    def cached(self) -> bool:
        """Whether it had been made before, and was told again at the price of cached tokens."""
        return self.headers.get("x-cache") == "hit"

    @property
    def replayed(self) -> bool:
        """Whether it is the first answer under this idempotency key, told again for nothing."""
        return self.headers.get("idempotent-replayed") == "true"

    @property
    def ignored(self) -> tuple[str, ...]:
        """The fields that had no effect."""
        return tuple(name.strip() for name in self.headers.get("x-ignored-fields", "").split(",") if name.strip())

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, kind: type[T]) -> T: ...
    def json(self, kind: Any = Any) -> Any:
        """What the text says as JSON, as a dataclass or Struct if its type is given; raises Unreadable.

        It is whole unless `finish_reason` is `length` or `content_filter`.
        """
        try:
            return msgspec.json.decode(self.text, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            message = f"The text is no such JSON ({error}); it ended with {self.finish_reason}."
            raise Unreadable(message, request_id=self.request_id) from error


def whole_of(answer: Answer | None) -> Answer:
    """A stream's whole answer; raises InvalidInput before there is one."""
    if answer is None:
        raise InvalidInput("answer: the stream has not come to its end", param="answer")
    return answer


def tool_result(call: ToolCall, result: str | Mapping[str, Any] | list[Any]) -> Message:
    """What a function gave back, as the turn that follows the call."""
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    return Message("tool", (ToolResult(call.id, call.name, (Text(text),)),))


def whole(call: Call, sending: Sending) -> Steps[Answer]:
    """The answer to a request that is answered in one body."""
    reply = yield from carried_out(call, sending)
    try:
        completion = decode_completion(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, ApiError) as error:
        raise unreadable(reply) from error
    return _told(completion, reply, sending)


def streamed(call: Call, sending: Sending) -> Steps[Answer]:
    """The answer to a request that is answered bit by bit, each of which is told; it is told once.

    If the connection breaks and the request may be sent again, what comes then begins with what has come already.
    """
    stream = _Stream(sending)
    tried = 0
    while True:
        reply = yield from carried_out(call, sending)
        lost = yield from stream.read(reply)
        if lost is None:
            return stream.answer(reply)
        failure = ConnectionFailed(lost.why, request_id=reply.headers.get("x-request-id"))
        tried += 1
        if lost.late or tried > sending.retries or not call.repeatable:
            raise failure
        yield from pause_after(lost, failure, tried, sending)


class _Stream:
    """What has come of a stream, over however many connections."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self._reader = AnswerReader()
        self._deltas: list[Delta] = []
        self._read = 0

    def read(self, reply: Reply) -> Steps[Lost | None]:
        """Tell what a connection brings beyond what has come; returns how it broke, None at the stream's end."""
        decoder, place = sse.Decoder(), 0
        while True:
            _ = self._sending.left
            chunk = yield from read()
            if self._reader.done and (not chunk or isinstance(chunk, Lost)):
                return None  # read to its end, so that the connection can be used again
            if isinstance(chunk, Lost):
                return chunk
            if not chunk:
                return Lost("The stream broke off.")
            for data in decoder.feed(chunk):
                place += 1
                if place <= self._read:
                    continue
                self._read = place
                yield from self._take(data, reply)

    def _take(self, data: bytes, reply: Reply) -> Generator[Delta, None, None]:
        try:
            deltas = list(self._reader.read(data))
        except ApiError as error:
            raise failure_half_way(error.message, error.code, reply.headers.get("x-request-id")) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise unreadable(reply) from error
        for delta in deltas:
            self._deltas.append(delta)
            _tell(self._sending, len(self._deltas), None)
            yield delta

    def answer(self, reply: Reply) -> Answer:
        """All of it, at its end."""
        ends = list(self._reader.finishes())
        if not ends:
            raise unreadable(reply)
        return _told(folded([*self._deltas, *ends]), reply, self._sending)


def _told(completion: Completion, reply: Reply, sending: Sending) -> Answer:
    tokens = completion.usage.completion
    _tell(sending, tokens, tokens)
    return Answer(completion.choices, completion.usage, reply.headers)


def _tell(sending: Sending, done: int, total: int | None) -> None:
    if sending.told is not None:
        sending.told(Progress("answer", done, total))
