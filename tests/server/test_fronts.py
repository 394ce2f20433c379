"""The process that starts the fronts: what it does where one does not do its part."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.server.fronts import Fronts, _start
from qwen3vl_compat.settings import ModerationSettings, ModeratorSettings, ServerSettings, Settings

LARGE = Settings(
    moderation=ModerationSettings(
        moderators=(ModeratorSettings(kind="words", words={"a": tuple(f"word{number}" for number in range(50_000))}),)
    )
)
"""Half a megabyte."""


@pytest.fixture
def address() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("127.0.0.1", 0))
        yield made


def test_nobody_waits_until_a_front_has_read_its_settings(
    address: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are; one that hangs would hold up the engine and all others."""
    program, go, said = tmp_path / "program", tmp_path / "go", tmp_path / "said"
    program.write_text(f"#!/bin/sh\nuntil [ -e {go} ]; do sleep 0.05; done\ncat > {said}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    started: list[subprocess.Popen[bytes]] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        starting = threading.Thread(target=lambda: started.append(_start(LARGE, theirs, address)))
        starting.start()
        starting.join(20)
        waited = starting.is_alive()
        go.touch()
        starting.join(20)
    assert started[0].wait(20) == 0
    assert not waited
    assert msgspec.msgpack.decode(said.read_bytes(), type=Settings) == LARGE


class Closing(ScriptedEngine):
    closed = False

    async def close(self) -> None:
        self.closed = True


async def test_the_engine_is_closed_whatever_becomes_of_the_fronts(
    address: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours, as it stands for any; nobody is told that requests are taken."""
    monkeypatch.setattr(sys, "executable", "no\0program")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    engine, told = Closing(), list[str]()
    settings = Settings(server=ServerSettings(workers=2))
    try:
        with pytest.raises(ValueError, match="null byte"):
            await asyncio.wait_for(Fronts(settings, engine, address, lambda: told.append("started")).run(), 30)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (engine.closed, told) == (True, [])
