"""Answers in the making: nothing goes out of which a moderator has not said that it may.

Of each choice, what is written now (its thoughts, its visible text, the arguments of one call) is followed by every
moderator; events wait, whole and in order, until all of them have passed what is in them. Their tokens count at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.events import (
    Delta,
    Event,
    Finish,
    Progress,
    ReasoningDelta,
    Started,
    ToolCallDelta,
    Usage,
)
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies.moderation import NOTHING, Verdict
from qwen3vl_compat.policies.moderation.panel import said_of

Ask = Callable[[Sequence[str]], Awaitable[Verdict]]
"""One moderator's verdict; what it raises ends the answer."""


class Follower(Protocol):
    """A moderator that reads along; `safe` characters from the beginning may be given on."""

    safe: int

    def push(self, text: str) -> Verdict:
        """There is more. Does not wait: the verdict may be on what came before."""
        ...

    async def finish(self) -> Verdict:
        """There is no more: the verdict on all that was not judged yet."""
        ...

    async def close(self) -> None:
        """Nobody waits for a verdict any more."""
        ...


class Flagged(Exception):
    """An answer that must not go on; `said` is what the ledger writes."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


class Asking:
    """Follows by asking: once for each `chunk` of new characters, with the `window` before them, one at a time.

    While it waits the text grows, and the next question is about all of it. A chunk is held back behind what has
    passed, so that what begins in one and ends in the next is seen before any of it goes out.
    """

    def __init__(self, ask: Ask, window: int, chunk: int) -> None:
        self.safe = 0
        self._ask, self._window, self._chunk = ask, window, chunk
        self._text, self._size, self._asked = "", 0, 0
        self._question: asyncio.Task[Verdict] | None = None

    def push(self, text: str) -> Verdict:
        self._text += text
        self._size += len(text)
        verdict = NOTHING
        if self._question is not None and self._question.done():
            verdict = self._heard(self._question.result())
        if self._question is None and not verdict.flagged and self._size - self._asked >= self._chunk:
            self._question = asyncio.ensure_future(self._next())
        return verdict

    async def finish(self) -> Verdict:
        verdict = NOTHING
        if self._question is not None:
            verdict = self._heard(await self._question)
        if not verdict.flagged and self._size > self._asked:
            verdict = self._heard(await self._next())
        self.safe = self._size
        return verdict

    async def close(self) -> None:
        if self._question is not None:
            self._question.cancel()
            await asyncio.gather(self._question, return_exceptions=True)

    def _next(self) -> Awaitable[Verdict]:
        """The question about what is new and the window before it, of which no more is kept."""
        new = self._size - self._asked
        self._text, self._asked = self._text[-(new + self._window) :], self._size
        return self._ask([self._text])

    def _heard(self, verdict: Verdict) -> Verdict:
        self._question = None
        self.safe = max(0, self._asked - self._chunk)
        return verdict


class Following(Struct, frozen=True):
    """One moderator of an answer: its name, and how it begins to read a text."""

    name: str
    begin: Callable[[], Follower]


class Watch:
    """One answer. `kept` characters of each choice wait for its end, and for `whole`, which then judges all of it."""

    def __init__(
        self,
        request: Request,
        moderators: Sequence[Following],
        whole: Callable[[Sequence[str]], Awaitable[None]] | None,
        kept: int,
        notes: Sequence[str],
    ) -> None:
        """`whole` raises Flagged; `notes` may grow: what is to be said of an answer that is let pass."""
        self._whole, self._notes, self._noted = whole, notes, request.moderation.split(";")
        self._usage = Usage(prompt_text=0)
        self._choices = [_Choice(index, moderators, 0 if whole is None else kept) for index in range(request.choices)]

    async def seen(self, event: Event) -> list[Event]:
        """What goes on now that this has come; raises Flagged."""
        match event:
            case Started(usage):
                self._usage = usage
                return [event]
            case Finish(index):
                choice = self._choices[index]
                await choice.end(self._whole)
                return [*choice.released(), replace(event, moderation=self._said())]
            case Progress(index):
                choice = self._choices[index]
                choice.count(event)
            case _:
                choice = self._choices[event.index]
                await choice.add(event)
        shown = choice.released()
        return shown if shown and shown[-1] is event else [*shown, Progress(event.index, event.completion)]

    def ends(self, said: str) -> list[Event]:
        """The end of every choice that has none yet, with what was made until now."""
        usage = replace(
            self._usage,
            completion=sum(choice.completion for choice in self._choices),
            reasoning=sum(choice.reasoning for choice in self._choices),
        )
        return [
            Finish(choice.index, "content_filter", usage, moderation=self._said(said))
            for choice in self._choices
            if not choice.ended
        ]

    def _said(self, *more: str) -> str:
        """What is noted, without what the request was let pass with."""
        return ";".join([*(note for note in self._notes if note not in self._noted), *more])

    async def close(self) -> None:
        """Nothing is asked any more."""
        for choice in self._choices:
            await choice.close()


class _Choice:
    """One choice: what waits, and the text that is being written."""

    def __init__(self, index: int, moderators: Sequence[Following], kept: int) -> None:
        self.index, self.completion, self.reasoning, self.ended = index, 0, 0, False
        self._moderators, self._kept = moderators, kept
        self._followers: list[tuple[str, Follower]] = []
        self._waiting: deque[tuple[int, Delta]] = deque()
        self._texts: list[list[str]] = []
        self._writing: tuple[type[Delta], int] | None = None
        self._began = self._size = 0

    def count(self, event: Delta | Progress) -> None:
        """More tokens; of a question that was asked the answer may have come."""
        self.completion = event.completion
        if isinstance(event, ReasoningDelta):
            self.reasoning = event.completion
        self._push("" if isinstance(event, Progress) else _text_of(event))

    async def add(self, event: Delta) -> None:
        """More of what is being written, or the first of something else."""
        writing = (type(event), event.call if isinstance(event, ToolCallDelta) else 0)
        if writing != self._writing:
            await self._finish()
            self._writing, self._began = writing, self._size
            self._followers = [(each.name, each.begin()) for each in self._moderators]
            self._texts.append([])
        self._size += len(_text_of(event))
        self._waiting.append((self._size, event))
        self._texts[-1].append(_text_of(event))
        self.count(event)

    async def end(self, whole: Callable[[Sequence[str]], Awaitable[None]] | None) -> None:
        """All is written."""
        await self._finish()
        if whole is not None and self._size:
            await whole(["".join(text) for text in self._texts])
        self.ended, self._kept = True, 0

    def released(self) -> list[Event]:
        """What may go on."""
        safe = min([self._size - self._began, *(follower.safe for _, follower in self._followers)])
        safe = min(self._began + safe, self._size - self._kept)
        gone: list[Event] = []
        while self._waiting and self._waiting[0][0] <= safe:
            gone.append(self._waiting.popleft()[1])
        return gone

    async def close(self) -> None:
        for _, follower in self._followers:
            await follower.close()

    def _push(self, text: str) -> None:
        for name, follower in self._followers:
            _check(name, follower.push(text))

    async def _finish(self) -> None:
        for name, follower in self._followers:
            _check(name, await follower.finish())


def _check(name: str, verdict: Verdict) -> None:
    if verdict.flagged:
        raise Flagged(said_of(name, verdict))


def _text_of(event: Delta) -> str:
    return event.arguments if isinstance(event, ToolCallDelta) else event.text
