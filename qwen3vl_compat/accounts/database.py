"""The one database file: made on the first start, brought up to date on the next ones, refused when it is not whole.

A new database is built under another name and renamed into place, so a file called `qwen3vl.db` is always complete: one
that is empty, cut off, damaged or somebody else's is never ours to fill, and is refused instead.
"""

import fcntl
import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from qwen3vl_compat.accounts.migrations import REVISIONS, upgrade
from qwen3vl_compat.accounts.tables import keys, metadata, tenants

FILE = "qwen3vl.db"
Synchronous = Literal["NORMAL", "FULL"]

_CHECKED = (tenants.name, keys.name)
"""Tables read through at every start; they are small. The rest of the file is checked as SQLite comes across it."""
_WAIT_S = 5.0
_MIGRATION_WAIT_S = 60.0
_SMALLEST = 512
"""Bytes of the smallest SQLite database there can be."""
_ADVICE = "restore it from a backup, or move it away to start with an empty one"


class DatabaseUnusable(Exception):
    """The database cannot be used as it lies there; the message is one plain sentence for the operator."""


def open_database(state_dir: Path, *, synchronous: Synchronous = "NORMAL") -> Engine:
    """The engine on `state_dir`/qwen3vl.db at the newest revision; folder (mode 0700) and file (0600) made if absent.

    WAL with synchronous=NORMAL survives `kill -9`, FULL also a power cut. Safe when several processes start at once.
    Raises DatabaseUnusable for anything there that is not a whole database of this or an earlier version.
    """
    path = state_dir.absolute() / FILE
    try:
        if not os.path.lexists(path):
            _create(path)
        _refuse_unless_whole(path)
        if _examine(path) != REVISIONS[-1]:
            _upgrade(path)
    except OSError as error:
        raise DatabaseUnusable(
            f"{error.filename or path} cannot be used: {error.strerror or 'input/output error'}."
        ) from error
    except (sqlite3.Error, DBAPIError) as error:
        raise DatabaseUnusable(_sentence(path, error)) from error
    return _engine(path, synchronous)


def writing(engine: Engine) -> Engine:
    """The same engine and pool, whose transactions take SQLite's write lock at their start (for read, then write)."""
    return engine.execution_options(writes=True)


def _create(path: Path) -> None:
    """Build a new database beside `path` and rename it into place, unless another process just did."""
    _make_folder(path.parent)
    with _alone_in(path.parent) as folder:
        if os.path.lexists(path):
            return
        for log in (path.with_name(f"{FILE}-wal"), path.with_name(f"{FILE}-journal")):
            if log.exists():
                raise DatabaseUnusable(f"{path} is gone but its log {log.name} is still there; {_ADVICE}.")
        for leftover in path.parent.glob(f"{FILE}.new*"):
            leftover.unlink()
        fresh = path.with_name(f"{FILE}.new")
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _use_wal(fresh)
        _upgrade(fresh)
        fresh.rename(path)
        os.fsync(folder)


def _make_folder(folder: Path) -> None:
    """Make the folder, for its owner only; one that was there and is another's or holds things keeps its mode."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == os.geteuid() and not any(folder.iterdir()):
        folder.chmod(0o700)


@contextmanager
def _alone_in(folder: Path) -> Generator[int]:
    """Hold the folder's advisory lock; gives its open descriptor. A killed process lets go by itself."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_unless_whole(path: Path) -> None:
    """Raise DatabaseUnusable for an empty file, another kind of file, or one shorter than its own header says."""
    with path.open("rb") as file:
        header = file.read(100)
    if not header:
        raise DatabaseUnusable(f"{path} is empty (0 bytes), which no database of ours ever is; {_ADVICE}.")
    if header[:16] != b"SQLite format 3\0":
        raise DatabaseUnusable(f"{path} is not an SQLite database; {_ADVICE}.")
    if _size(path.with_name(f"{FILE}-wal")):
        return  # pages may still wait in the log: SQLite, which reads both, judges the length itself
    page = int.from_bytes(header[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if path.stat().st_size < max(expected, _SMALLEST):
        raise DatabaseUnusable(f"{path} is cut off: it ends before its own header says; {_ADVICE}.")


def _size(path: Path) -> int:
    """Bytes in a file that another process may remove at any moment; 0 when it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _examine(path: Path) -> str:
    """The revision the file is at, once it has proved to be ours, undamaged and not from the future."""
    with closing(_connect(path, wait_s=_WAIT_S)) as connection:
        found = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" not in found:
            raise DatabaseUnusable(f"{path} is a database of another program; {_ADVICE}.")
        revisions = [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
        if len(revisions) != 1:
            raise DatabaseUnusable(f"{path} is damaged: it does not say which version it is; {_ADVICE}.")
        if revisions[0] not in REVISIONS:
            raise DatabaseUnusable(
                f"{path} was written by a newer version of this program (revision {revisions[0]}, known here up to "
                f"{REVISIONS[-1]}); start that version, or restore a backup made before it."
            )
        missing = metadata.tables.keys() - found
        if missing and revisions[0] == REVISIONS[-1]:
            raise DatabaseUnusable(f"{path} is damaged: table {min(missing)} is missing; {_ADVICE}.")
        for table in _CHECKED:
            if table in found and connection.execute(f"PRAGMA integrity_check('{table}')").fetchone() != ("ok",):
                raise DatabaseUnusable(f"{path} is damaged: table {table} does not read back whole; {_ADVICE}.")
        mode = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != ("wal",):
        _use_wal(path)
    return revisions[0]


def _use_wal(path: Path) -> None:
    """Switch the file to write-ahead logging, which stays with it."""
    with closing(_connect(path, wait_s=_WAIT_S)) as connection:
        if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise DatabaseUnusable(f"{path} lies on a file system without write-ahead logging; choose a local folder.")


def _upgrade(path: Path) -> None:
    """Apply what is missing in one transaction; a second process waits for it and then finds nothing to do."""
    engine = _engine(path, "FULL", wait_s=_MIGRATION_WAIT_S, foreign_keys=False)
    try:
        with writing(engine).begin() as connection:
            upgrade(connection)
            if connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise DatabaseUnusable(f"{path} is damaged: a row names another that is not there; {_ADVICE}.")
    finally:
        engine.dispose()


def _engine(path: Path, synchronous: Synchronous, *, wait_s: float = _WAIT_S, foreign_keys: bool = True) -> Engine:
    """An engine whose connections are set up by `_connect` and whose transactions really begin with BEGIN."""

    def connect() -> sqlite3.Connection:
        connection = _connect(path, wait_s=wait_s)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        return connection

    engine = create_engine(URL.create("sqlite", database=str(path)), creator=connect, hide_parameters=True)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    """Begin for SQLAlchemy, since the connections are in autocommit mode; DDL is then transactional too."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _connect(path: Path, *, wait_s: float) -> sqlite3.Connection:
    """A connection to an existing file (a vanished one is an error, never a new one), waiting `wait_s` for locks."""
    address = f"file:{quote(str(path))}?mode=rw"
    return sqlite3.connect(address, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False)


def _sentence(path: Path, error: sqlite3.Error | DBAPIError) -> str:
    """What SQLite found wrong, said once."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"{path} is damaged: {cause}; {_ADVICE}."
    return f"{path} cannot be used: {cause}."
