"""SQLAlchemy's statements put into the driver's words once: the ledger runs a handful of them all the time.

They run on the driver's own cursor, inside of SQLAlchemy's transaction, and raise what SQLAlchemy would. Each step of
SQLite's driver gives the interpreter's lock away and waits for it again, beside a busy loop; many rows are one step.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement

Row = dict[str, Any]
_AT_ONCE = 64
"""Rows of one statement. 32 columns of them are far below what SQLite takes (32,766 values)."""


class Statement:
    """Runs with rows of plain values, which both drivers take as they are: nothing is converted for them."""

    def __init__(self, construct: ClauseElement) -> None:
        self._construct = construct
        self._known: dict[str, _Compiled] = {}

    def run(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Execute once for each row."""
        name = connection.dialect.name
        compiled = self._known.get(name)
        if compiled is None:
            compiled = self._known[name] = _Compiled(self._construct, connection.dialect)
        parameters = compiled.parameters(rows)
        _with_cursor(connection, lambda cursor: cursor.executemany(compiled.text, parameters))


class Values:
    """A statement with a list of values between `head` and `tail`: one step of the driver for many rows."""

    def __init__(self, head: str, columns: int, tail: str = "") -> None:
        """`columns` is the number of a row's values."""
        self._head, self._columns, self._tail = head, columns, tail

    def run(self, connection: Connection, rows: Sequence[Sequence[object]]) -> None:
        """Execute for all rows."""
        place = _place(connection, self._columns)
        for begin in range(0, len(rows), _AT_ONCE):
            some = rows[begin : begin + _AT_ONCE]
            query = _selection(self._head, place, len(some), self._tail)
            parameters = tuple([each for row in some for each in row])
            _with_cursor(connection, lambda cursor: cursor.execute(query, parameters))  # noqa: B023 -- called at once


class _Compiled:
    def __init__(self, construct: ClauseElement, dialect: Dialect) -> None:
        compiled = construct.compile(dialect=dialect)
        self.text = str(compiled)
        self._order: list[str] | None = getattr(compiled, "positiontup", None)

    def parameters(self, rows: Sequence[Row]) -> Any:
        """The rows as the driver has them: in the order of its question marks, or by name."""
        order = self._order
        return [tuple([row[name] for name in order]) for row in rows] if order is not None else list(rows)


def locked(connection: Connection, what: str, table: str, key: str, values: Sequence[tuple[object, ...]]) -> list[Any]:
    """Rows by their keys, in order, which nobody else changes until the end of the transaction."""
    where = f"FROM {table} WHERE ({key}) IN (VALUES "
    parameters, place = tuple([each for value in values for each in value]), _place(connection, len(values[0]))
    if connection.dialect.name == "sqlite":  # where who may write has locked all; and all are one row
        query = _selection(f"SELECT json_group_array(json_array({what})) {where}", place, len(values), ")")
        (told,) = _with_cursor(connection, lambda cursor: cursor.execute(query, parameters).fetchone())
        return msgspec.json.decode(told)
    query = _selection(f"SELECT {what} {where}", place, len(values), f") ORDER BY {key} FOR UPDATE")
    return _with_cursor(connection, lambda cursor: cursor.execute(query, parameters).fetchall())


def _place(connection: Connection, number: int) -> str:
    """The places of one row's values."""
    return "(" + ", ".join(["?" if connection.dialect.paramstyle == "qmark" else "%s"] * number) + ")"


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
