"""Tenants: who they are, whether they may call, and where they differ from the operator's settings."""

import builtins
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypedDict, Unpack, cast

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Engine, RowMapping, select, text, update

from qwen3vl_compat.accounts import differences
from qwen3vl_compat.accounts.audit import COMMAND_LINE, Note, append
from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.differences import Differences
from qwen3vl_compat.accounts.recent import CACHE_S, Recent
from qwen3vl_compat.accounts.tables import tenants
from qwen3vl_compat.accounts.terms import Unfit, check_line
from qwen3vl_compat.settings import MediaLimits, ModerationTerms, Quotas, no_moderator

Status = Literal["active", "suspended"]
FORMS: Mapping[str, type[Struct]] = {"limits": Quotas, "media": MediaLimits, "moderation": ModerationTerms}
"""Settings that a tenant may have of its own."""

_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ADD = text(
    "INSERT INTO tenants (id, name, status, created_at, limits, media, moderation) "
    "VALUES (:id, :name, :status, :created_at, :limits, :media, :moderation) ON CONFLICT (id) DO NOTHING"
)


class UnknownTenant(LookupError):
    """No tenant of that name; the message is a plain sentence."""

    def __init__(self, tenant: str) -> None:
        super().__init__(f"There is no tenant {tenant[:80]!r}.")


class TenantExists(Exception):
    """There is a tenant of that name already; the message is a plain sentence."""


class Tenant(Struct, frozen=True, kw_only=True):
    """A row of `tenants`. All of FORMS are where it differs from the settings; time is in milliseconds."""

    id: str
    name: str
    status: Status = "active"
    created_at: int
    limits: Differences = {}
    media: Differences = {}
    moderation: Differences = {}


class TenantTerms(TypedDict, total=False):
    """What can be set of a tenant; what is not named stays. Each of FORMS is set as a whole."""

    name: str
    status: Status
    limits: Differences
    media: Differences
    moderation: Differences


def is_id(tenant: str) -> bool:
    """Whether a tenant could have this id."""
    return _ID.fullmatch(tenant) is not None


def add(connection: Connection, tenant: Tenant, actor: str) -> bool:
    """Insert unless there; on PostgreSQL this waits for another process that is inserting the same. Raises Unfit."""
    if not is_id(tenant.id):
        raise Unfit("id", "a tenant's id is 1 to 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit")
    check_line("name", tenant.name)
    row = msgspec.structs.asdict(tenant) | {"name": tenant.name or tenant.id}
    if connection.execute(_ADD, _columns(row)).rowcount != 1:
        return False
    details = {name: row[name] for name in ("name", *FORMS) if row[name]}
    if tenant.status == "suspended":
        details["status"] = tenant.status
    note = Note(at=tenant.created_at, actor=actor, action="tenant.create", object=tenant.id, details=details)
    append(connection, note)
    return True


