"""What is answered: the events of a generation, and the whole answer they fold into."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal

from msgspec import Struct

FinishReason = Literal["stop", "length"]


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens counted, never estimated. `completion` sums over the choices."""

    prompt_text: int
    """Prompt tokens that are not picture slots: words, control tokens and the template's own."""
    prompt_image: int = 0
    completion: int = 0

    @property
    def prompt(self) -> int:
        """All prompt tokens."""
        return self.prompt_text + self.prompt_image

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion


class Started(Struct, frozen=True, tag="started"):
    """The first event: the request has left the queue and can no longer be refused."""

    usage: Usage


class TextDelta(Struct, frozen=True, tag="text"):
    """More visible text of one choice; `completion` is that choice's running count of generated tokens."""

    index: int
    text: str
    completion: int


class Finish(Struct, frozen=True, tag="finish"):
    """The end of one choice; the usage is complete in the last one."""

    index: int
    reason: FinishReason
    usage: Usage


Event = Started | TextDelta | Finish
Events = AsyncGenerator[Event, None]
"""A generation under way; closing it ends the generation."""


class Choice(Struct, frozen=True):
    """One whole answer."""

    index: int
    text: str
    reason: FinishReason


class Completion(Struct, frozen=True):
    """All choices of a request, in order, and what they cost."""

    choices: tuple[Choice, ...]
    usage: Usage


async def fold(events: AsyncIterator[Event]) -> Completion:
    """Gather a stream of events into the whole answer; this is all that 'not streaming' means."""
    texts: dict[int, list[str]] = {}
    ends: dict[int, Finish] = {}
    async for event in events:
        match event:
            case Started():
                pass
            case TextDelta(index, text):
                texts.setdefault(index, []).append(text)
            case Finish(index):
                ends[index] = event
    assert ends, "an engine ended a stream without a Finish"
    choices = tuple(Choice(index, "".join(texts.get(index, ())), ends[index].reason) for index in sorted(ends))
    return Completion(choices, list(ends.values())[-1].usage)
