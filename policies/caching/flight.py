"""One generation that several requests read: it ends with its last reader, whoever asked for it first."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing

from qwen3vl_compat.errors import ApiError, EngineFailed
from qwen3vl_compat.events import Event, Events, Finish, Started, joined
from qwen3vl_compat.messages import Request

log = logging.getLogger(__name__)


class Flight:
    """Keeps all events until its end, so that whoever comes later hears them from the first one."""

    def __init__(self, request: Request, events: Events, held: AsyncExitStack) -> None:
        """`held` is what the generation needs, and is let go of with it."""
        self.request = request
        """What is asked; its media are rendered when there are events."""
        self.events: list[Event] = []
        self.failure: ApiError | None = None
        self.over = self.lost = False
        """Whether it is over, and whether it was, or is being, ended before its end."""
        self._readers = 0
        self._news, self._end = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._fly(events, held))

    def join(self) -> None:
        """One more reads, and says when it has left."""
        self._readers += 1

    async def leave(self) -> None:
        """One reads no more; after the last one nothing is left of the generation."""
        self._readers -= 1
        if not self._readers and not self.over:
            self.lost = True
            self._task.cancel()
            await asyncio.wait({self._task})

    async def started(self) -> Started:
        """The first event; raises what the generation ended with before there was one."""
        async for event in self.read():
            assert isinstance(event, Started), "a generation began with something else"
            return event
        raise EngineFailed("The server failed on this request.")

    async def read(self, *, whole: bool = False) -> Events:
        """All events, from the first, joined as far as they wait here already; raises what they end with.

        Who wants the `whole` is told of the beginning and not woken again until the end.
        """
        at = 0
        while True:
            here, at = self.events[at:], len(self.events)
            news = self._end if whole and at else self._news  # what comes from here on
            for event in here if len(here) < 2 else together(here):
                yield event
            if self.over and at == len(self.events):
                break
            await news.wait()
        if self.failure is not None:
            raise self.failure

    async def landed(self) -> None:
        """Wait for the end."""
        await asyncio.wait({self._task})

    async def _fly(self, events: Events, held: AsyncExitStack) -> None:
        try:
            async with held, aclosing(events) as made:
                async for event in made:
                    self.events.append(event)
                    self._wake()
        except ApiError as error:
            self.failure, self.lost = error, True
        except Exception:
            log.exception("a generation failed")
            self.failure, self.lost = EngineFailed("The server failed on this request."), True
        finally:
            self.over = True
            self._wake()
            self._end.set()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def together(events: Sequence[Event]) -> list[Event]:
    """The same with as few events as say it."""
    made: list[Event] = []
    for event in events:
        both = joined(made[-1], event) if made and _same_choice(made[-1], event) else None
        if both is None:
            made.append(event)
        else:
            made[-1] = both
    return made


def _same_choice(one: Event, other: Event) -> bool:
    ends = Started | Finish
    return not isinstance(one, ends) and not isinstance(other, ends) and one.index == other.index
