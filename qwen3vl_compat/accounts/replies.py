"""Rows of answers kept under an Idempotency-Key: one request takes a key, and those after it find what became of it.

Taking a key is one INSERT that changes nothing where there is a row; only an expired row, or one whose process has
died, changes hands, and then to exactly one.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Engine, Row, delete, or_, select, text, tuple_, update
from sqlalchemy.exc import SQLAlchemyError

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.tables import replies

BATCH = 20
"""Rows that one sweep removes at most; each may hold a megabyte."""

_TAKE = text(
    "INSERT INTO replies (tenant, key_hash, fingerprint, request, created_at, owner, state) "
    "VALUES (:tenant, :key_hash, :fingerprint, :request, :created_at, :owner, 'running') "
    "ON CONFLICT (tenant, key_hash) DO NOTHING"
)


class RepliesUnavailable(Exception):
    """The database cannot be read or written now."""


class Asked(Struct, frozen=True, kw_only=True):
    """A request under a key: hashes in hexadecimal digits, `request` is its id and never comes twice."""

    tenant: str
    key_hash: str
    fingerprint: str
    request: str


class Found(Struct, frozen=True, kw_only=True):
    """What has become of the request that has the key; `events` is its answer if it was kept, `age` is in seconds."""

    fingerprint: str
    state: Literal["running", "kept", "too_large"]
    events: bytes | None
    age: float


class Replies:
    """One process's way to the kept answers. Calls are short and synchronous, and may come from any thread.

    All raise RepliesUnavailable.
    """

    def __init__(
        self,
        engine: Engine,
        owner: str,
        alive: Callable[[str], bool],
        keep_s: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`owner` names this process, `alive` says which others live; `clock` gives seconds since 1970."""
        self._writer, self._clock = writing(engine), clock
        self._owner, self._alive, self._keep_ms = owner, alive, keep_s * 1000
        self._doubtful: set[str] = set()
        """Requests that may have a row though their `begin` failed: the reply to the commit was lost."""

    def begin(self, asked: Asked) -> Found | None:
        """Take the key for this request; what is found instead if another has it, None when it is taken."""
        try:
            return self._begin(asked)
        except RepliesUnavailable:
            self._doubtful.add(asked.request)
            raise

    def _begin(self, asked: Asked) -> Found | None:
        while True:  # a row that changed between two looks was changed by somebody who got on
            now = self._now_ms()
            values = {name: getattr(asked, name) for name in Asked.__struct_fields__}
            values |= {"created_at": now, "owner": self._owner}
            with self._writing() as connection:
                if connection.execute(_TAKE, values).rowcount:
                    return None
                row = connection.execute(select(replies).where(_at(asked))).first()
            if row is None:
                continue
            if not self._is_free(row, asked, now):
                return Found(
                    fingerprint=row.fingerprint,
                    state=row.state,
                    events=row.events,
                    age=max(0, now - row.created_at) / 1000,
                )
            same = _at(asked) & (replies.c.request == row.request) & (replies.c.state == row.state)
            with self._writing() as connection:
                taken = update(replies).where(same).values(**values, state="running", events=None)
                if connection.execute(taken).rowcount:
                    return None

    def keep(self, asked: Asked, events: bytes | None) -> bool:
        """Keep what was answered, or that it was too large (None); False if the key is this request's no more."""
        state = "too_large" if events is None else "kept"
        with self._writing() as connection:
            kept = update(replies).where(_running(asked)).values(state=state, events=events)
            return bool(connection.execute(kept).rowcount)

    def free(self, asked: Asked) -> bool:
        """Give the key back, as if it had never been used; False if it is this request's no more."""
        with self._writing() as connection:
            return bool(connection.execute(delete(replies).where(_running(asked))).rowcount)

    def sweep(self) -> int:
        """Remove rows whose time is over, at most BATCH; returns how many it were."""
        expired = replies.c.created_at <= self._now_ms() - self._keep_ms
        running = select(replies.c.owner).where(expired, replies.c.state == "running").distinct()
        with self._writing() as connection:
            owners = list(connection.execute(running).scalars())
        dead = [owner for owner in owners if not self._alive(owner)]
        over = or_(replies.c.state != "running", replies.c.owner.in_(dead))
        name = (replies.c.tenant, replies.c.key_hash)
        some = select(*name).where(expired, over).order_by(replies.c.created_at).limit(BATCH)
        with self._writing() as connection:
            return connection.execute(delete(replies).where(tuple_(*name).in_(some), expired, over)).rowcount

    def _is_free(self, row: Row[Any], asked: Asked, now: int) -> bool:
        """Whether a request may take a row over. One that a living process has under way never expires."""
        expired = row.created_at <= now - self._keep_ms
        if row.state != "running":
            return expired
        if row.request in self._doubtful:
            return True
        return (expired or row.fingerprint == asked.fingerprint) and not self._alive(row.owner)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    @contextmanager
    def _writing(self) -> Generator[Connection]:
        try:
            with self._writer.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise RepliesUnavailable("the kept answers cannot be used now") from error


def _at(asked: Asked) -> ColumnElement[bool]:
    return (replies.c.tenant == asked.tenant) & (replies.c.key_hash == asked.key_hash)


def _running(asked: Asked) -> ColumnElement[bool]:
    """The row, as long as this very request holds it."""
    return _at(asked) & (replies.c.request == asked.request) & (replies.c.state == "running")
