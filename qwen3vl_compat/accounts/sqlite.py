"""The database as one file: made on the first start, refused when it is not whole.

A new database is built under another name and renamed into place, so a file called `qwen3vl.db` is always complete: one
that is empty, cut off, damaged or somebody else's is never ours to fill, and is refused instead.
"""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from qwen3vl_compat.accounts.installation import (
    MARKER,
    alone_in,
    bring_up,
    check,
    make_folder,
    refuse_if_known,
    refuse_to_make,
)
from qwen3vl_compat.accounts.migrations import REVISIONS
from qwen3vl_compat.accounts.schema import DatabaseUnusable, Place, revision
from qwen3vl_compat.accounts.tables import keys, tenants
from qwen3vl_compat.settings import LedgerSettings

FILE = "qwen3vl.db"

_CHECKED = (tenants.name, keys.name)
"""Tables read through at every start; they are small. The rest of the file is checked as SQLite comes across it."""
_WAIT_S = 5.0
SOON_S, LOOK_S = 0.05, 0.0002
"""Who wants to write looks so often whether it can, for so long."""
_MIGRATION_WAIT_S = 60.0
_SMALLEST = 512
"""Bytes of the smallest SQLite database there can be."""
_ADVICE = f"restore it from a backup, or move it and the file {MARKER} away to start with an empty one"


def open_file(state_dir: Path, ledger: LedgerSettings, *, make: bool = True) -> Engine:
    """The engine on `state_dir`/qwen3vl.db at the newest revision; file (0600) and folder (0700) made if new.

    Raises DatabaseUnusable for anything there that is not a whole database of this or an earlier version.
    """
    path = state_dir / FILE
    try:
        if not os.path.lexists(path):
            if not make:
                refuse_to_make(state_dir, _place(path), "is not there")
            _create(path, ledger.currency)
        _refuse_unless_whole(path)
        engine = _engine(path, ledger.synchronous, wait_s=_WAIT_S)
        try:
            if _examine(engine, path) != REVISIONS[-1]:
                _upgrade(path, state_dir, ledger.currency)
            with engine.connect() as connection:
                check(connection, state_dir, ledger.currency, _place(path))
        finally:
            engine.dispose()
    except OSError as error:
        raise DatabaseUnusable(
            f"{error.filename or path} cannot be used: {error.strerror or 'input/output error'}."
        ) from error
    except (sqlite3.Error, DBAPIError) as error:
        raise DatabaseUnusable(_sentence(path, error)) from error
    return engine


def _place(path: Path) -> Place:
    return Place(str(path), _ADVICE)


def _create(path: Path, currency: str) -> None:
    """Build a new database beside `path` and rename it into place, unless another process just did."""
    make_folder(path.parent)
    with alone_in(path.parent) as folder:
        if os.path.lexists(path):
            return
        for log in (path.with_name(f"{FILE}-wal"), path.with_name(f"{FILE}-journal")):
            if log.exists():
                raise DatabaseUnusable(f"{path} is gone but its log {log.name} is still there; {_ADVICE}.")
        refuse_if_known(path.parent, _place(path), "is gone")
        for leftover in path.parent.glob(f"{FILE}.new*"):
            leftover.unlink()
        fresh = path.with_name(f"{FILE}.new")
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _use_wal(fresh)
        _upgrade(fresh, path.parent, currency)
        fresh.rename(path)
        os.fsync(folder)


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


def _examine(engine: Engine, path: Path) -> str:
    """The revision the file is at, once it has proved to be ours, undamaged and not from the future."""
    with engine.connect() as connection:
        found = revision(connection, _place(path))
        if found is None:
            raise DatabaseUnusable(f"{path} has no tables, which no database of ours ever is without; {_ADVICE}.")
        for table in _CHECKED:
            if connection.exec_driver_sql(f"PRAGMA integrity_check('{table}')").scalar() != "ok":
                raise DatabaseUnusable(f"{path} is damaged: table {table} does not read back whole; {_ADVICE}.")
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    if mode != "wal":
        engine.dispose()
        _use_wal(path)
    return found


