"""Responses that are kept for their tenant, each with what was asked of it, and conversations made of them.

A response knows the one it goes on from, so that a conversation is kept once however long it is. Whoever goes on with
one renews all of it; what is not gone on with expires, and where a tenant has too much that goes first which would.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Engine, RowMapping, Select, delete, exists, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.tables import response_media, response_uses, responses
from qwen3vl_compat.settings import ResponseSettings

BATCH = 50
"""Rows that one sweep removes at most, and media that are read at once."""
FIRST_LOOK, LOOKED_AT = 16, 1000
"""Rows that are looked at together where room is made, at first and at most: each look sums up what the tenant has."""
MOST_TURNS = 1000
"""Responses in a conversation."""


class NoSuchResponse(LookupError):
    """No such response of this tenant's: never there, deleted, expired, or another's."""


class ConversationTooLarge(Exception):
    """A conversation has more bytes, or turns, than may be gone on from; the message is a plain sentence."""


class NewResponse(Struct, frozen=True, kw_only=True):
    """A response that is to be kept: its request's items and the answer as JSON, and the media they name by SHA-256."""

    id: str
    tenant: str
    previous: str | None
    input: bytes
    body: bytes
    whole: int
    """Bytes of it all with media in their places."""
    media: Mapping[str, bytes]


class StoredResponse(Struct, frozen=True, kw_only=True):
    """A response as it is kept."""

    id: str
    previous: str | None
    input: bytes
    body: bytes


