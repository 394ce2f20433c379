"""One client's connection: uvicorn's own, with the bounds that it lacks."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qwen3vl_compat.server.corked import Corked

HEAD_BYTES, HEAD_LINES = 64 * 1024, 100
"""Most bytes and most header lines in the head of a request."""
HEAD_SECONDS = 20.0
"""Seconds the head of a request may take, counted from the connection or from its first byte on a kept one."""
LINGER_S, LINGER_BYTES = 5.0, 2**27
"""So long, and so much, a client that has its answer already may go on sending; nothing of it is looked at."""
Head = Sequence[tuple[bytes, bytes]]
Refuse = Callable[[int, bytes, Head], bytes]
"""A whole answer with this status to a request that never became one, by its target and headers as far as they came."""


def _bare(status: int, target: bytes, head: Head) -> bytes:
    return b"HTTP/1.1 %d \r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status


class Connection(HttpToolsProtocol):
    """Ends connections that would otherwise be held for ever, with or without a key.

    These are heads too slow or without end, answers nobody takes, and bodies left over when their request has been
    answered. Heads that do come whole are judged by the door, which can answer on the right wire.
    """

    read_seconds = 60.0
    """Seconds in which a client must take something of what is ready for it."""
    refusal: Refuse = staticmethod(_bare)
    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None
    _read = 0
    _whole = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(Corked(transport, self.loop, self._linger))  # type: ignore[arg-type]
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting_for_head()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    # ------------------------------------------------------------------------------------------------ heads and bodies

    def data_received(self, data: bytes) -> None:
        """Count what comes while a head is incomplete; pass over what comes after the last answer."""
        if self.transport.is_closing():
            self._read += len(data)
            if self._read > LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._head is not None:
            self._read += len(data)
            if self._read > 2 * HEAD_BYTES:
                self._refuse(431)

    def on_message_begin(self) -> None:
        """A head has begun; another request's answer may still be under way."""
        super().on_message_begin()
        self._whole = False
        if self._head is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._stop_waiting_for_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there."""
        self._whole = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Nobody will read what is left of a body."""
        super().on_response_complete()
        if not self._whole and self._head is None:
            self.transport.close()

    def _linger(self) -> float:
        """Seconds to wait for the end of what the client is sending."""
        self._read = 0
        return 0 if self._whole else LINGER_S

    def _wait_for_head(self) -> None:
        self._read = 0
        self._head = self.loop.call_later(HEAD_SECONDS, self._refuse, 408)

    def _stop_waiting_for_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self._refuse(400)

    def _refuse(self, status: int) -> None:
        self._stop_waiting_for_head()
        if self.transport.is_closing():
            return
        if self._answering():
            self.transport.abort()  # nothing may be written into the answer under way
        else:
            self.transport.write(self.refusal(status, getattr(self, "url", b""), getattr(self, "headers", ())))
            self.transport.close()

    def _answering(self) -> bool:
        """Whether an answer is under way that is not to what has just come."""
        cycle: Any = self.cycle  # uvicorn declares it as never None, which it is before the first request
        if cycle is None or cycle.response_complete:
            return False
        its_body = self._head is None and not self._whole and not self.pipeline
        return cycle.response_started or not its_body

    # --------------------------------------------------------------------------------------------------------- answers

    def pause_writing(self) -> None:
        """More is ready than the client takes."""
        super().pause_writing()
        if self._write is None:
            self._wait_for_reader()

    def resume_writing(self) -> None:
        """It takes it."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def _wait_for_reader(self) -> None:
        size = self.transport.get_write_buffer_size()
        self._write = self.loop.call_later(self.read_seconds, self._give_up_unless_less_than, size)

    def _stop_waiting_for_reader(self) -> None:
        if self._write is not None:
            self._write.cancel()
            self._write = None

    def _give_up_unless_less_than(self, size: int) -> None:
        self._write = None
        if self.transport.get_write_buffer_size() < size:
            self._wait_for_reader()
        else:
            self.transport.abort()


def with_patience(read_seconds: float, refusal: Refuse = _bare) -> type[Connection]:
    """Connections that give a client this long to take something of what is ready, and refuse in these words."""
    return type("Connection", (Connection,), {"read_seconds": read_seconds, "refusal": staticmethod(refusal)})
