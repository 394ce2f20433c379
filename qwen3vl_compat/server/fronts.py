"""The process with the engine, where there are several: it starts the fronts, replaces those that die, and ends last.

A front is a fresh interpreter with a socket to the engine and a listening socket of its own on the common address.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

import msgspec
import uvloop
from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from qwen3vl_compat.engines import Engine
from qwen3vl_compat.engines.host import Host
from qwen3vl_compat.server.figures import Figures, Told
from qwen3vl_compat.settings import Settings, SettingsError

log = logging.getLogger(__name__)

SOONEST, LATEST = 1.0, 60.0
"""Seconds until a front that died is replaced: twice as long each time, from the beginning for one that lived long."""
PATIENCE = 15.0
"""Seconds beyond the grace that a front may take to end."""


class Serving(Struct, frozen=True, tag="serving"):
    """A front says that it takes requests."""


class Refused(Struct, frozen=True, tag="refused"):
    """A front says why it cannot start, in one sentence for the operator."""

    text: str


class Happened(Struct, frozen=True, tag="happened"):
    """A front says what its figures are made of."""

    told: tuple[Told, ...]


Words = Serving | Refused | Happened
_words: msgspec.msgpack.Decoder[Words] = msgspec.msgpack.Decoder(Words)


class Fronts:
    """All fronts of a server."""

    def __init__(self, settings: Settings, engine: Engine, address: socket.socket, started: Callable[[], None]) -> None:
        """`address` is bound to where they listen, and does not listen itself."""
        self._settings, self._engine, self._address, self._started = settings, engine, address, started
        self._host = Host(engine, self._figures)
        self._told = Figures(settings)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._serving: set[int] = set()
        self._deaths = 0
        self._draining = False
        self._up, self._stopped = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._refusal: asyncio.Future[str] = self._loop.create_future()

    async def run(self) -> None:
        """Start the engine and the fronts, and keep them until a signal; see `serve`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take_signal)
        keeping = [asyncio.create_task(self._keep(number)) for number in range(self._settings.server.workers)]
        ended = asyncio.gather(*keeping)
        try:
            await self._engine.start()
            self._host.ready = True
            up = asyncio.ensure_future(self._up.wait())
            await asyncio.wait({up, ended, self._refusal}, return_when=asyncio.FIRST_COMPLETED)
            if self._refusal.done():
                raise SettingsError(self._refusal.result())
            if self._up.is_set():
                self._started()
                self._host.announced = True
            await ended
        finally:
            self._stopped.set()
            self._kill()
            await asyncio.gather(*keeping, return_exceptions=True)  # what one of them has raised is told already
            await self._engine.close()

    def _take_signal(self, number: int, frame: FrameType | None) -> None:
        """Have all drain at the first signal; end at once at the second one, or while not all serve yet."""
        if self._draining or not self._up.is_set():
            self._kill()
            os._exit(1)
        self._draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._stopped.set()
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        self._loop.call_later(self._settings.server.grace + PATIENCE, self._kill)

    def _kill(self) -> None:
        for process in list(self._processes.values()):
            process.kill()

    # ------------------------------------------------------------------------------------------------------ one front

    async def _keep(self, number: int) -> None:
        """One front after the other in this place, until the server stops."""
        wait = SOONEST
        while not self._stopped.is_set():
            began = self._loop.time()
            reason = await self._live(number)
            if self._stopped.is_set():
                return
            self._deaths += 1
            lived = self._loop.time() - began
            wait = SOONEST if lived > LATEST else wait
            log.error("front %d %s after %.0f s; another is started in %.0f s", number + 1, reason, lived, wait)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait)
            wait = min(2 * wait, LATEST)

    async def _live(self, number: int) -> str:
        """Start a front and serve it until it has ended; returns how."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, _beside(self._address) as listener:
                process = self._processes[number] = _start(self._settings, theirs, listener)
        except Exception as error:
            ours.close()
            if not isinstance(error, OSError):
                raise
            return f"could not be started ({error.strerror})"
        await self._host.serve(ours, lambda words: self._hear(number, words))
        self._serving.discard(number)
        try:
            status = await asyncio.to_thread(process.wait, PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            status = await asyncio.to_thread(process.wait)
        del self._processes[number]
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def _hear(self, number: int, words: bytes) -> None:
        match _words.decode(words):
            case Happened(told):
                for each in told:
                    self._told.add(each)
            case Serving():
                self._serving.add(number)
                if len(self._serving) == self._settings.server.workers:
                    self._up.set()
            case Refused(text):
                if self._up.is_set():
                    log.error("front %d cannot start: %s", number + 1, text)
                elif not self._refusal.done():
                    self._refusal.set_result(text)

    def _figures(self) -> Iterable[Metric]:
        """What is told of all fronts together, whichever is asked."""
        yield GaugeMetricFamily("qwen3vl_fronts", "Front processes that take requests", len(self._serving))
        yield GaugeMetricFamily("qwen3vl_engine_requests", "Requests the engine has from fronts", self._host.running)
        yield CounterMetricFamily("qwen3vl_front_deaths", "Front processes that had to be replaced", self._deaths)
        yield from self._told.collect()


def _beside(address: socket.socket) -> socket.socket:
    """Another socket bound to the same address; the kernel spreads connections over those of them that listen."""
    listener = socket.socket(address.family, address.type, address.proto)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(address.getsockname())
    return listener


def _start(settings: Settings, end: socket.socket, listener: socket.socket) -> subprocess.Popen[bytes]:
    """A front with these two sockets, which is told the settings: they hold secrets, so not in its arguments."""
    with os.fdopen(os.memfd_create("settings"), "w+b") as told:  # a pipe would keep this process until it is read
        told.write(msgspec.msgpack.encode(settings))
        told.seek(0)
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "qwen3vl_compat.server.front", str(end.fileno()), str(listener.fileno())],
            stdin=told,
            pass_fds=(end.fileno(), listener.fileno()),
            process_group=0,  # a terminal's Ctrl-C is for the process that was started; it tells the others
        )


def serve(settings: Settings, engine: Engine, address: socket.socket, started: Callable[[], None]) -> None:
    """Start the engine and `server.workers` fronts, which serve where `address` is bound until SIGTERM or SIGINT.

    Calls `started` once all take requests. Raises EngineUnusable, or SettingsError for what a front cannot start for.
    """
    # Only now: as long as it could not be shared, an address that is somebody else's was found to be taken.
    address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    async def run() -> None:
        await Fronts(settings, engine, address, started).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
