"""Messages between two processes of this machine: MessagePack behind a length, over one Unix socket."""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

log = logging.getLogger(__name__)
T = TypeVar("T")

HEAD = struct.Struct("<I")
"""What stands before each message: its length in bytes."""
LARGEST = 256 * 2**20
"""Bytes of one message. What may be larger goes in pieces, between which others find their way."""

READ = 2**18
"""Bytes read at a time."""

_encoder = msgspec.msgpack.Encoder()


class TooLarge(Exception):
    """A message is larger than LARGEST and was not sent."""


class Channel(asyncio.BufferedProtocol, Generic[T]):
    """One end. It hands each message of the other end to `take`, in the loop, and says once when that end is gone."""

    _transport: asyncio.Transport

    def __init__(self, kind: Any, take: Callable[[T], None], gone: Callable[[], None]) -> None:
        """`kind` is the type of what comes in: a Struct, or a union of tagged ones."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._take, self._gone = take, gone
        self._held, self._wanted = bytearray(), HEAD.size
        self._read = memoryview(bytearray(READ))
        self._room, self._ended = asyncio.Event(), asyncio.Event()
        self._room.set()

    async def open(self, end: socket.socket) -> None:
        """Speak over this end of a socket pair from now on."""
        end.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    async def close(self) -> None:
        """Send what waits to be sent, then end."""
        self._transport.close()
        await self._ended.wait()

    def abort(self) -> None:
        """End at once: the other end takes nothing."""
        self._transport.abort()

    @property
    def open_still(self) -> bool:
        """Whether what is sent has a chance to arrive."""
        return not self._ended.is_set() and not self._transport.is_closing()

    def send(self, message: object) -> None:
        """Send, in order; raises TooLarge. To an end that is gone it is nothing."""
        frame = bytearray(HEAD.size)
        _encoder.encode_into(message, frame, HEAD.size)
        size = len(frame) - HEAD.size
        if size > LARGEST:
            raise TooLarge
        HEAD.pack_into(frame, 0, size)
        if self.open_still:
            self._transport.write(frame)

    async def room(self) -> None:
        """Wait until the other end has taken most of what was sent, or is gone."""
        await self._room.wait()

    # ------------------------------------------------------------------------------------------- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to: always the same place, for making one for each message costs more than all the rest."""
        return self._read

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._read[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Hand on each message that is whole, and keep the rest."""
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return
            data = bytes(self._held)
            self._held.clear()
        at, self._wanted = 0, HEAD.size
        while len(data) - at >= HEAD.size:
            (size,) = HEAD.unpack_from(data, at)
            if size > LARGEST:
                self._refuse(f"announces a message of {size} bytes, of which {LARGEST} are allowed")
                return
            end = at + HEAD.size + size
            if len(data) < end:
                self._wanted = end - at
                break
            try:
                message = self._decoder.decode(memoryview(data)[at + HEAD.size : end])
            except msgspec.DecodeError as error:
                self._refuse(f"says what cannot be read: {error}")
                return
            at = end
            self._take(message)
        self._held += memoryview(data)[at:]

    def _refuse(self, fault: str) -> None:
        """Two versions of the program that do not match, or a fault of ours: nothing that follows would make sense."""
        log.error("the other process %s; the connection to it is given up", fault)
        self._held.clear()
        self._transport.abort()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        self._room.set()
        self._gone()
