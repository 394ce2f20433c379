"""API keys: `sk-<public>-<secret>`, known by the public part, proved by a hash, never stored themselves.

The secret is 256 random bits, so a plain SHA-256 of the whole key cannot be searched; the public part may be logged.
"""

import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Engine, RowMapping, bindparam, insert, select, text, update

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.recent import Recent
from qwen3vl_compat.accounts.tables import keys, tenants

FIRST_TENANT = "default"
CACHE_S = 5.0
"""Seconds until a change made in another process (a revocation, a suspension) is seen by this one."""

Problem = Literal["revoked", "expired", "replaced", "suspended"]

_ALPHABET = string.ascii_letters + string.digits
_FORM = re.compile(r"sk-([0-9A-Za-z]{12})-[0-9A-Za-z_-]{43}")
_PUBLIC = re.compile(r"[0-9A-Za-z]{12}")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LABEL_LIMIT = 200
_NO_HASH = secrets.token_bytes(32)
"""Compared with when there is no such key: the same work is done, and no key hashes to it."""

_ROWS = select(keys, tenants.c.status.label("tenant_status")).join(tenants, keys.c.tenant == tenants.c.id)
_ONE = _ROWS.where(keys.c.public == bindparam("public"))
_ADD_TENANT = text(
    "INSERT INTO tenants (id, name, created_at) VALUES (:id, :name, :created_at) ON CONFLICT (id) DO NOTHING"
)


class UnknownTenant(LookupError):
    """No tenant of that name; the message is a plain sentence."""


class UnknownKey(LookupError):
    """No key with that public part; the message is a plain sentence."""


class Key(Struct, frozen=True, kw_only=True):
    """What is known of a key, none of it secret. Times are milliseconds since 1970.

    `models` and `endpoints` name what it may use: None is everything, () nothing. An admin key has `models=()`.
    `problem` is why it may not be used at the moment it was looked up, None when it may.
    """

    public: str
    tenant: str
    label: str
    admin: bool
    models: tuple[str, ...] | None
    endpoints: tuple[str, ...] | None
    status: Literal["active", "revoked"]
    tenant_status: Literal["active", "suspended"]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    replaced_by: str | None
    retires_at: int | None
    problem: Problem | None = None

    @property
    def usable(self) -> bool:
        """Whether requests may be made with it at all; what they may ask for is `may_call` and `admin`."""
        return self.problem is None

    def may_call(self, model: str) -> bool:
        """Whether the key's scope holds this served model."""
        return self.models is None or model in self.models

    def seen_at(self, now_ms: int) -> "Key":
        """The same key with `problem` as it stands at that time; what cannot be undone is named first."""
        problem: Problem | None = None
        if self.status == "revoked":
            problem = "revoked"
        elif self.expires_at is not None and now_ms >= self.expires_at:
            problem = "expired"
        elif self.retires_at is not None and now_ms >= self.retires_at:
            problem = "replaced"
        elif self.tenant_status == "suspended":
            problem = "suspended"
        return self if problem == self.problem else msgspec.structs.replace(self, problem=problem)


class NewKey(Struct, frozen=True):
    """A key just made. `secret_text` is the whole key, to be shown once: it is kept nowhere else."""

    secret_text: str
    key: Key

    def __repr__(self) -> str:
        return f"NewKey(secret_text='sk-{self.key.public}-...', key={self.key!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("key", self.key)]


class FirstKeys(Struct, frozen=True):
    """The two keys of a first start: `model` for calling models, `admin` for administration only."""

    model: NewKey
    admin: NewKey


class _Stored(Struct, frozen=True):
    """A row of the table: the key and the hash that proves it."""

    key: Key
    hash: bytes

    def __repr__(self) -> str:
        return f"_Stored(key={self.key!r})"


