"""The database on a PostgreSQL server, reached through psycopg. Whatever the server does, no call waits for ever.

Writers take turns by an advisory lock for the length of their transaction, as they do in SQLite: so one rule holds for
both, none has to know which rows another locks, and no two can wait for each other.
"""

from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from qwen3vl_compat.accounts.installation import bring_up, check, make_folder, refuse_if_known, refuse_to_make
from qwen3vl_compat.accounts.migrations import REVISIONS
from qwen3vl_compat.accounts.schema import DatabaseUnusable, Place, revision
from qwen3vl_compat.settings import LedgerSettings

T = TypeVar("T")

_CONNECT_S = 5
_TURN_S = 5.0
_MIGRATION_TURN_S = 60.0
_STATEMENT_S = 10.0
"""Of a statement, waiting for the turn included."""
_MIGRATION_S = 600.0
_IDLE_S = 10
"""A process that stops in the middle of a transaction loses it after this long, so that others get their turn."""
_SILENCE_S = 5.0
"""So much longer than a statement may take, a server that says nothing is given up."""
_TURN = f"SELECT pg_advisory_xact_lock({int.from_bytes(b'qwen3vl')})"


def open_server(state_dir: Path, ledger: LedgerSettings, *, make: bool = True) -> Engine:
    """The engine on the database that `ledger.url` names, at the newest revision; its tables are made if it is new.

    Raises DatabaseUnusable for a server that cannot be used, and for a database that is not wholly ours.
    """
    url = _address(ledger.url)
    place = Place(
        f"The PostgreSQL database '{url.database or url.username or ''}' at {url.host or 'this machine'}",
        "restore it from a backup, or name an empty database in ledger.url",
    )
    try:
        engine = _engine(url, turn_s=_TURN_S, statement_s=_STATEMENT_S)
        try:
            with engine.connect() as connection:
                _refuse_unless_unicode(connection, place)
                found = revision(connection, place)
            if found is None and not make:
                refuse_to_make(state_dir, place, "is empty")
            make_folder(state_dir)
            if found != REVISIONS[-1]:
                _upgrade(url, state_dir, ledger.currency, place)
            with engine.connect() as connection:
                check(connection, state_dir, ledger.currency, place)
        finally:
            engine.dispose()
    except OSError as error:
        raise DatabaseUnusable(
            f"{error.filename or state_dir} cannot be used: {error.strerror or 'input/output error'}."
        ) from error
    except DBAPIError as error:
        raise DatabaseUnusable(_sentence(place, error, url.password)) from None
    return engine


def _address(text: str) -> URL:
    """The setting as an address for psycopg. Its faults are told without its words, which may be the password's."""
    try:
        if text.count("@") > 1:  # else a part of the password would be taken for the host, and shown
            raise ValueError
        return make_url(text).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        raise DatabaseUnusable(
            "ledger.url cannot be read: it is postgresql://user:password@host:port/name, and an @, / or : in the "
            "password is written %40, %2F or %3A."
        ) from None


def _refuse_unless_unicode(connection: Connection, place: Place) -> None:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise DatabaseUnusable(f"{place.name} keeps its text in {encoding}; make one with ENCODING 'UTF8'.")


def _upgrade(url: URL, state_dir: Path, currency: str, place: Place) -> None:
    """Apply what is missing in one transaction; a second process waits for its turn and then finds nothing to do."""
    engine = _engine(url, turn_s=_MIGRATION_TURN_S, statement_s=_MIGRATION_S)
    try:
        options = {"writes": True, "isolation_level": "READ COMMITTED"}
        with engine.execution_options(**options).begin() as connection:
            if revision(connection, place) is None:
                refuse_if_known(state_dir, place, "is empty")
            bring_up(connection, state_dir, currency)
    finally:
        engine.dispose()


class _Connection(psycopg.Connection[Any]):
    """A connection that gives up a server which takes a statement and then says nothing."""

    patience_s: float

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Do a step of the protocol within `patience_s` seconds."""
        try:
            return super().wait(gen, interval, timeout or self.patience_s)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError("the server does not answer") from None


def _engine(url: URL, *, turn_s: float, statement_s: float) -> Engine:
    """An engine whose waits all end: for a connection, for a writer's turn, for a statement and for the network."""
    limits = {
        "lock_timeout": turn_s,
        "statement_timeout": statement_s,
        "idle_in_transaction_session_timeout": _IDLE_S,
    }
    options = " ".join(f"-c {name}={round(seconds * 1000)}" for name, seconds in limits.items())
    given = url.query.get("options", "")
    arguments = {
        "connect_timeout": _CONNECT_S,
        "tcp_user_timeout": _CONNECT_S * 1000,
        "target_session_attrs": "read-write",
        "client_encoding": "utf8",
        "application_name": "qwen3vl-compat",
        "options": f"{options} {given}",
    }
    engine = create_engine(
        url,
        connect_args=arguments,
        isolation_level="REPEATABLE READ",
        pool_pre_ping=True,
        pool_timeout=_CONNECT_S,
        hide_parameters=True,
    )

    def connect(dialect: object, record: object, given: list[Any], named: dict[str, Any]) -> _Connection:
        connection = _Connection.connect(*given, **named)
        connection.patience_s = statement_s + _SILENCE_S
        return connection

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    """Wait for a writer's turn; the end of its transaction, or of its process, passes it on."""
    if connection.get_execution_options().get("writes", False):
        connection.exec_driver_sql(_TURN)


def _sentence(place: Place, error: DBAPIError, password: object) -> str:
    """What the server, or the way to it, found wrong, said once."""
    lines = str(error.orig).strip().splitlines() or ["no reason was given"]
    cause = lines[0].rpartition("FATAL:")[2].rpartition("failed: ")[2].strip().rstrip(".")
    if password and str(password) in cause:
        cause = "the address was not understood"
    return f"{place.name} cannot be used: {cause}."
