"""What each tenant may send: the operator's settings, and where a tenant differs."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, select, update

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.keys import CACHE_S, UnknownTenant
from qwen3vl_compat.accounts.recent import Recent
from qwen3vl_compat.accounts.tables import tenants
from qwen3vl_compat.settings import MediaLimits, SettingsError


class TenantLimits:
    """The limits of all tenants of one database; a change is seen by every process within CACHE_S seconds."""

    def __init__(self, engine: Engine, usual: MediaLimits) -> None:
        """`usual` holds for a tenant wherever nothing else is said of it."""
        self._engine, self._writer, self._usual = engine, writing(engine), usual
        self._recent: Recent[MediaLimits] = Recent(keep_s=CACHE_S)

    def of(self, tenant: str) -> MediaLimits:
        """What a tenant may send; one that does not exist gets the usual."""
        now = time.monotonic()
        seen, limits = self._recent.get(tenant, now)
        if not seen or limits is None:
            limits = self._with(self.changes(tenant))
            self._recent.put(tenant, limits, now)
        return limits

    def changes(self, tenant: str) -> dict[str, Any]:
        """Where a tenant differs, by the names of the settings."""
        with self._engine.connect() as connection:
            return _stored(connection, tenant)

    def change(self, tenant: str, wishes: Mapping[str, str]) -> dict[str, Any]:
        """Change some of them; an empty text takes a change back. Returns where the tenant differs then.

        Raises UnknownTenant, or SettingsError for a name or value that no setting has.
        """
        unknown = UnknownTenant(f"There is no tenant {tenant!r}.")
        if not tenant.isprintable():  # PostgreSQL cannot even be asked for a NUL character
            raise unknown
        with self._writer.begin() as connection:
            kept = self._changed(_stored(connection, tenant), wishes)
            values = {"media": msgspec.json.encode(kept).decode() if kept else None}
            if connection.execute(update(tenants).where(tenants.c.id == tenant).values(values)).rowcount != 1:
                raise unknown
        self._recent.forget(tenant)
        return kept

    def _changed(self, changes: dict[str, Any], wishes: Mapping[str, str]) -> dict[str, Any]:
        """The changes with the wishes among them, as JSON holds them."""
        for name, text in wishes.items():
            if name not in MediaLimits.__struct_fields__:
                known = ", ".join(f"media.{each}" for each in MediaLimits.__struct_fields__)
                raise SettingsError(f"There is no limit media.{name} of a tenant's own; there are {known}.")
            changes.pop(name, None)
            if text:
                many = isinstance(getattr(self._usual, name), tuple)
                changes[name] = [part.strip() for part in text.split(",")] if many else text
                if not _fits({name: changes[name]}):
                    raise SettingsError(f"The limit media.{name} cannot be '{text}'.")
        limits = self._with(changes)
        kept: dict[str, Any] = msgspec.json.decode(
            msgspec.json.encode({name: getattr(limits, name) for name in changes})
        )
        return kept

    def _with(self, changes: dict[str, Any]) -> MediaLimits:
        usual = {name: getattr(self._usual, name) for name in MediaLimits.__struct_fields__}
        return msgspec.convert(usual | changes, MediaLimits, strict=False)


def _stored(connection: Connection, tenant: str) -> dict[str, Any]:
    """The column of a tenant's row, {} where there is no such row."""
    text = connection.execute(select(tenants.c.media).where(tenants.c.id == tenant)).scalar()
    return msgspec.json.decode(text, type=dict[str, Any]) if text else {}


def _fits(changes: dict[str, Any]) -> bool:
    try:
        msgspec.convert(changes, MediaLimits, strict=False)
    except msgspec.ValidationError:
        return False
    return True
