"""A moderator that is somebody else: asked within a time, and left alone for a while when it does not answer."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from qwen3vl_compat.policies.moderation import Judged, Note, Unavailable, Verdict, unnoted
from qwen3vl_compat.settings import ModeratorSettings

log = logging.getLogger(__name__)

MOST_FAILURES = 3
"""In a row, after which it is not asked."""
PAUSE_S = 5.0
"""So long; then one question is asked, and all others wait for what comes of it no longer than nothing."""

Ask = Callable[[Sequence[str], Sequence[bytes]], Awaitable[Verdict]]
"""One question; whatever it raises is a failure, which the log tells by an Unavailable's words or else its name."""


async def _nothing() -> None:
    """There is nothing to close."""


class Service:
    """A moderator behind a question that can fail."""

    def __init__(
        self,
        settings: ModeratorSettings,
        ask: Ask,
        close: Callable[[], Awaitable[None]] = _nothing,
        ticks: Callable[[], float] = time.monotonic,
        note: Note = unnoted,
    ) -> None:
        """`ticks` gives seconds that are never set back."""
        self.name, self.stages = settings.name or "service", settings.stages
        self.pictures, self._timeout = settings.pictures, settings.timeout
        told = (self.name, settings.url, settings.model, settings.pictures)
        self.fingerprint = hashlib.sha256(repr(told).encode()).hexdigest()
        self._ask, self._close, self._ticks, self._note = ask, close, ticks, note
        self._where = f" at {_address(settings.url)}" if settings.url else ""
        self._failures, self._silent_until = 0, 0.0

    async def look(self, texts: Sequence[str], pictures: Sequence[bytes]) -> Verdict:
        """Its verdict; raises Unavailable, at once while it is left alone."""
        if self._failures >= MOST_FAILURES:
            if self._ticks() < self._silent_until:
                self._note(Judged(self.name, "failed"))
                raise Unavailable("it is left alone for a while")
            self._silent_until = self._ticks() + PAUSE_S  # of those who come now, one asks
        began = self._ticks()
        try:
            async with asyncio.timeout(self._timeout):
                verdict = await self._ask(texts, pictures)
        except Exception as error:  # whatever it, the network and the libraries come up with
            self._note(Judged(self.name, "failed", self._ticks() - began))
            self._failed(error)
            raise Unavailable(type(error).__name__) from error
        self._note(Judged(self.name, "flagged" if verdict.flagged else "passed", self._ticks() - began))
        if self._failures:
            log.warning("the moderator '%s' answers again", self.name)
            self._failures = 0
        return verdict

    async def close(self) -> None:
        """Let go of what the questions take."""
        await self._close()

    def _failed(self, error: Exception) -> None:
        if not self._failures:
            log.warning("the moderator '%s'%s cannot be asked: %s", self.name, self._where, _why(error))
        self._failures += 1
        self._silent_until = self._ticks() + PAUSE_S


def _why(error: Exception) -> str:
    """For the log: nothing that the other side has sent but its status."""
    if isinstance(error, TimeoutError):
        return "it takes too long"
    return str(error) if isinstance(error, Unavailable) else type(error).__name__


def _address(url: str) -> str:
    """For the log: where it is, without what may be a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
