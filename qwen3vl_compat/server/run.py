"""The process: uvicorn with a graceful stop."""

import asyncio
import gc
import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from qwen3vl_compat.accounts.books import Accounts
from qwen3vl_compat.engines import Engine
from qwen3vl_compat.server.answer import Service
from qwen3vl_compat.server.app import build_app, build_service
from qwen3vl_compat.server.connection import with_patience
from qwen3vl_compat.server.door import refusal
from qwen3vl_compat.server.files import make_files
from qwen3vl_compat.settings import Settings

_YOUNG = 10_000
"""New objects after which the collector looks for dead ones among them."""


class _Server(uvicorn.Server):
    """uvicorn that drains on the first signal, listening all the while, and ends at once on the second."""

    def __init__(self, config: uvicorn.Config, service: Service, started: Callable[[], None], *, front: bool) -> None:
        """A `front` leaves it to the process with the engine to lose patience: a supervisor may signal both."""
        super().__init__(config)
        self._service, self._started, self._front = service, started, front
        self._loop = asyncio.get_running_loop()
        self._loaded = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Listen, so that probes are answered; load the model; then say so."""
        await super().startup(sockets)
        await self._service.start()
        self._loaded = True
        _spare_the_collector()
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. It is not kept to be raised again later: a drained server ends with status 0."""
        if self._front and self._service.lifecycle.draining:
            return
        if self._service.lifecycle.draining or not self._loaded:
            os._exit(1)  # a device in the middle of a long step would hold up any other end
        self._service.lifecycle.draining = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._draining = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        await self._service.lifecycle.drain(self._service.settings.server.grace)
        self.should_exit = True

    async def abandon(self) -> None:
        """Take no connection more, let what runs come to its end, which is near, and end."""
        for listening in self.servers:
            listening.close()
        await self._service.lifecycle.drain(1)
        self.should_exit = True


def _spare_the_collector() -> None:
    """What is there when serving begins stays to the end: walking it again and again would hold up all for 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)


async def serve_until(
    service: Service, listener: socket.socket, started: Callable[[], None], lost: asyncio.Event | None = None
) -> None:
    """Serve until a signal, or until the engine that a front has elsewhere is `lost`. Raises what `serve` does."""
    settings = service.settings
    config = uvicorn.Config(
        build_app(service),  # pyright: ignore[reportArgumentType]
        http=with_patience(settings.server.read_idle, refusal),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # uvicorn would take any local peer's word; the guard knows whose is to be taken
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,
    )
    server = _Server(config, service, started, front=lost is not None)

    async def abandon_when_lost() -> None:
        if lost is not None and await lost.wait():
            await server.abandon()

    watching = asyncio.create_task(abandon_when_lost())
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        await service.close()


async def _serve(
    settings: Settings,
    engine: Engine,
    accounts: Accounts,
    listener: socket.socket,
    started: Callable[[], None],
) -> None:
    service = build_service(settings, engine, accounts, files=make_files(settings, accounts.database))
    told = asyncio.Event()
    service.announced = told.is_set

    def announce() -> None:
        started()
        told.set()

    await serve_until(service, listener, announce)


def serve(
    settings: Settings,
    engine: Engine,
    accounts: Accounts,
    listener: socket.socket,
    started: Callable[[], None],
) -> None:
    """Start the engine and serve on `listener` until SIGTERM or SIGINT; calls `started` once requests are taken.

    Raises EngineUnusable, LedgerUnavailable or StoreUnusable if one of these cannot be had, or SettingsError.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, engine, accounts, listener, started))