class Responses:
    """The stored responses of all tenants. Calls are short and synchronous, and may come from any thread."""

    def __init__(self, engine: Engine, settings: ResponseSettings, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._engine, self._writer, self._settings, self._clock = engine, writing(engine), settings, clock

    def keep(self, new: NewResponse) -> None:
        """Keep a response and renew those it goes on from; one that is kept already stays as it is."""
        now = self._now_ms()
        end = now + self._settings.life * 1000
        row = {name: getattr(new, name) for name in ("id", "tenant", "previous", "input", "body", "whole")}
        row |= {"created_at": now, "expires_at": end, "bytes": len(new.input) + len(new.body)}
        with self._writer.begin() as connection:
            if connection.execute(select(responses.c.id).where(responses.c.id == new.id)).first() is not None:
                return
            connection.execute(insert(responses).values(row))
            self._keep_media(connection, new)
            if new.previous is not None:
                turns = select(_turns(new.tenant, new.previous, now).c.id)
                connection.execute(update(responses).where(responses.c.id.in_(turns)).values(expires_at=end))
            self._make_room(connection, new)

    def get(self, tenant: str, name: str) -> StoredResponse:
        """A tenant's response; raises NoSuchResponse."""
        query = _shown(tenant, self._now_ms()).where(responses.c.id == name)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NoSuchResponse
        return _stored(row)

    def conversation(self, tenant: str, name: str, most: int) -> tuple[StoredResponse, ...]:
        """A response and all those before it, the first one first.

        Raises NoSuchResponse, also where one of those before is gone, and ConversationTooLarge beyond `most` bytes.
        """
        turns = _turns(tenant, name, self._now_ms())
        sizes = select(func.count(), func.coalesce(func.sum(responses.c.whole), 0))
        columns = [responses.c[each] for each in StoredResponse.__struct_fields__]
        query = select(*columns).join_from(responses, turns, responses.c.id == turns.c.id)
        with self._engine.connect() as connection:
            count, size = connection.execute(sizes.join_from(responses, turns, responses.c.id == turns.c.id)).one()
            if count > MOST_TURNS:
                raise ConversationTooLarge(f"the conversation has more than {MOST_TURNS:,} turns")
            if size > most:
                raise ConversationTooLarge(f"the conversation has {int(size):,} bytes; at most {most:,} are accepted")
            found = connection.execute(query.order_by(turns.c.place.desc())).mappings().all()
        if not found or found[0]["previous"] is not None:
            raise NoSuchResponse
        return tuple(map(_stored, found))

    def media(self, tenant: str, names: Iterable[str]) -> Mapping[str, bytes]:
        """The contents of media by their SHA-256, those that are there."""
        wanted, found = sorted(set(names)), dict[str, bytes]()
        with self._engine.connect() as connection:
            for start in range(0, len(wanted), BATCH):
                query = select(response_media.c.sha256, response_media.c.content).where(
                    response_media.c.tenant == tenant, response_media.c.sha256.in_(wanted[start : start + BATCH])
                )
                found |= {row.sha256: row.content for row in connection.execute(query)}
        return found

    def delete(self, tenant: str, name: str) -> None:
        """Remove a tenant's response, with the media that only it has; raises NoSuchResponse."""
        query = _shown(tenant, self._now_ms()).where(responses.c.id == name)
        with self._writer.begin() as connection:
            if connection.execute(query).first() is None:
                raise NoSuchResponse
            _remove(connection, [name])

    def sweep(self) -> int:
        """Remove responses whose time is over, at most BATCH; returns how many it were."""
        over = select(responses.c.id).where(responses.c.expires_at <= self._now_ms()).limit(BATCH)
        with self._writer.begin() as connection:
            names = list(connection.execute(over.order_by(responses.c.expires_at)).scalars())
            _remove(connection, names)
        return len(names)

    def _keep_media(self, connection: Connection, new: NewResponse) -> None:
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        for sha256, content in new.media.items():
            values = {"tenant": new.tenant, "sha256": sha256, "bytes": len(content), "content": content}
            connection.execute(dialect.insert(response_media).values(values).on_conflict_do_nothing())
            connection.execute(insert(response_uses).values(response=new.id, tenant=new.tenant, sha256=sha256))

    def _make_room(self, connection: Connection, new: NewResponse) -> None:
        """Remove what would expire first until the tenant has no more than it may; what has just come stays."""
        others = select(responses.c.id, responses.c.bytes).where(
            responses.c.tenant == new.tenant, responses.c.id != new.id
        )
        first = others.order_by(responses.c.expires_at, responses.c.created_at)
        most = FIRST_LOOK
        while True:
            beyond, size = self._excess(connection, new.tenant)
            rows = connection.execute(first.limit(most)).all() if beyond > 0 or size > 0 else ()
            if not rows:
                return
            names, media = list[str](), _media_with(connection, new.tenant, [row.id for row in rows])
            for row in rows:
                if beyond <= len(names) and size <= 0:
                    break
                names.append(row.id)
                size -= row.bytes + media.get(row.id, 0)
            _remove(connection, names)
            most = min(8 * most, LOOKED_AT)

    def _excess(self, connection: Connection, tenant: str) -> tuple[int, int]:
        """How many responses, and bytes, a tenant has beyond what it may."""
        count, size = 0, 0
        for table in (responses, response_media):
            sums = select(func.count(), func.coalesce(func.sum(table.c.bytes), 0)).where(table.c.tenant == tenant)
            number, total = connection.execute(sums).one()
            count, size = count or number, size + int(total)
        return count - self._settings.tenant_responses, size - self._settings.tenant_bytes

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _shown(tenant: str, now: int) -> "Select[Any]":
    columns = [responses.c[each] for each in StoredResponse.__struct_fields__]
    return select(*columns).where(responses.c.tenant == tenant, responses.c.expires_at > now)


def _turns(tenant: str, last: str, now: int) -> Any:
    """The ids of a response and those before it, as far as they are there, each with its `place` from the end."""
    mine = (responses.c.tenant == tenant) & (responses.c.expires_at > now)
    first = select(responses.c.id, responses.c.previous, literal(0).label("place"))
    turns = first.where(mine, responses.c.id == last).cte("turns", recursive=True)
    before = select(responses.c.id, responses.c.previous, turns.c.place + 1)
    joined = before.join_from(responses, turns, responses.c.id == turns.c.previous)
    return turns.union_all(joined.where(mine, turns.c.place < MOST_TURNS))


def _media_with(connection: Connection, tenant: str, names: Sequence[str]) -> Mapping[str, int]:
    """Bytes of media that go with each of these, if they are removed in this order: with the last one that has them."""
    sha256 = response_uses.c.sha256
    uses = select(response_uses.c.response, sha256).where(response_uses.c.response.in_(names))
    theirs = response_media.join(response_uses)
    held = select(sha256, response_media.c.bytes, func.count().label("uses")).select_from(theirs)
    held = held.where(response_uses.c.tenant == tenant, sha256.in_(uses.with_only_columns(sha256)))
    left = {
        row.sha256: [row.uses, row.bytes] for row in connection.execute(held.group_by(sha256, response_media.c.bytes))
    }
    places, freed = {name: place for place, name in enumerate(names)}, dict[str, int]()
    for name, medium in sorted(connection.execute(uses), key=lambda use: places[use.response]):
        left[medium][0] -= 1
        if not left[medium][0]:
            freed[name] = freed.get(name, 0) + left[medium][1]
    return freed


def _remove(connection: Connection, names: Sequence[str]) -> None:
    """Remove responses, and media that no other has."""
    if not names:
        return
    mine = response_uses.c.response.in_(names)
    held = connection.execute(select(response_uses.c.tenant, response_uses.c.sha256).where(mine).distinct()).all()
    connection.execute(delete(response_uses).where(mine))
    connection.execute(delete(responses).where(responses.c.id.in_(names)))
    for tenant, sha256 in held:
        used = exists().where(response_uses.c.tenant == tenant, response_uses.c.sha256 == sha256)
        medium = (response_media.c.tenant == tenant) & (response_media.c.sha256 == sha256)
        connection.execute(delete(response_media).where(medium, ~used))


def _stored(row: RowMapping) -> StoredResponse:
    return StoredResponse(**{name: row[name] for name in StoredResponse.__struct_fields__})
