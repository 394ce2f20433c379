"""SQLAlchemy's statements put into the driver's words once: the ledger runs a handful of them all the time.

They run on the driver's own cursor, inside of SQLAlchemy's transaction, and raise what SQLAlchemy would.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement

Row = dict[str, Any]


class Statement:
    """Runs with rows of plain values, which both drivers take as they are: nothing is converted for them."""

    def __init__(self, construct: ClauseElement, *columns: str) -> None:
        """`columns` are those of an insert."""
        self._construct, self._columns = construct, columns
        self._known: dict[str, _Compiled] = {}

    def run(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Execute once for each row."""
        name = connection.dialect.name
        compiled = self._known.get(name)
        if compiled is None:
            compiled = self._known[name] = _Compiled(self._construct, connection.dialect, self._columns)
        parameters = compiled.parameters(rows)
        _with_cursor(connection, lambda cursor: cursor.executemany(compiled.text, parameters))


class _Compiled:
    def __init__(self, construct: ClauseElement, dialect: Dialect, columns: Sequence[str]) -> None:
        compiled = construct.compile(dialect=dialect, column_keys=list(columns) or None)
        self.text = str(compiled)
        self._order: list[str] | None = getattr(compiled, "positiontup", None)

    def parameters(self, rows: Sequence[Row]) -> Any:
        """The rows as the driver has them: in the order of its question marks, or by name."""
        order = self._order
        return [tuple([row[name] for name in order]) for row in rows] if order is not None else list(rows)


def locked(connection: Connection, what: str, table: str, key: str, values: Sequence[tuple[object, ...]]) -> list[Any]:
    """Rows by their keys, in order, which nobody else changes until the end of the transaction."""
    positional = connection.dialect.paramstyle == "qmark"
    place = "(" + ", ".join(["?" if positional else "%s"] * len(values[0])) + ")"
    ending = "" if connection.dialect.name == "sqlite" else " FOR UPDATE"
    head, tail = f"SELECT {what} FROM {table} WHERE ({key}) IN (VALUES ", f") ORDER BY {key}{ending}"  # noqa: S608 -- ours
    query, parameters = _selection(head, place, len(values), tail), tuple(each for value in values for each in value)
    return _with_cursor(connection, lambda cursor: cursor.execute(query, parameters).fetchall())


def _with_cursor(connection: Connection, work: Callable[[Any], Any]) -> Any:
    """Do something with the driver's cursor. Raises SQLAlchemy's errors; a connection that is lost is given up."""
    dialect, fairy = connection.dialect, connection.connection
    cursor = fairy.cursor()
    try:
        return work(cursor)
    except dialect.loaded_dbapi.Error as error:
        lost = dialect.is_disconnect(error, fairy.dbapi_connection, cursor)  # pyright: ignore[reportArgumentType]
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            None,
            None,
            error,
            dialect.loaded_dbapi.Error,
            hide_parameters=True,
            connection_invalidated=lost,
            dialect=dialect,
        ) from error
    finally:
        cursor.close()


@lru_cache(256)
def _selection(head: str, place: str, number: int, tail: str) -> str:
    return head + ", ".join([place] * number) + tail
