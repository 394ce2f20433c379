"""Which database a state folder belongs to, so that a lost one is never taken for one that has yet to be made.

The database holds a random id, and a small file in the state folder holds the same. The row is always committed before
the file is written: a first start that dies in between leaves a database without a marker, which the next start gives
one, and never a marker without a database.
"""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, insert, select

from qwen3vl_compat.accounts.migrations import upgrade
from qwen3vl_compat.accounts.schema import DatabaseUnusable, Place
from qwen3vl_compat.accounts.tables import installation

MARKER = "installation"
"""The file's name."""
_ID = re.compile(r"[0-9a-f]{32}")


def make_folder(folder: Path) -> None:
    """Make the folder, for its owner only; one that was there and is another's or holds things keeps its mode."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == os.geteuid() and not any(folder.iterdir()):
        folder.chmod(0o700)


@contextmanager
def alone_in(folder: Path) -> Generator[int]:
    """Hold the folder's advisory lock; gives its open descriptor. A killed process lets go by itself."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_if_known(state_dir: Path, place: Place, fault: str) -> None:
    """Raise DatabaseUnusable if the folder had a database before: where it is gone, no new one is made silently."""
    marker = state_dir / MARKER
    if os.path.lexists(marker):
        raise DatabaseUnusable(
            f"{place.name} {fault}, but {marker} tells of one that was in use: restore it from a backup, or remove "
            f"{marker} to begin anew with an empty one."
        )


def refuse_to_make(state_dir: Path, place: Place, fault: str) -> None:
    """Raise DatabaseUnusable for a database that has yet to be made, where none is to be made."""
    refuse_if_known(state_dir, place, fault)
    raise DatabaseUnusable(
        f"There are no accounts here: {place.name} {fault}. Name the server's own --state-dir or --config; a new "
        f"installation is made by the first start of `qwen3vl-compat serve`."
    )


def bring_up(connection: Connection, state_dir: Path, currency: str) -> None:
    """Bring the database to the newest revision, and give it an id if it has none, in the caller's transaction.

    A backup from before there were ids takes the one that the folder already knows.
    """
    upgrade(connection)
    if connection.execute(select(installation.c.id).limit(1)).first() is None:
        row = {"id": _known(state_dir) or secrets.token_hex(16), "currency": currency}
        connection.execute(insert(installation).values(**row, created_at=int(time.time() * 1000)))


def check(connection: Connection, state_dir: Path, currency: str, place: Place) -> None:
    """Raise DatabaseUnusable unless this is the folder's database and counts in `currency`; mark a new folder."""
    rows = connection.execute(select(installation.c.id, installation.c.currency)).all()
    if len(rows) != 1:
        raise DatabaseUnusable(
            f"{place.name} is damaged: table installation has {len(rows)} rows and not one; {place.advice}."
        )
    ours, counted = rows[0]
    if counted != currency:
        raise DatabaseUnusable(
            f"{place.name} counts its money in {counted} and cannot be changed to {currency}; set ledger.currency to "
            f"{counted}."
        )
    known = _known(state_dir) or _mark(state_dir, ours)
    if known != ours:
        marker = state_dir / MARKER
        raise DatabaseUnusable(
            f"{place.name} is not the database that {state_dir} was last used with: either another database was put "
            f"in its place or named in ledger.url, or this is another installation's state folder; put right which is "
            f"wrong, or remove {marker} to go on with this database."
        )


def secret_of(database: Engine) -> bytes:
    """What only this installation's processes know: the id that stands in its database, and nowhere else but here."""
    with database.connect() as connection:
        return connection.execute(select(installation.c.id)).scalar_one().encode()


def _known(state_dir: Path) -> str | None:
    """The id in the folder's marker, None if there is none. Raises DatabaseUnusable for a marker that holds none."""
    marker = state_dir / MARKER
    try:
        held = marker.read_bytes()[:100].decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    if not _ID.fullmatch(held):
        raise DatabaseUnusable(
            f"{marker} does not hold the id of a database; if the right database is in use, remove the file."
        )
    return held


def _mark(state_dir: Path, ours: str) -> str:
    """Write the marker unless another process just did; returns the id it holds then."""
    with alone_in(state_dir) as folder:
        known = _known(state_dir)
        if known:
            return known
        fresh = state_dir / f"{MARKER}.new"
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{ours}\n")
            file.flush()
            os.fsync(descriptor)
        fresh.rename(state_dir / MARKER)
        os.fsync(folder)
    return ours
