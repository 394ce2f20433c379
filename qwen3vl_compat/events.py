"""What is answered: the events of a generation, and the whole answer they fold into.

Encoded they are arrays, a few bytes a token. Answers are kept in that form: a new field goes last, with a default.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.messages import ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Usage(Struct, frozen=True, kw_only=True, array_like=True):
    """Tokens counted, never estimated. `completion` sums over the choices; `reasoning` is the thoughts' part of it."""

    prompt_text: int
    """Prompt tokens that are not slots of pictures or frames: words, times, control tokens and the template's own."""
    prompt_image: int = 0
    prompt_video: int = 0
    cached: int = 0
    """Prompt tokens of any kind that an earlier request had computed; `cached_vision` is the slots among them."""
    cached_vision: int = 0
    completion: int = 0
    reasoning: int = 0

    @property
    def prompt(self) -> int:
        """All prompt tokens."""
        return self.prompt_text + self.prompt_image + self.prompt_video

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion


class Likely(Struct, frozen=True, array_like=True):
    """A token that could have come: its id, its bytes (UTF-8 that may begin or end inside a character), ln(share)."""

    token: int
    data: bytes
    logprob: float


class Logprob(Struct, frozen=True, array_like=True):
    """A token of the visible answer, and the likeliest ones in its place, the likeliest first."""

    chosen: Likely
    top: tuple[Likely, ...] = ()


Headers = tuple[tuple[str, str], ...]
"""What an answer's head is to say; from `Finish` only where the answer is sent whole."""


class First(Struct, frozen=True, array_like=True):
    """The request that an answer was made for: its id, and when it arrived, Unix seconds."""

    id: str
    created: int


class Started(Struct, frozen=True, tag="started", array_like=True):
    """The first event: the request has left the queue and can no longer be refused."""

    usage: Usage
    headers: Headers = ()
    replays: First | None = None
    """Set where this is not an answer of its own, but one that was given before."""
    kept: str = ""
    """The name under which the answer is found again, if it is as lasting as the request itself."""


class TextDelta(Struct, frozen=True, tag="text", array_like=True):
    """More visible text of one choice; `completion` is that choice's running count of generated tokens."""

    index: int
    text: str
    completion: int
    logprobs: tuple[Logprob, ...] = ()


class ReasoningDelta(Struct, frozen=True, tag="reasoning", array_like=True):
    """More of one choice's thoughts."""

    index: int
    text: str
    completion: int


class ToolCallDelta(Struct, frozen=True, tag="tool_call", array_like=True):
    """A call begins (with its id and name), or more of its arguments' JSON text. `call` numbers a choice's calls."""

    index: int
    call: int
    id: str
    name: str
    arguments: str
    completion: int


class Finish(Struct, frozen=True, tag="finish", array_like=True):
    """The end of one choice; the usage is complete in the last one."""

    index: int
    reason: FinishReason
    usage: Usage
    details: str = ""
    """Why, where the reason does not say it all: `repetition`, `closed`."""
    headers: Headers = ()
    moderation: str = ""
    """What moderators had to say, as the ledger writes it."""
    stop: str = ""
    """The stop string that ended it, if one did."""


class Progress(Struct, frozen=True, tag="progress", array_like=True):
    """A token of one choice of which nothing can be shown, or not yet: metering counts it, and nobody tells of it."""

    index: int
    completion: int


Delta = TextDelta | ReasoningDelta | ToolCallDelta
Event = Started | Delta | Progress | Finish
Events = AsyncGenerator[Event, None]
"""A generation under way; closing it ends the generation."""


def joined(first: Event, second: Event) -> Event | None:
    """One event that says what two of a choice in a row say, if there is one."""
    match first, second:
        case TextDelta() | ReasoningDelta() | ToolCallDelta() | Progress(), Progress():
            return replace(first, completion=second.completion)
        case Progress(), TextDelta() | ReasoningDelta() | ToolCallDelta():
            return second
        case TextDelta(), TextDelta():
            logprobs = first.logprobs + second.logprobs
            return replace(second, text=first.text + second.text, logprobs=logprobs)
        case ReasoningDelta(), ReasoningDelta():
            return replace(second, text=first.text + second.text)
        case ToolCallDelta(), ToolCallDelta() if first.call == second.call:
            return replace(first, arguments=first.arguments + second.arguments, completion=second.completion)
        case _:
            return None


class Choice(Struct, frozen=True):
    """One whole answer."""

    index: int
    text: str
    reason: FinishReason
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    details: str = ""
    stop: str = ""


class Completion(Struct, frozen=True):
    """All choices of a request, in order, and what they cost."""

    choices: tuple[Choice, ...]
    usage: Usage


async def fold(events: AsyncIterator[Event]) -> Completion:
    """Gather a stream of events into the whole answer; this is all that 'not streaming' means."""
    return folded([event async for event in events if not isinstance(event, Progress)])


def folded(events: Iterable[Event]) -> Completion:
    """The whole answer that these events tell."""
    made: dict[int, list[Delta]] = {}
    ends: dict[int, Finish] = {}
    for event in events:
        match event:
            case Started() | Progress():
                pass
            case Finish(index):
                ends[index] = event
            case _:
                made.setdefault(event.index, []).append(event)
    assert ends, "an engine ended a stream without a Finish"
    choices = tuple(_choice(ends[index], made.get(index, [])) for index in sorted(ends))
    return Completion(choices, list(ends.values())[-1].usage)


def _choice(end: Finish, deltas: list[Delta]) -> Choice:
    texts = [delta for delta in deltas if isinstance(delta, TextDelta)]
    calls: dict[int, ToolCall] = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            call = calls.get(delta.call) or ToolCall(delta.id, delta.name, "")
            calls[delta.call] = replace(call, arguments=call.arguments + delta.arguments)
    return Choice(
        end.index,
        "".join(delta.text for delta in texts),
        end.reason,
        reasoning="".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
        calls=tuple(calls.values()),
        logprobs=tuple(logprob for delta in texts for logprob in delta.logprobs),
        details=end.details,
        stop=end.stop,
    )
