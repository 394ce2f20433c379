"""Whether a database is ours, whole, and of which revision: the same questions of SQLite and of PostgreSQL."""

from msgspec import Struct
from sqlalchemy import Connection, inspect, text

from qwen3vl_compat.accounts.migrations import REVISIONS
from qwen3vl_compat.accounts.tables import metadata

_REVISIONS_APPLIED = text("SELECT version_num FROM alembic_version")


class DatabaseUnusable(Exception):
    """The database cannot be used as it is; the message is one plain sentence for the operator, without a password."""


class Place(Struct, frozen=True):
    """What sentences call a database, and what they advise where it is not whole."""

    name: str
    advice: str


def revision(connection: Connection, place: Place) -> str | None:
    """The revision the database is at, None where it has no tables at all.

    Raises DatabaseUnusable for another program's database, a damaged one, and one of a newer version of this program.
    """
    found = set(inspect(connection).get_table_names())
    if not found:
        return None
    if "alembic_version" not in found:
        raise DatabaseUnusable(f"{place.name} is a database of another program; {place.advice}.")
    applied = list(connection.execute(_REVISIONS_APPLIED).scalars())
    if len(applied) != 1:
        raise DatabaseUnusable(f"{place.name} is damaged: it does not say which version it is; {place.advice}.")
    if applied[0] not in REVISIONS:
        raise DatabaseUnusable(
            f"{place.name} was written by a newer version of this program (revision {applied[0]}, known here up to "
            f"{REVISIONS[-1]}); start that version, or restore a backup made before it."
        )
    missing = metadata.tables.keys() - found
    if missing and applied[0] == REVISIONS[-1]:
        raise DatabaseUnusable(f"{place.name} is damaged: table {min(missing)} is missing; {place.advice}.")
    return applied[0]