class Keys:
    """All keys of one database. Calls are short and synchronous, and may come from any thread.

    `find` answers from memory for up to CACHE_S seconds; the others read and write the database each time.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, *, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds since 1970; `ticks` gives seconds that are never set back, for the age of answers."""
        self._engine = engine
        self._writer = writing(engine)
        self._clock = clock
        self._ticks = ticks
        self._recent: Recent[_Stored] = Recent(keep_s=CACHE_S)

    def find(self, presented: str) -> Key | None:
        """The key that was presented, usable or not (see `Key.problem`); None if it is none of ours."""
        form = _FORM.fullmatch(presented)
        if form is None:
            return None
        stored = self._stored(form[1])
        proved = hmac.compare_digest(_hash(presented), stored.hash if stored else _NO_HASH)
        return stored.key.seen_at(self._now_ms()) if stored and proved else None

    def create(self, tenant: str, *, admin: bool = False, label: str = "", expires_at: int | None = None) -> NewKey:
        """A new key of an existing tenant, or of `default`, which is made when needed. An admin key cannot call models.

        `expires_at` is in milliseconds since 1970, None for never.
        Raises UnknownTenant, or ValueError for a label that is longer than 200 characters or not printable.
        """
        if len(label) > _LABEL_LIMIT or not label.isprintable():
            raise ValueError(f"A key's label is at most {_LABEL_LIMIT} printable characters on one line.")
        with self._writer.begin() as connection:
            if tenant == FIRST_TENANT:
                self._add_tenant(connection, tenant, "")
            new = self._insert(connection, tenant, admin=admin, label=label, expires_at=expires_at)
        self._recent.forget(new.key.public)
        return new

    def list(self, tenant: str | None = None) -> tuple[Key, ...]:
        """Every key, or one tenant's, oldest first, revoked ones included."""
        query = _ROWS.order_by(keys.c.created_at, keys.c.public)
        if tenant is not None:
            if not _TENANT.fullmatch(tenant):
                return ()
            query = query.where(keys.c.tenant == tenant)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        now_ms = self._now_ms()
        return tuple(_key(row).seen_at(now_ms) for row in rows)

    def revoke(self, public: str) -> Key:
        """End a key for good: here at once, in other processes within CACHE_S. Again is no error. Raises UnknownKey."""
        if not _PUBLIC.fullmatch(public):
            raise UnknownKey("That is not the public part of a key: it has 12 letters and digits.")
        now_ms = self._now_ms()
        with self._writer.begin() as connection:
            active = (keys.c.public == public) & (keys.c.status == "active")
            connection.execute(update(keys).where(active).values(status="revoked", revoked_at=now_ms))
            row = connection.execute(_ONE, {"public": public}).mappings().first()
        self._recent.forget(public)
        if row is None:
            raise UnknownKey(f"There is no key with the public part {public}.")
        return _key(row).seen_at(now_ms)

    def add_tenant(self, tenant: str, name: str = "") -> bool:
        """Make a tenant; False if it was there already (its name is left alone). ValueError for an unfit id or name."""
        if not _TENANT.fullmatch(tenant):
            raise ValueError("A tenant's id is 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit.")
        if len(name) > _LABEL_LIMIT or not name.isprintable():
            raise ValueError(f"A tenant's name is at most {_LABEL_LIMIT} printable characters on one line.")
        with self._writer.begin() as connection:
            return self._add_tenant(connection, tenant, name)

    def ensure_first(self) -> FirstKeys | None:
        """On a database without any key: tenant `default` with a model key and an admin key. Else None.

        However many processes call it at once, one of them gets the pair.
        """
        any_key = select(keys.c.public).limit(1)
        with self._engine.connect() as connection:
            if connection.execute(any_key).first():
                return None
        with self._writer.begin() as connection:
            self._add_tenant(connection, FIRST_TENANT, "")
            if connection.execute(any_key).first():
                return None
            return FirstKeys(
                self._insert(connection, FIRST_TENANT, admin=False, label="first key"),
                self._insert(connection, FIRST_TENANT, admin=True, label="first admin key"),
            )

    def _stored(self, public: str) -> _Stored | None:
        """The row with this public part, from memory or the database; its age counts from before the reading."""
        now = self._ticks()
        seen, stored = self._recent.get(public, now)
        if not seen:
            with self._engine.connect() as connection:
                row = connection.execute(_ONE, {"public": public}).mappings().first()
            stored = None if row is None else _Stored(_key(row), row["hash"])
            self._recent.put(public, stored, now)
        return stored

    def _now_ms(self) -> int:
        """Whole milliseconds since 1970, as the tables count time."""
        return int(self._clock() * 1000)

    def _add_tenant(self, connection: Connection, tenant: str, name: str) -> bool:
        """Insert unless there."""
        row = {"id": tenant, "name": name or tenant, "created_at": self._now_ms()}
        return connection.execute(_ADD_TENANT, row).rowcount == 1

    def _insert(
        self, connection: Connection, tenant: str, *, admin: bool, label: str, expires_at: int | None = None
    ) -> NewKey:
        """Make and store one key in the caller's transaction."""
        known = select(tenants.c.id).where(tenants.c.id == tenant)
        if not _TENANT.fullmatch(tenant) or connection.execute(known).first() is None:
            raise UnknownTenant(f"There is no tenant {tenant!r}.")
        public = "".join(secrets.choice(_ALPHABET) for _ in range(12))
        secret_text = f"sk-{public}-{secrets.token_urlsafe(32)}"
        now_ms = self._now_ms()
        connection.execute(
            insert(keys).values(
                public=public,
                hash=_hash(secret_text),
                tenant=tenant,
                label=label,
                admin=admin,
                models="[]" if admin else None,
                created_at=now_ms,
                expires_at=expires_at,
            )
        )
        row = connection.execute(_ONE, {"public": public}).mappings().one()
        return NewKey(secret_text, _key(row).seen_at(now_ms))


def _key(row: RowMapping) -> Key:
    """A row of `_ROWS` as a Key, before its `problem` is looked at."""
    return Key(
        public=row["public"],
        tenant=row["tenant"],
        label=row["label"],
        admin=row["admin"],
        models=_scope(row["models"]),
        endpoints=_scope(row["endpoints"]),
        status=row["status"],
        tenant_status=row["tenant_status"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        replaced_by=row["replaced_by"],
        retires_at=row["retires_at"],
    )


def _scope(stored: str | None) -> tuple[str, ...] | None:
    """A scope column as a value."""
    return None if stored is None else msgspec.json.decode(stored, type=tuple[str, ...])


def _hash(secret_text: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(secret_text.encode()).digest()