class Tenants:
    """All tenants of one database. Calls are short and synchronous, and may come from any thread.

    What is changed here holds for requests within CACHE_S, in this process as in others.
    """

    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.time, moderators: Sequence[str] | None = None
    ) -> None:
        """`clock` gives seconds since 1970; `moderators` are the names there are, None where that is not known."""
        self._engine, self._writer, self._clock, self._moderators = engine, writing(engine), clock, moderators
        self._recent: Recent[Tenant] = Recent(keep_s=CACHE_S)

    def create(self, tenant: str, *, actor: str = COMMAND_LINE, **terms: Unpack[TenantTerms]) -> Tenant:
        """Make a tenant. Raises TenantExists, or Unfit."""
        values: dict[str, Any] = {"name": "", **_checked(terms)}
        made = Tenant(id=tenant, created_at=self._now_ms(), **values)
        self._check_off({}, made.moderation)
        with self._writer.begin() as connection:
            if not add(connection, made, actor):
                raise TenantExists(f"id: there is a tenant {tenant!r} already")
        return self.get(tenant)

    def find(self, tenant: str) -> Tenant | None:
        """One tenant, from memory for up to CACHE_S seconds; None where there is none."""
        now = time.monotonic()
        seen, found = self._recent.get(tenant, now)
        if not seen:
            with suppress(UnknownTenant):
                found = self.get(tenant)
            self._recent.put(tenant, found, now)
        return found

    def remembers(self, tenant: str) -> bool:
        """Whether `find` answers from memory."""
        return self._recent.get(tenant, time.monotonic())[0]

    def get(self, tenant: str) -> Tenant:
        """One tenant; raises UnknownTenant."""
        with self._engine.connect() as connection:
            return _one(connection, tenant)

    def change(self, tenant: str, *, actor: str = COMMAND_LINE, **terms: Unpack[TenantTerms]) -> Tenant:
        """Set something of a tenant. Raises UnknownTenant, or Unfit."""
        return self._change(tenant, actor, lambda _: terms)

    def reword(self, tenant: str, wishes: Mapping[str, str], *, actor: str = COMMAND_LINE) -> Tenant:
        """Set some of `name` and, as `limits.NAME`, of FORMS; an empty text takes a limit back, `none` lifts it.

        Raises UnknownTenant, or Unfit.
        """
        return self._change(tenant, actor, lambda found: _reworded(found, wishes))

    def list(self, *, after: str = "", limit: int | None = None) -> builtins.list[Tenant]:
        """Tenants by their ids; `after` is that of the last one seen."""
        query = select(tenants).where(tenants.c.id > after).order_by(tenants.c.id).limit(limit)
        with self._engine.connect() as connection:
            return [_tenant(row) for row in connection.execute(query).mappings()]

    def _change(self, tenant: str, actor: str, terms_of: Callable[[Tenant], TenantTerms]) -> Tenant:
        with self._writer.begin() as connection:
            found = _one(connection, tenant)
            changed = {
                name: value for name, value in _checked(terms_of(found)).items() if value != getattr(found, name)
            }
            if changed:
                self._check_off(found.moderation, changed.get("moderation", {}))
                connection.execute(update(tenants).where(tenants.c.id == tenant).values(_columns(changed)))
                at = self._now_ms()
                append(connection, Note(at=at, actor=actor, action="tenant.change", object=tenant, details=changed))
        self._recent.forget(tenant)
        return msgspec.structs.replace(found, **changed)

    def _check_off(self, before: Differences, after: Differences) -> None:
        """Refuse the name of no moderator; one that stands there already may have been one's, and harms nobody."""
        for name in after.get("off", ()):
            if self._moderators is not None and name not in (*self._moderators, *before.get("off", ())):
                raise Unfit("moderation.off", no_moderator(name, self._moderators))

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _one(connection: Connection, tenant: str) -> Tenant:
    query = select(tenants).where(tenants.c.id == tenant)
    row = connection.execute(query).mappings().first() if is_id(tenant) else None
    if row is None:
        raise UnknownTenant(tenant)
    return _tenant(row)


def _tenant(row: RowMapping) -> Tenant:
    values: dict[str, Any] = {**row, **{name: differences.decode(row[name]) for name in FORMS}}
    return Tenant(**values)


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: differences.encode(value) if name in FORMS else value for name, value in values.items()}


def _checked(terms: TenantTerms) -> dict[str, Any]:
    """The terms as values of a Tenant; raises Unfit."""
    if "name" in terms:
        check_line("name", terms["name"])
    if terms.get("status", "active") not in ("active", "suspended"):
        raise Unfit("status", "must be active or suspended")
    values: dict[str, Any] = dict(terms)
    return {
        name: differences.checked(name, FORMS[name], value) if name in FORMS else value
        for name, value in values.items()
    }


def _reworded(found: Tenant, wishes: Mapping[str, str]) -> TenantTerms:
    terms: dict[str, Any] = {table: getattr(found, table) for table in FORMS}
    for wish, value in wishes.items():
        table, _, name = wish.partition(".")
        if wish == "name":
            terms["name"] = value
        elif table not in FORMS or name not in FORMS[table].__struct_fields__:
            known = ", ".join(f"{each}.{field}" for each in FORMS for field in FORMS[each].__struct_fields__)
            raise Unfit(wish[:80], f"a tenant has no such setting of its own; there are name, {known}")
        else:
            terms[table] = differences.reworded(table, FORMS[table], terms[table], {name: value})
    return cast("TenantTerms", terms)
