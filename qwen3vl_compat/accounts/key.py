"""A key as a value, and how its row is read."""

from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import RowMapping, select

from qwen3vl_compat.accounts import differences
from qwen3vl_compat.accounts.tables import keys, tenants
from qwen3vl_compat.settings import Quotas

Problem = Literal["revoked", "expired", "replaced", "suspended"]

ROWS = select(keys, tenants.c.status.label("tenant_status"), tenants.c.limits.label("tenant_limits")).join(
    tenants, keys.c.tenant == tenants.c.id
)
"""What `key_of` reads."""


class Key(Struct, frozen=True, kw_only=True):
    """What is known of a key, none of it secret. Times are milliseconds since 1970.

    `models` and `endpoints` name what it may use: None is everything, () nothing. An admin key has `models=()`.
    `limits` are its own, `tenant_limits` those of all its tenant's keys together, what is usual included.
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
    limits: Quotas = Quotas()
    tenant_limits: Quotas = Quotas()
    problem: Problem | None = None

    @property
    def usable(self) -> bool:
        """Whether requests may be made with it at all; which ones, `may_call`, `may_use` and `admin` say."""
        return self.problem is None

    def may_call(self, model: str) -> bool:
        """Whether the key's scope holds this served model."""
        return self.models is None or model in self.models

    def may_use(self, endpoint: str | None) -> bool:
        """Whether the key's scope holds this endpoint; a path that is none of them (None) takes an unbound key."""
        return self.endpoints is None or endpoint in self.endpoints

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


_READ = frozenset({"models", "endpoints", "limits", "tenant_limits", "problem"})


def key_of(row: RowMapping, usual: Quotas) -> Key:
    """A row of ROWS as a Key, before its `problem` is looked at; `usual` are the limits of a tenant without others."""
    plain = {name: row[name] for name in Key.__struct_fields__ if name not in _READ}
    return Key(
        **plain,
        models=_scope(row["models"]),
        endpoints=_scope(row["endpoints"]),
        limits=msgspec.json.decode(row["limits"] or "{}", type=Quotas),
        tenant_limits=differences.over(usual, Quotas, differences.decode(row["tenant_limits"])),
    )


def _scope(stored: str | None) -> tuple[str, ...] | None:
    """A scope column as a value."""
    return None if stored is None else msgspec.json.decode(stored, type=tuple[str, ...])
