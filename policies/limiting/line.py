"""The one connection to Redis: any number of calls are under way on it at once, and answered in their order.

So hundreds of requests open no hundreds of connections, and one that is cancelled leaves the connection whole. A call
that gets no answer in its time means that Redis is lost: all calls end at once, those that wait for their turn too.
"""

import asyncio
from collections import deque
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

__all__ = ["Line", "Lost", "Patience", "ResponseError"]

AT_ONCE = 32
"""Calls under way. More would wait in Redis for each other, and that is no slowness of its."""
QUEUE_S = 1.0
"""Redis does not keep up when a call waits so long for its turn, although all before it were answered in time."""
LOOK_S = 0.01
CLOSING_S = 1.0


class Lost(Exception):
    """Redis did not do as it should; the message says how in a few words."""


class Patience:
    """Time for Redis. While something else keeps the loop busy it hears nothing, so that does not count."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    async def outlasts(self, task: asyncio.Task[object]) -> bool:
        """Whether the task ends in the time that is left."""
        loop = asyncio.get_running_loop()
        while not task.done() and self.left > 0:
            look, began = min(self.left, LOOK_S), loop.time()
            await asyncio.wait([task], timeout=look)
            self.left -= min(look, loop.time() - began)
        return task.done()


class Line:
    """A connection, opened by the first call and after every loss by the next one."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that is none."""
        self._connections = ConnectionPool.from_url(
            url, protocol=2, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._connection: AbstractConnection | None = None
        self._replies: deque[asyncio.Future[object]] = deque()
        self._opening: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[object]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._lost, self._losses = "", 0

    async def call(self, patience: Patience, *words: str | bytes | int) -> object:
        """The reply to a command, connecting included.

        Raises Lost, and ResponseError where Redis refuses. A command that is out stays so when its caller is cancelled.
        """
        losses = self._losses
        try:
            async with asyncio.timeout(QUEUE_S):
                await self._turns.acquire()
        except TimeoutError:
            self._drop("it does not keep up")
            raise Lost(self._lost) from None
        try:
            if losses != self._losses:
                raise Lost(self._lost)
            return await self._answer(patience, words)
        finally:
            self._turns.release()

    async def close(self) -> None:
        """Hang up; nothing of the connection stays."""
        self._drop("closed")
        await asyncio.sleep(0)  # what was cancelled hangs up too
        for task in (await asyncio.wait(self._closing, timeout=CLOSING_S))[1] if self._closing else ():
            task.cancel()

    async def _answer(self, patience: Patience, words: tuple[str | bytes | int, ...]) -> object:
        task = asyncio.create_task(self._exchange(words))
        self._calls.add(task)
        task.add_done_callback(self._ended)
        if not await patience.outlasts(task):
            self._drop("it does not answer in time")
            raise Lost(self._lost)
        if task.cancelled():
            raise Lost(self._lost)
        return task.result()

    async def _exchange(self, words: tuple[str | bytes | int, ...]) -> object:
        connection = await self._connected()
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)  # with nothing between this and the writing, so that the orders agree
        try:
            await connection.send_packed_command(connection.pack_command(*words), check_health=False)
        except (RedisError, OSError) as error:
            self._drop(str(error))
            raise Lost(self._lost) from None
        answer = await reply
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def _connected(self) -> AbstractConnection:
        if self._connection is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
            await asyncio.wait([self._opening])
        if self._connection is None:
            raise Lost(self._lost)
        return self._connection

    async def _open(self) -> None:
        connection = self._connections.make_connection()
        try:
            await connection.connect()
        except Exception as error:
            self._lost = str(error)
            self._hang_up(connection)
        except BaseException:
            self._hang_up(connection)
            raise
        else:
            self._connection = connection
            self._reading = asyncio.create_task(self._read(connection))
        finally:
            if self._opening is asyncio.current_task():
                self._opening = None

    async def _read(self, connection: AbstractConnection) -> None:
        """Hand out replies as they come, until the connection ends."""
        try:
            while True:
                try:
                    answer: object = await connection.read_response(disconnect_on_error=False)
                except ResponseError as refusal:
                    answer = refusal
                reply = self._replies.popleft()
                if not reply.done():
                    reply.set_result(answer)
        except IndexError:
            self._drop("it answers what was not asked")
        except Exception as error:
            self._drop(str(error))

    def _drop(self, reason: str) -> None:
        """Hang up, and end all calls with this reason."""
        self._lost, self._losses = reason, self._losses + 1
        for task in (*self._calls, self._opening, self._reading):
            if task is not None:
                task.cancel()
        self._replies.clear()
        connection, self._connection = self._connection, None
        self._opening = self._reading = None
        if connection is not None:
            self._hang_up(connection)

    def _hang_up(self, connection: AbstractConnection) -> None:
        task = asyncio.create_task(connection.disconnect())
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._calls.discard(task)
        _note(task)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        _note(task)


def _note(task: asyncio.Task[Any]) -> None:
    """Take note of a task's error, which its caller may not be there to do."""
    if not task.cancelled():
        task.exception()
