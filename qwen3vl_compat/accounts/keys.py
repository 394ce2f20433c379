"""API keys: `sk-<public>-<secret>`, known by the public part, proved by a hash, never stored themselves.

The secret is 256 random bits, so a plain SHA-256 of the whole key cannot be searched; the public part may be logged.
"""

import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Unpack

from msgspec import Struct
from sqlalchemy import Connection, Engine, bindparam, insert, select, tuple_, update

from qwen3vl_compat.accounts import terms as terms_of
from qwen3vl_compat.accounts.audit import COMMAND_LINE, Note, append
from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.key import ROWS, FirstKeys, Key, NewKey, Problem, key_of
from qwen3vl_compat.accounts.recent import CACHE_S, Recent
from qwen3vl_compat.accounts.tables import keys, tenants
from qwen3vl_compat.accounts.tenants import Tenant, UnknownTenant, add, is_id
from qwen3vl_compat.accounts.terms import Terms, Unfit
from qwen3vl_compat.settings import Quotas

__all__ = [
    "CACHE_S",
    "FIRST_TENANT",
    "FirstKeys",
    "Key",
    "KeyOver",
    "Keys",
    "NewKey",
    "Problem",
    "UnknownKey",
    "UnknownTenant",
]

FIRST_TENANT = "default"
MOST_GRACE_S = 30 * 86_400
"""Seconds that a key may work beside its successor."""

_ALPHABET = string.ascii_letters + string.digits
_FORM = re.compile(r"sk-([0-9A-Za-z]{12})-[0-9A-Za-z_-]{43}")
_PUBLIC = re.compile(r"[0-9A-Za-z]{12}")
_NO_HASH = secrets.token_bytes(32)
"""Compared with when there is no such key: the same work is done, and no key hashes to it."""

_NO_LIMITS = Quotas()
_ONE = ROWS.where(keys.c.public == bindparam("public"))


class UnknownKey(LookupError):
    """No key with that public part; the message is a plain sentence."""


