"""One client's connection: uvicorn's own, with the bounds on a request's head that it lacks."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES, HEAD_LINES = 64 * 1024, 100
"""Most bytes and most header lines in the head of a request."""
HEAD_SECONDS = 20.0
"""Seconds the head of a request may take, counted from the connection or from its first byte on a kept one."""


class Connection(HttpToolsProtocol):
    """Closes a connection whose request never gets as far as having a path: heads too slow or without end.

    Heads that do come whole are judged by the door, which can answer on the right wire.
    """

    _timer: asyncio.TimerHandle | None = None
    _read = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes while a head is incomplete."""
        super().data_received(data)
        if self._timer is not None:
            self._read += len(data)
            if self._read > 2 * HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """A head has begun."""
        super().on_message_begin()
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._stop()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._read = 0
        self._timer = self.loop.call_later(HEAD_SECONDS, self._refuse, b"408 Request Timeout")

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        self._stop()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
