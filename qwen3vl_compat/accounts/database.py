"""The one database of accounts, a file in the state folder or a PostgreSQL server's: opened here, whichever it is."""

from pathlib import Path

from sqlalchemy import Engine, exc

from qwen3vl_compat.accounts.schema import DatabaseUnusable
from qwen3vl_compat.accounts.sqlite import open_file
from qwen3vl_compat.settings import LedgerSettings

__all__ = ["DatabaseUnusable", "is_lost", "open_database", "writing"]

_USUAL = LedgerSettings()


def open_database(state_dir: Path, ledger: LedgerSettings = _USUAL) -> Engine:
    """The engine on the accounts at the newest revision; a database that was never there is made.

    Safe when several processes start at once. Each transaction reads the database as it was at one moment; one that
    also writes is begun on `writing(engine)`. Raises DatabaseUnusable.
    """
    folder = state_dir.absolute()
    if not ledger.url:
        return open_file(folder, ledger)
    try:
        from qwen3vl_compat.accounts.postgres import open_server
    except ImportError:
        raise DatabaseUnusable("ledger.url needs psycopg: install qwen3vl-compat[postgres].") from None
    return open_server(folder, ledger)


def is_lost(error: exc.SQLAlchemyError) -> bool:
    """Whether the database could not be reached or did not answer in time, which is nobody's mistake."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, exc.OperationalError | exc.InterfaceError | exc.TimeoutError)


def writing(engine: Engine) -> Engine:
    """The same engine and pool, whose transactions of all processes come one after the other (for read, then write)."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(writes=True)
    # So that what is read once the turn has come is what the one before has written.
    return engine.execution_options(writes=True, isolation_level="READ COMMITTED")
