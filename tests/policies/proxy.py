"""A TCP proxy that can do to a connection what networks do."""

import asyncio
import socket
import struct
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Literal

Mode = Literal["pass", "refuse", "reset", "hole", "slow", "garbage"]
SLOW_S = 0.5


class Proxy:
    """Listens on a port of its own before another; `set` changes what it does, to connections it has too."""

    def __init__(self, port: int) -> None:
        self._behind, self._mode = port, "pass"
        self.port = 0
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def set(self, mode: Mode) -> None:
        """`refuse` and `reset` end the connections there are; `hole` takes everything and says nothing."""
        self._mode = mode
        if mode in ("refuse", "reset"):
            self._abort()
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif mode != "refuse" and self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _abort(self) -> None:
        for writer in self._writers:
            end = writer.get_extra_info("socket")
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        if self._mode == "reset":
            self._abort()
            return
        self._run(self._serve(reader, writer))

    def _run(self, serving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(forth)
        self._run(self._pump(back, writer, answers=True))
        await self._pump(reader, forth, answers=False)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with suppress(OSError):
            while chunk := await reader.read(2**16):
                if self._mode == "hole":
                    continue
                if self._mode == "slow" and answers:
                    await asyncio.sleep(SLOW_S)
                if self._mode == "garbage" and answers:
                    chunk = b"+OK\r\n" * chunk.count(b"*")
                writer.write(chunk)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)