def _use_wal(path: Path) -> None:
    """Switch the file to write-ahead logging, which stays with it."""
    with closing(_connect(path, wait_s=_WAIT_S)) as connection:
        if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise DatabaseUnusable(f"{path} lies on a file system without write-ahead logging; choose a local folder.")


def _upgrade(path: Path, state_dir: Path, currency: str) -> None:
    """Apply what is missing in one transaction; a second process waits for it and then finds nothing to do."""
    engine = _engine(path, "FULL", wait_s=_MIGRATION_WAIT_S, foreign_keys=False)
    try:
        with engine.execution_options(writes=True).begin() as connection:
            bring_up(connection, state_dir, currency)
            if connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise DatabaseUnusable(f"{path} is damaged: a row names another that is not there; {_ADVICE}.")
    finally:
        engine.dispose()


def _engine(path: Path, synchronous: str, *, wait_s: float, foreign_keys: bool = True) -> Engine:
    """An engine whose connections are set up by `_connect` and whose transactions really begin with BEGIN.

    A connection to a file that was since moved, deleted or replaced is not used again: SQLite would write on there.
    """

    def connect() -> sqlite3.Connection:
        connection = _connect(path, wait_s=wait_s)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        connection.execute("PRAGMA recursive_triggers=ON")  # so that REPLACE cannot pass over them
        connection.execute("PRAGMA temp_store=MEMORY")  # what may have to be undone of a statement is no file
        return connection

    engine = create_engine(URL.create("sqlite", database=str(path)), creator=connect, hide_parameters=True)
    event.listen(engine, "begin", _begin)

    def note_file(_: object, record: ConnectionPoolEntry) -> None:
        record.info["file"] = _identity(path)

    def check_file(_: object, record: ConnectionPoolEntry, __: object) -> None:
        if record.info["file"] != _identity(path):
            raise DisconnectionError(f"{path} is not the file that was opened")

    event.listen(engine, "connect", note_file)
    event.listen(engine, "checkout", check_file)
    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells this file from another of its name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _begin(connection: Connection) -> None:
    """Begin for SQLAlchemy, since the connections are in autocommit mode; DDL is then transactional too."""
    held = connection.connection.driver_connection
    assert isinstance(held, _Connection)
    if not connection.get_execution_options().get("writes", False):
        held.be_patient(True)
        connection.exec_driver_sql("BEGIN")
    elif not _begin_soon(held):
        held.be_patient(True)
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_soon(held: "_Connection") -> bool:
    """Begin to write within SOON_S; False if others write all the while.

    SQLite itself would look again after 1, 3 and 8 ms and so on, which is many times what a transaction takes.
    """
    held.be_patient(False)  # nothing is waited for within a transaction that has begun to write
    end = time.monotonic() + SOON_S
    while True:
        try:
            held.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                return False  # once more, so that it fails as anything else does
            time.sleep(LOOK_S)
        else:
            return True


class _Connection(sqlite3.Connection):
    """A connection that waits for locks, or does not."""

    wait_s = 0.0
    _patient = True

    def be_patient(self, patient: bool) -> None:
        """Wait for locks, or fail at once."""
        if patient != self._patient:
            self.execute(f"PRAGMA busy_timeout={int(self.wait_s * 1000) if patient else 0}")
            self._patient = patient


def _connect(path: Path, *, wait_s: float) -> _Connection:
    """A connection to an existing file (a vanished one is an error, never a new one), waiting `wait_s` for locks."""
    address = f"file:{quote(str(path))}?mode=rw"
    connection = sqlite3.connect(
        address, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False, factory=_Connection
    )
    connection.wait_s = wait_s
    return connection


def _sentence(path: Path, error: sqlite3.Error | DBAPIError) -> str:
    """What SQLite found wrong, said once."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if getattr(cause, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"{path} is damaged: {cause}; {_ADVICE}."
    return f"{path} cannot be used: {cause}."
