"""The one database of accounts, a file in the state folder or a PostgreSQL server's: opened here, whichever it is."""

from pathlib import Path

from sqlalchemy import Engine, exc

from qwen3vl_compat.accounts.schema import DatabaseUnusable
from qwen3vl_compat.accounts.sqlite import open_file
from qwen3vl_compat.settings import LedgerSettings

__all__ = ["DatabaseUnusable", "is_lost", "open_database", "writing"]

_USUAL = LedgerSettings()
_PASSING = frozenset({"08", "25", "40", "53", "55", "57", "58"})
"""Classes of PostgreSQL's error codes that pass by themselves or by an operator's hand: connection, transaction state
(read-only), rollback, resources, object not ready (locks), intervention, system."""


def open_database(state_dir: Path, ledger: LedgerSettings = _USUAL, *, make: bool = True) -> Engine:
    """The engine on the accounts at the newest revision; a database that was never there is made, or else refused.

    Safe when several processes start at once. Each transaction reads the database as it was at one moment; one that
    also writes is begun on `writing(engine)`. Raises DatabaseUnusable.
    """
    folder = state_dir.absolute()
    if not ledger.url:
        return open_file(folder, ledger, make=make)
    try:
        from qwen3vl_compat.accounts.postgres import open_server
    except ImportError:
        raise DatabaseUnusable("ledger.url needs psycopg: install qwen3vl-compat[postgres].") from None
    return open_server(folder, ledger, make=make)


def is_lost(error: exc.SQLAlchemyError) -> bool:
    """Whether the database could not be reached, did not answer in time or takes no writes now: nobody's mistake."""
    if isinstance(error, exc.DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        if error.connection_invalidated or state[:2] in _PASSING:
            return True
    return isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError)


def writing(engine: Engine) -> Engine:
    """The same engine and pool, whose transactions of all processes come one after the other (for read, then write)."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(writes=True)
    # So that what is read once the turn has come is what the one before has written.
    return engine.execution_options(writes=True, isolation_level="READ COMMITTED")