class KeyOver(Exception):
    """What was asked takes a key that is not revoked, expired or replaced; the message is a plain sentence."""


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
        self,
        engine: Engine,
        clock: Callable[[], float] = time.time,
        *,
        ticks: Callable[[], float] = time.monotonic,
        usual: Quotas = _NO_LIMITS,
    ) -> None:
        """`clock` gives seconds since 1970; `ticks` gives seconds that are never set back, for the age of answers.

        `usual` are the limits of a tenant wherever nothing else is said of it.
        """
        self._engine = engine
        self._writer = writing(engine)
        self._clock = clock
        self._ticks = ticks
        self._usual = usual
        self._recent: Recent[_Stored] = Recent(keep_s=CACHE_S)

    # ------------------------------------------------------------------------------------------------------------ read

    def find(self, presented: str) -> Key | None:
        """The key that was presented, usable or not (see `Key.problem`); None if it is none of ours."""
        form = _FORM.fullmatch(presented)
        if form is None:
            return None
        stored = self._stored(form[1])
        proved = hmac.compare_digest(_hash(presented), stored.hash if stored else _NO_HASH)
        return stored.key.seen_at(self._now_ms()) if stored and proved else None

    def known(self, public: str) -> Key | None:
        """The key with this public part, as `find` would have it, whoever has proved to hold it."""
        stored = self._stored(public)
        return stored.key.seen_at(self._now_ms()) if stored else None

    def remembers(self, key: str) -> bool:
        """Whether `find` or `known` answer from memory, given a whole key or its public part."""
        form = _FORM.fullmatch(key)
        return self._recent.get(form[1] if form else key, self._ticks())[0] or (form is None and key[:3] == "sk-")

    def get(self, public: str) -> Key:
        """The key with this public part. Raises UnknownKey."""
        with self._engine.connect() as connection:
            return self._one(connection, public)

    def list(self, tenant: str | None = None, *, after: str | None = None, limit: int | None = None) -> tuple[Key, ...]:
        """Every key, or one tenant's, oldest first, revoked ones included; `after` is the last one seen.

        Raises UnknownKey for an `after` that is none.
        """
        order = keys.c.created_at, keys.c.public
        query = ROWS.order_by(*order).limit(limit)
        if tenant is not None:
            if not is_id(tenant):
                return ()
            query = query.where(keys.c.tenant == tenant)
        with self._engine.connect() as connection:
            if after is not None:
                last = self._one(connection, after)
                query = query.where(tuple_(*order) > tuple_(last.created_at, last.public))
            rows = connection.execute(query).mappings().all()
        now_ms = self._now_ms()
        return tuple(key_of(row, self._usual).seen_at(now_ms) for row in rows)

    # ---------------------------------------------------------------------------------------------------------- change

    def create(self, tenant: str, *, admin: bool = False, actor: str = COMMAND_LINE, **terms: Unpack[Terms]) -> NewKey:
        """A new key of an existing tenant, or of `default`, which is made when needed. An admin key cannot call models.

        Raises UnknownTenant, or Unfit.
        """
        settled = terms_of.checked(terms, admin=admin)
        expires_at = terms.get("expires_at")
        if expires_at is not None and expires_at <= self._now_ms():
            raise Unfit("expires_at", "must lie in the future")
        with self._writer.begin() as connection:
            if tenant == FIRST_TENANT:
                self._add_tenant(connection, tenant, "", actor)
            new = self._insert(connection, tenant, admin, settled)
            told = {"tenant": tenant, "admin": admin} | terms_of.details(settled)
            self._note(connection, actor, "key.create", new.key.public, told)
        self._recent.forget(new.key.public)
        return new

    def change(self, public: str, *, actor: str = COMMAND_LINE, **terms: Unpack[Terms]) -> Key:
        """Set something of a key that is not revoked. Raises UnknownKey, KeyOver, or Unfit."""
        with self._locked(public) as (connection, key):
            settled = terms_of.checked(terms, admin=key.admin)
            if key.status == "revoked":
                raise KeyOver(f"The key {public} is revoked; it can no longer be changed.")
            changed = {name: value for name, value in settled.items() if value != getattr(key, name)}
            if changed:
                self._update(connection, public, terms_of.columns(changed))
                self._note(connection, actor, "key.change", public, terms_of.details(changed))
            return self._one(connection, public)

    def rotate(self, public: str, grace_seconds: int, *, actor: str = COMMAND_LINE) -> NewKey:
        """A successor with the same tenant, label, scopes, limits and expiry; the old key works `grace_seconds` longer.

        However many ask at once, one of them gets it. Raises UnknownKey, KeyOver, or Unfit.
        """
        if not 0 <= grace_seconds <= MOST_GRACE_S:
            raise Unfit("grace_seconds", f"must be between 0 and {MOST_GRACE_S}")
        with self._locked(public) as (connection, old):
            problem = "replaced" if old.replaced_by else old.problem
            if problem in ("revoked", "expired", "replaced"):
                raise KeyOver(f"The key {public} is {problem}; it cannot be rotated.")
            kept = {name: getattr(old, name) for name in Terms.__annotations__}
            new = self._insert(connection, old.tenant, old.admin, kept)
            retires_at = self._now_ms() + grace_seconds * 1000
            self._update(connection, public, {"replaced_by": new.key.public, "retires_at": retires_at})
            told = {"replaced_by": new.key.public, "retires_at": retires_at // 1000}
            self._note(connection, actor, "key.rotate", public, told)
        self._recent.forget(new.key.public)
        return new

    def revoke(self, public: str, *, actor: str = COMMAND_LINE) -> Key:
        """End a key for good: here at once, in other processes within CACHE_S. Again is no error. Raises UnknownKey."""
        with self._locked(public) as (connection, key):
            if key.status == "active":
                self._update(connection, public, {"status": "revoked", "revoked_at": self._now_ms()})
                self._note(connection, actor, "key.revoke", public, {})
            return self._one(connection, public)

    def add_tenant(self, tenant: str, name: str = "") -> bool:
        """Make a tenant; False if it was there already (its name is left alone). Raises Unfit."""
        with self._writer.begin() as connection:
            return self._add_tenant(connection, tenant, name, COMMAND_LINE)

    def ensure_first(self) -> FirstKeys | None:
        """On a database without any key: tenant `default` with a model key and an admin key. Else None.

        However many processes call it at once, one of them gets the pair.
        """
        any_key = select(keys.c.public).limit(1)
        with self._engine.connect() as connection:
            if connection.execute(any_key).first():
                return None
        with self._writer.begin() as connection:
            self._add_tenant(connection, FIRST_TENANT, "", COMMAND_LINE)
            if connection.execute(any_key).first():
                return None
            return FirstKeys(*(self._first(connection, admin) for admin in (False, True)))

    # ---------------------------------------------------------------------------------------------------------- inside

    def _stored(self, public: str) -> _Stored | None:
        """The row with this public part, from memory or the database; its age counts from before the reading."""
        now = self._ticks()
        seen, stored = self._recent.get(public, now)
        if not seen:
            with self._engine.connect() as connection:
                row = connection.execute(_ONE, {"public": public}).mappings().first()
            stored = None if row is None else _Stored(key_of(row, self._usual), row["hash"])
            self._recent.put(public, stored, now)
        return stored

    def _one(self, connection: Connection, public: str) -> Key:
        """A key as it stands now."""
        if not _PUBLIC.fullmatch(public):
            raise UnknownKey("That is not the public part of a key: it has 12 letters and digits.")
        row = connection.execute(_ONE, {"public": public}).mappings().first()
        if row is None:
            raise UnknownKey(f"There is no key with the public part {public}.")
        return key_of(row, self._usual).seen_at(self._now_ms())

    @contextmanager
    def _locked(self, public: str) -> Generator[tuple[Connection, Key]]:
        """A transaction that nobody else changes this key in; what is remembered of it is forgotten."""
        with self._writer.begin() as connection:
            yield connection, self._one(connection, public)
        self._recent.forget(public)

    def _first(self, connection: Connection, admin: bool) -> NewKey:
        label = {"label": "first admin key" if admin else "first key"}
        new = self._insert(connection, FIRST_TENANT, admin, label)
        told = {"tenant": FIRST_TENANT, "admin": admin} | label
        self._note(connection, COMMAND_LINE, "key.create", new.key.public, told)
        return new

    def _insert(self, connection: Connection, tenant: str, admin: bool, settled: dict[str, Any]) -> NewKey:
        """Make and store one key in the caller's transaction."""
        known = select(tenants.c.id).where(tenants.c.id == tenant)
        if not is_id(tenant) or connection.execute(known).first() is None:
            raise UnknownTenant(tenant)
        public = "".join(secrets.choice(_ALPHABET) for _ in range(12))
        secret_text = f"sk-{public}-{secrets.token_urlsafe(32)}"
        row = {
            "public": public,
            "hash": _hash(secret_text),
            "tenant": tenant,
            "admin": admin,
            "created_at": self._now_ms(),
        }
        scope = {"models": "[]"} if admin else {}
        connection.execute(insert(keys).values(**row, **(terms_of.columns(settled) | scope)))
        return NewKey(secret_text, self._one(connection, public))

    def _update(self, connection: Connection, public: str, values: dict[str, Any]) -> None:
        connection.execute(update(keys).where(keys.c.public == public).values(values))

    def _add_tenant(self, connection: Connection, tenant: str, name: str, actor: str) -> bool:
        return add(connection, Tenant(id=tenant, name=name, created_at=self._now_ms()), actor)

    def _note(self, connection: Connection, actor: str, action: str, public: str, details: dict[str, Any]) -> None:
        note = Note(at=self._now_ms(), actor=actor, action=action, object=public, details=details)
        append(connection, note)

    def _now_ms(self) -> int:
        """Whole milliseconds since 1970, as the tables count time."""
        return int(self._clock() * 1000)


def _hash(secret_text: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(secret_text.encode()).digest()
