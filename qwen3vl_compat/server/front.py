"""A front: a process that takes requests, and has them answered by the one with the engine. `fronts` starts it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import uvloop
from prometheus_client.metrics_core import Metric
from sqlalchemy.exc import OperationalError

from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.database import DatabaseUnusable
from qwen3vl_compat.accounts.ledger import LedgerUnavailable
from qwen3vl_compat.cli_options import database_of
from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.engines.remote import RemoteEngine
from qwen3vl_compat.media.store import StoreUnusable
from qwen3vl_compat.server.app import build_service
from qwen3vl_compat.server.figures import Figures, Told
from qwen3vl_compat.server.files import make_files
from qwen3vl_compat.server.fronts import Happened, Refused, Serving, Words
from qwen3vl_compat.server.log import begin_log
from qwen3vl_compat.server.run import serve_until
from qwen3vl_compat.settings import Settings, SettingsError

ALONE_S = 10
"""A front does not live longer than this without the process with the engine, whatever it waits for."""

_REFUSALS = (SettingsError, DatabaseUnusable, LedgerUnavailable, StoreUnusable, OperationalError)
"""What an operator can put right."""


class Reported(Figures):
    """What is told of this front: kept by the process with the engine, which tells the sum of all fronts."""

    def __init__(self, engine: RemoteEngine, settings: Settings) -> None:
        super().__init__(settings)
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._unsaid: list[Told] = []

    def add(self, told: Told) -> None:
        """Report it, with what else happens meanwhile, as rows that are closed in the same transaction."""
        with self._lock:
            self._unsaid.append(told)
            if len(self._unsaid) > 1:
                return
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._report)

    def _report(self) -> None:
        with self._lock:
            told, self._unsaid = self._unsaid, []
        _say(self._engine, Happened(tuple(told)))

    def collect(self) -> Iterator[Metric]:
        """Nothing: it is told with the engine's figures."""
        return iter(())


def _say(engine: RemoteEngine, words: Words) -> None:
    engine.say(msgspec.msgpack.encode(words))


async def _serve(settings: Settings, engine: RemoteEngine, listener: socket.socket) -> None:
    accounts = open_accounts(database_of(settings), settings)
    service = build_service(settings, engine, accounts, files=make_files(settings, accounts.database))
    service.figures = Reported(engine, settings)
    service.announced = lambda: engine.announced
    await serve_until(service, listener, lambda: _say(engine, Serving()), engine.lost)


async def _run(settings: Settings, end: socket.socket, listener: socket.socket) -> int:
    """The status to end with."""
    try:
        engine = await RemoteEngine.connect(end)
    except EngineUnusable:
        return 1

    async def limit_life() -> None:
        await engine.lost.wait()
        signal.alarm(ALONE_S)

    limiting = asyncio.create_task(limit_life())
    try:
        await _serve(settings, engine, listener)
    except EngineUnusable:  # whoever has the engine has said why
        return 1
    except _REFUSALS as error:
        _say(engine, Refused(str(error).partition("\n")[0]))
        return 1
    finally:
        limiting.cancel()
        await engine.disconnect()
    return 0


def main() -> None:
    """Run as `python -m qwen3vl_compat.server.front SOCKET LISTENER`, with the settings on standard input."""
    end, listener = (socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[1:3])
    for each in (end, listener):
        os.set_inheritable(each.fileno(), False)
    said = sys.stdin.buffer.read()
    os.ftruncate(sys.stdin.fileno(), 0)  # a file of its own: what this starts finds no secrets there
    settings = msgspec.msgpack.decode(said, type=Settings)
    begin_log(settings.log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_run(settings, end, listener))
    sys.exit(status)


if __name__ == "__main__":
    main()
