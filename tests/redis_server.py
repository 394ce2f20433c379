"""A real redis-server of the tests' own: on a free port, without persistence, gone at the end."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import redis


class RedisServer:
    """A server that can be stopped, killed and started again at the same address."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start, empty, with options as of redis.conf; returns when it answers."""
        listening = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(["redis-server", *listening, *options], stdout=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while True:
            try:
                self.command("PING")
                return
            except redis.ConnectionError:
                assert self._process.poll() is None, "redis-server ended"
                assert time.monotonic() < end, "redis-server does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def process(self) -> psutil.Process:
        """The running process, to be suspended and resumed."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def command(self, *words: str | int) -> object:
        """What a command answers."""
        with redis.Redis(port=self.port, decode_responses=True, socket_timeout=30) as client:
            return client.execute_command(*words)


@contextmanager
def running(*options: str) -> Iterator[RedisServer]:
    """A server of its own. Without redis-server the test is skipped; where CI is set, it fails."""
    if shutil.which("redis-server") is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    server = RedisServer()
    server.start(*options)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for the whole run; a test that uses it empties it first."""
    with running() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that the test may stop and start."""
    with running() as server:
        yield server
