"""The one connection to Redis: any number of calls are under way on it at once, and answered in their order.

So hundreds of requests open no hundreds of connections, and one that is cancelled leaves the connection whole. A call
that gets no answer in its time means that Redis is lost: all calls end at once, those that wait for their turn too.
"""

import asyncio
from collections import deque
from contextlib import nullcontext

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

try:
    import hiredis
except ModuleNotFoundError:  # redis without its fast half
    hiredis = None

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
    """Seconds left for Redis. While something else keeps the loop busy it hears nothing, so that does not count."""

    __slots__ = ("left",)

    def __init__(self, seconds: float) -> None:
        self.left = seconds


class Call:
    """A command on its way, and who waits for the reply."""

    __slots__ = ("patience", "reply", "words")

    def __init__(self, patience: Patience, words: tuple[str | bytes | int, ...]) -> None:
        self.patience, self.words = patience, words
        self.reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()


class Line:
    """A connection, opened by the first call and after every loss by the next one.

    What is called in one turn of the loop goes out in one piece. One clock looks after all who wait.
    """

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that is none."""
        self._connections = ConnectionPool.from_url(
            url, protocol=2, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._connection: AbstractConnection | None = None
        self._unsent: list[Call] = []
        self._sent: deque[Call] = deque()
        self._flushing = False
        self._looking: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        self._opening: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._lost, self._losses = "", 0

    async def call(self, patience: Patience, *words: str | bytes | int) -> object:
        """The reply to a command, connecting included.

        Raises Lost, and ResponseError where Redis refuses. A command that is out stays so when its caller is cancelled.
        """
        losses = self._losses
        try:
            async with asyncio.timeout(QUEUE_S) if self._turns.locked() else nullcontext():
                await self._turns.acquire()
        except TimeoutError:
            self._drop("it does not keep up")
            raise Lost(self._lost) from None
        try:
            if losses != self._losses:
                raise Lost(self._lost)
            answer = await self._begun(Call(patience, words)).reply
        finally:
            self._turns.release()
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    def _begun(self, call: Call) -> Call:
        self._unsent.append(call)
        loop = asyncio.get_running_loop()
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush)
        if self._looking is None:
            self._looked_at = loop.time()
            self._looking = loop.call_later(LOOK_S, self._look)
        return call

    def _flush(self) -> None:
        """Send what has gathered, opening the connection first where there is none."""
        self._flushing = False
        if not self._unsent:
            return
        if self._connection is None:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
            return
        wanted = [call for call in self._unsent if not call.reply.done()]
        self._unsent.clear()
        self._sent.extend(wanted)
        if wanted:
            data = b"".join(_packed(call.words) for call in wanted)
            self._watch(asyncio.create_task(self._send(self._connection, data)))

    async def _send(self, connection: AbstractConnection, data: bytes) -> None:
        try:
            await connection.send_packed_command(data, check_health=False)
        except (RedisError, OSError) as error:
            if connection is self._connection:
                self._drop(str(error))

    def _look(self) -> None:
        """Take from all who wait the time since the last look, as far as the loop was there to hear a reply."""
        loop, self._looking = asyncio.get_running_loop(), None
        passed, self._looked_at = min(LOOK_S, loop.time() - self._looked_at), loop.time()
        waiting = [call for call in (*self._sent, *self._unsent) if not call.reply.done()]
        for call in waiting:
            call.patience.left -= passed
        if any(call.patience.left <= 0 for call in waiting):
            self._drop("it does not answer in time")
        elif self._sent or self._unsent:
            self._looking = loop.call_later(LOOK_S, self._look)

    async def close(self) -> None:
        """Hang up; nothing of the connection stays."""
        self._drop("closed")
        await asyncio.sleep(0)  # what was cancelled hangs up too
        for task in (await asyncio.wait(self._ending, timeout=CLOSING_S))[1] if self._ending else ():
            task.cancel()

    async def _open(self) -> None:
        connection = self._connections.make_connection()
        try:
            await connection.connect()
        except Exception as error:
            self._hang_up(connection)
            self._opening = None
            self._drop(str(error))
        except BaseException:
            self._hang_up(connection)
            raise
        else:
            self._connection = connection
            self._flush()
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
                call = self._sent.popleft()
                if not call.reply.done():
                    call.reply.set_result(answer)
        except IndexError:
            self._drop("it answers what was not asked")
        except Exception as error:
            self._drop(str(error))

    def _drop(self, reason: str) -> None:
        """Hang up, and end all calls with this reason."""
        self._lost, self._losses = reason, self._losses + 1
        for task in (self._opening, self._reading):
            if task is not None:
                task.cancel()
        waiting = [*self._sent, *self._unsent]
        self._sent.clear()
        self._unsent.clear()
        for call in waiting:
            if not call.reply.done():
                call.reply.set_exception(Lost(reason))
        connection, self._connection = self._connection, None
        self._opening = self._reading = None
        if connection is not None:
            self._hang_up(connection)

    def _hang_up(self, connection: AbstractConnection) -> None:
        self._watch(asyncio.create_task(connection.disconnect()))

    def _watch(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()  # of which nobody else takes note


def _packed(words: tuple[str | bytes | int, ...]) -> bytes:
    """A command as Redis reads it."""
    if hiredis is not None:
        return hiredis.pack_command(words)
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in encoded)
