"""Starting, stopping, and what runs in between."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from typing import TypeVar

from qwen3vl_compat.errors import ApiError, DeadlineExceeded, Overloaded
from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies import Generate

T = TypeVar("T")


class Lifecycle:
    """Whether work is taken, how much is under way, and the moment at which what still runs is cut off."""

    def __init__(self) -> None:
        self.draining = False
        self.running = 0
        self._idle, self._cut = asyncio.Event(), False
        self._idle.set()
        self._waits: set[asyncio.Timeout] = set()
        """Of generations for their next event."""

    @contextmanager
    def work(self) -> Generator[None]:
        """Count one request as under way; refuses it while the server is stopping."""
        if self.draining:
            raise Overloaded("The server is stopping.", retry_after=5)
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def drain(self, grace: float) -> None:
        """Take no new work, wait up to `grace` seconds for what runs, then cut it off with an error."""
        self.draining = True
        for seconds in (grace, 1.0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)
            self.cut()

    def cut(self) -> None:
        """Let nothing go on that waits for its next event."""
        self._cut = True
        for wait in self._waits:
            if not wait.expired():  # else it is coming to its end already, which may take longer than the grace
                wait.reschedule(0)

    def bounded(self, generate: Generate) -> Generate:
        """A policy: a generation counts as under way, and ends in the request's time or when the grace is over."""

        async def inside(request: Request) -> Events:
            deadline = asyncio.get_running_loop().time() + request.seconds
            with self.work():
                async with aclosing(self.until(generate(request), deadline)) as events:
                    async for event in events:
                        yield event

        return inside

    async def until(self, events: AsyncGenerator[T, None], deadline: float) -> AsyncGenerator[T, None]:
        """The same events, ended with an error at `deadline` (loop time) or when the server's grace is over."""
        loop = asyncio.get_running_loop()
        async with aclosing(events) as inner:
            while True:
                # A source that always has an event ready would otherwise never be found late.
                if self._cut or loop.time() >= deadline:
                    raise self._ended()
                wait = asyncio.timeout_at(deadline)
                try:
                    async with wait:
                        self._waits.add(wait)
                        try:
                            event = await anext(inner)
                        finally:
                            self._waits.discard(wait)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if wait.expired():
                        raise self._ended() from None
                    raise
                yield event

    def _ended(self) -> ApiError:
        if self._cut:
            return Overloaded("The server is stopping.", retry_after=5)
        return DeadlineExceeded("The time allowed for this request is over.")
