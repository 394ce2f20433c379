"""A transport that sends together what is written in one turn of the loop: a head and its body, or many chunks."""

import asyncio
from collections.abc import Callable
from typing import Any


class Corked:
    """Stands in for a transport; what it does not do itself the transport does."""

    __slots__ = ("_held", "_linger", "_lingering", "_loop", "_transport")

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, linger: Callable[[], float] = lambda: 0
    ) -> None:
        """`linger` says for how many seconds a client may still send when this is closed."""
        self._transport, self._loop, self._linger = transport, loop, linger
        self._held: list[bytes] = []
        self._lingering = False

    def write(self, data: bytes) -> None:
        """Send this before the loop looks for anything new."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def get_write_buffer_size(self) -> int:
        """Bytes that are not sent yet."""
        return self._transport.get_write_buffer_size() + sum(map(len, self._held))

    def close(self) -> None:
        """Send what there is, and hang up.

        Who hangs up on a client that is sending takes back what it has been told: the reset that its next bytes meet
        makes it forget them. So only this side is closed until the client has come to its end, or its time (RFC 9112,
        9.6).
        """
        if self._lingering:
            return
        self._flush()
        seconds = 0 if self._transport.is_closing() else self._linger()
        if not seconds:
            self._transport.close()
            return
        self._lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(seconds, self._transport.close)

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._lingering or self._transport.is_closing()

    def abort(self) -> None:
        """Hang up."""
        self._held.clear()
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
