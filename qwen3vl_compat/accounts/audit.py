"""Who changed what. A change notes itself in its own transaction: there is none without its row, and no row without."""

import builtins
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Engine, RowMapping, insert, select

from qwen3vl_compat.accounts.tables import audit

COMMAND_LINE = "command line"
"""The actor of what is done there; any other is an admin key's public part."""


class Note(Struct, frozen=True, kw_only=True):
    """A change: when (milliseconds since 1970), by whom, what, to what, and its values, none of them secret."""

    at: int
    actor: str
    action: str
    object: str
    details: dict[str, Any]
    """As JSON holds it; times in seconds since 1970, money as decimal text."""


class Entry(Note, frozen=True, kw_only=True):
    """A row of the audit."""

    id: int


def append(connection: Connection, note: Note) -> None:
    """Add a row, in the transaction of the change it tells of."""
    values = msgspec.structs.asdict(note) | {"details": msgspec.json.encode(note.details).decode()}
    connection.execute(insert(audit).values(values))


class Audit:
    """The rows of one database. Calls are short and synchronous, and may come from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list(self, *, after: int | None = None, limit: int | None = None) -> builtins.list[Entry]:
        """The newest first; `after` is the id of the last one seen."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(audit.c.id < after)
        with self._engine.connect() as connection:
            return [_entry(row) for row in connection.execute(query).mappings()]


def _entry(row: RowMapping) -> Entry:
    details = msgspec.json.decode(row["details"], type=dict[str, Any])
    return Entry(**{name: row[name] for name in Entry.__struct_fields__ if name != "details"}, details=details)
