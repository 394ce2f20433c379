"""One request on its way through the engine: what goes in, and what waits to be read."""

import asyncio
import time

from qwen3vl_compat.engines.local.answer import Answer
from qwen3vl_compat.engines.local.prompt import Prompt
from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import Event, Events, Finish, Started, joined
from qwen3vl_compat.messages import Request


class Job:
    """A request, its prompt, and its events from the device's thread to whoever reads them.

    The reader and `put` live on the loop's thread. What is not read yet is kept short: further text of a choice joins
    the text that waits.
    """

    def __init__(self, request: Request, prompt: Prompt, answers: list[Answer]) -> None:
        self.request, self.prompt, self.answers = request, prompt, answers
        self.usage = prompt.usage
        """Of the prompt; what of it was known already is told when it begins."""
        self.made = [0] * len(answers)
        """Tokens of the choices that have ended."""
        self.thought = [0] * len(answers)
        """Those of them that were thoughts."""
        self.last_token: list[float | None] = [None] * len(answers)
        """When each choice's newest token came, on the monotonic clock."""
        self.started = self.cancelled = False
        self.since = time.monotonic()
        self._waiting: list[Event] = []
        self._newest: dict[int, int] = {}
        """Where each choice's newest waiting event stands."""
        self._untaken: float | None = None
        self._failure: ApiError | None = None
        self._news = asyncio.Event()

    @property
    def tenant(self) -> str:
        """On whose behalf it runs."""
        return self.request.caller.tenant

    def put(self, event: Event | ApiError) -> None:
        """Give the reader an event, or an error that ends it: what comes after that is not passed on."""
        if isinstance(event, ApiError):
            self._failure = self._failure or event
        elif self._failure is None:
            self._add(event)
            self._untaken = self._untaken or time.monotonic()
        self._news.set()

    def _add(self, event: Event) -> None:
        if not isinstance(event, Started):
            place = self._newest.get(event.index)
            if place is not None and (both := joined(self._waiting[place], event)) is not None:
                self._waiting[place] = both
                return
            self._newest[event.index] = len(self._waiting)
        self._waiting.append(event)

    def idle(self, seconds: float) -> bool:
        """Whether something has waited for the reader this long."""
        return self._untaken is not None and time.monotonic() - self._untaken > seconds

    async def events(self) -> Events:
        """The events as they come, until every choice has ended."""
        ended = 0
        while ended < len(self.answers):
            await self._news.wait()
            self._news.clear()
            events, self._waiting, self._newest, self._untaken = self._waiting, [], {}, None
            for event in events:
                ended += isinstance(event, Finish)
                yield event
            if self._failure is not None and ended < len(self.answers):
                raise self._failure
