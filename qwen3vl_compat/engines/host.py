"""An engine offered to other processes of this machine: the end beside the engine. `remote` is the one in a front."""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from typing import Any

from prometheus_client.metrics_core import Metric

from qwen3vl_compat.engines import Engine
from qwen3vl_compat.engines.channel import Channel, TooLarge
from qwen3vl_compat.engines.protocol import (
    AHEAD,
    Arriving,
    Aside,
    Beat,
    Cancel,
    Check,
    Collect,
    Count,
    Counted,
    Done,
    Fault,
    Figures,
    FromFront,
    Full,
    Generate,
    Heard,
    Piece,
    Reply,
    Share,
    Step,
    Took,
    Welcome,
    families_of,
    fault_of,
)
from qwen3vl_compat.errors import ApiError, EngineFailed
from qwen3vl_compat.events import Event, Started
from qwen3vl_compat.messages import Request
from qwen3vl_compat.queue import Occupancy

log = logging.getLogger(__name__)

BEAT_S = 0.2
"""Seconds between two signs of life."""
UNHEARD = 300
"""Signs of life of ours (a minute) after which a front that has said nothing meanwhile is given up."""

Figured = Callable[[], Iterable[Metric]]


class Host:
    """One engine, for any number of fronts. All of it lives in the loop in which the engine is asked."""

    def __init__(self, engine: Engine, more: Figured = tuple) -> None:
        """`more` is what is told beside the engine's own figures."""
        self.engine, self.more = engine, more
        self.ready = self.announced = False
        """Whether the engine has been started, and whether the operator was told that requests are taken."""
        self.running = 0
        """Generations under way."""
        self._fronts: set[_Front] = set()
        self._telling = False

    async def serve(self, end: socket.socket, aside: Callable[[bytes], None] = lambda words: None) -> None:
        """Serve the front at this end of a socket pair until it is gone, then cancel what it had asked.

        `aside` gets what it says that is no matter of the engine's.
        """
        front = _Front(self, aside)
        self._fronts.add(front)
        try:
            await front.serve(end)
        finally:
            self._fronts.discard(front)

    def changed(self) -> None:
        """Have all fronts told how full the engine is, when all that happens now has happened."""
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        for front in self._fronts:
            front.tell()


class _Front:
    """What one front has asked."""

    def __init__(self, host: Host, aside: Callable[[bytes], None]) -> None:
        self._host, self._engine, self._aside = host, host.engine, aside
        self._gone = asyncio.Event()
        self._channel: Channel[FromFront] = Channel(FromFront, self._take, self._gone.set)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._arriving: dict[int, Arriving] = {}
        self._windows: dict[int, asyncio.Semaphore] = {}
        self._shares: dict[int, Share] = {}
        self._told: Occupancy | None = None
        self._unheard = 0

    async def serve(self, end: socket.socket) -> None:
        await self._channel.open(end)
        self._channel.send(Welcome(self._engine.vision, self._engine.models()))
        try:
            while not self._gone.is_set():
                self.tell()
                self._channel.send(Beat(self._host.ready and self._engine.alive, self._host.announced))
                self._unheard += 1  # not a clock's time: where all processes were stopped, none has missed anything
                if self._unheard > UNHEARD:
                    log.error("a front says nothing any more; the connection to it is given up")
                    self._channel.abort()
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), BEAT_S)
        finally:
            tasks = [*self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._channel.close()

    def tell(self) -> None:
        """Say how full the engine is, if that is news."""
        now = self._engine.occupancy
        if now is not self._told and now != self._told:
            self._channel.send(Full(now))
        self._told = now

    def _take(self, message: FromFront) -> None:
        self._unheard = 0
        match message:
            case Heard():
                pass
            case Generate():
                arriving = self._arriving[message.number] = Arriving(message.request, message.patches)
                self._begin_if_whole(message.number, arriving)
            case Piece():
                arriving = self._arriving.get(message.number)
                if arriving is not None:
                    arriving.add(message.data)
                    self._begin_if_whole(message.number, arriving)
            case Took():
                if (window := self._windows.get(message.number)) is not None:
                    for _ in range(message.events):
                        window.release()
            case Cancel():
                self._arriving.pop(message.number, None)
                if (task := self._tasks.get(message.number)) is not None:
                    task.cancel()
            case Aside():
                self._aside(message.words)
            case Count() | Check() | Collect():
                self._begin(message.number, self._reply(message))

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[number] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(number))

    def _begin_if_whole(self, number: int, arriving: Arriving) -> None:
        if arriving.whole:
            del self._arriving[number]
            self._begin(number, self._generate(number, arriving.request))

    # ---------------------------------------------------------------------------------------------------- questions

    async def _reply(self, question: Count | Check | Collect) -> None:
        try:
            result = await self._result(question)
        except Exception as error:
            result = _fault(error)
        self._channel.send(Reply(question.number, result))

    async def _result(self, question: Count | Check | Collect) -> Counted | Done | Figures:
        match question:
            case Count():
                usage = await self._engine.count(question.request)
                try:
                    return Counted(usage, self._engine.room(question.request, usage))
                except ApiError as error:
                    return Counted(usage, fault_of(error))
            case Check():
                await self._engine.check(question.request)
                return Done()
            case Collect():
                return Figures(families_of([*await self._engine.collect(), *self._host.more()]))

    # ------------------------------------------------------------------------------------------------------- answers

    async def _generate(self, number: int, request: Request) -> None:
        window = self._windows[number] = asyncio.Semaphore(AHEAD)
        self._host.running += 1
        self._host.changed()
        fault = None
        try:
            async with aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    # What nobody reads stays with the engine, which knows how long it lets itself be kept waiting.
                    await window.acquire()
                    self._put(number, event)
                    if isinstance(event, Started):
                        self._host.changed()
        except Exception as error:
            fault = _fault(error)
        finally:
            self._host.running -= 1
            self._host.changed()
            del self._windows[number]
        self._share(number, over=True, fault=fault)

    def _put(self, number: int, event: Event) -> None:
        self._share(number).events.append(event)

    def _share(self, number: int, *, over: bool = False, fault: Fault | None = None) -> Share:
        """The request's share of the next message, which goes out when all who have something now have put it in."""
        if not self._shares:
            asyncio.get_running_loop().call_soon(self._flush)
        old = self._shares.get(number)
        if old is None or over:
            old = self._shares[number] = Share(number, old.events if old is not None else [], over, fault)
        return old

    def _flush(self) -> None:
        shares, self._shares = self._shares, {}
        self._send([*shares.values()])

    def _send(self, shares: list[Share]) -> None:
        try:
            self._channel.send(Step(shares))
        except TooLarge:
            if len(shares) > 1:
                for share in shares:
                    self._send([share])
            else:
                self._send([Share(shares[0].number, [], over=True, fault=_fault(TooLarge()))])


def _fault(error: Exception) -> Fault:
    """What a front is told of an error; of one that is ours the log has the rest."""
    if isinstance(error, ApiError):
        return fault_of(error)
    log.error("the engine failed on a request", exc_info=error)
    return fault_of(EngineFailed("The engine failed on this request."))
