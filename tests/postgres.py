"""A real PostgreSQL, from Debian's packages, for the tests of one process: made in a second or two, gone at the end."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.settings import LedgerSettings

PASSWORD = "p@ss/w:rd-0123456789"
WRITTEN = "p%40ss%2Fw%3Ard-0123456789"
"""The password as it stands in a URL."""
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) + [
    Path(found) for found in [shutil.which("postgres")] if found
]
_numbers = count(1)


class Server:
    """A running server; each test has databases of its own in it."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        """`folder` is empty and the server's user may write in it; `durable` commits wait for the disk."""
        self._folder, self._bin, self._durable = folder, BINARIES[-1].parent, durable
        (folder / "password").write_text(PASSWORD)
        made = [self._bin / "initdb", "-D", folder / "data", "--username=accounts", f"--pwfile={folder / 'password'}"]
        made += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        os.chown(folder / "password", *_owner(folder))
        subprocess.run(_as_user(made), check=True, stdout=subprocess.DEVNULL, cwd=folder)
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start, on the same port as before; returns once it answers."""
        for _ in range(5):
            port = self.port or _free_port()
            command = [self._bin / "postgres", "-D", self._folder / "data", "-p", str(port), "-k", ""]
            command += [
                "-c",
                f"fsync={'on' if self._durable else 'off'}",
                "-c",
                "max_connections=60",
                "-c",
                "listen_addresses=127.0.0.1",
            ]
            with (self._folder / "log").open("ab") as log:
                self._process = subprocess.Popen(_as_user(command), stdout=log, stderr=log, cwd=self._folder)
            if self._answers(port):
                self.port = port
                return
        raise AssertionError((self._folder / "log").read_text())

    def stop(self) -> None:
        """End at once, cutting every connection."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)

    def url(self, database: str) -> str:
        """What an operator would set for it."""
        return f"postgresql://accounts:{WRITTEN}@127.0.0.1:{self.port}/{database}"

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser; returns its rows."""
        login = {"user": "accounts", "password": PASSWORD, "host": "127.0.0.1", "port": self.port}
        with closing(psycopg.connect(**login, dbname=database, autocommit=True)) as connection:  # type: ignore[arg-type]
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def database(self, options: str = "") -> Iterator[str]:
        """The name of a new database, dropped at the end."""
        name = f"test{next(_numbers)}"
        self.run(f"CREATE DATABASE {name} {options}")
        try:
            yield name
        finally:
            self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _answers(self, port: int) -> bool:
        end = time.monotonic() + 60
        login = f"host=127.0.0.1 port={port} user=accounts dbname=postgres connect_timeout=5"
        while self._process.poll() is None and time.monotonic() < end:
            try:
                psycopg.connect(login, password=PASSWORD).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return True
        return False


def _owner(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_uid, status.st_gid


def _as_user(command: list[object]) -> list[str]:
    """The command as a user that PostgreSQL accepts, which root is not; it ends when this process does."""
    setpriv = ["setpriv", "--pdeathsig=INT"]
    if os.geteuid() == 0:
        setpriv += ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
    return [*setpriv, *map(str, command)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for all tests of this process. Where the packages are missing its tests are skipped, but not in CI."""
    if not BINARIES:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed: install the package postgresql")
        pytest.skip("PostgreSQL is not installed")
    memory = Path("/dev/shm")  # where a database is made ten times faster
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    with running(memory if roomy else None) as server:
        yield server


@contextmanager
def running(place: Path | None = None, *, durable: bool = False) -> Iterator[Server]:
    """A server in a new folder at that place, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=place))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server = Server(folder, durable=durable)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_template(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database as a first start leaves it, made once: each test takes a copy."""
    with postgres.database() as name:
        open_database(tmp_path_factory.mktemp("new") / "state", LedgerSettings(url=postgres.url(name))).dispose()
        yield name


@pytest.fixture
def empty_postgres(postgres: Server) -> Iterator[LedgerSettings]:
    """Settings that name a database without tables."""
    with postgres.database() as name:
        yield LedgerSettings(url=postgres.url(name))


@pytest.fixture
def new_postgres(postgres: Server, postgres_template: str) -> Iterator[LedgerSettings]:
    """Settings that name a database as a first start leaves it."""
    with postgres.database(f"TEMPLATE {postgres_template}") as name:
        yield LedgerSettings(url=postgres.url(name))
