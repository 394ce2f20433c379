"""The accounts of one database, opened together."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from msgspec import Struct
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from qwen3vl_compat.accounts import differences
from qwen3vl_compat.accounts.audit import Audit
from qwen3vl_compat.accounts.database import is_lost
from qwen3vl_compat.accounts.key import Key
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.limits import TenantLimits
from qwen3vl_compat.accounts.money import Price
from qwen3vl_compat.accounts.prices import Prices
from qwen3vl_compat.accounts.tenants import Tenant, Tenants
from qwen3vl_compat.accounts.usage import Usage
from qwen3vl_compat.errors import Overloaded
from qwen3vl_compat.messages import Caller
from qwen3vl_compat.settings import MediaLimits, ModerationTerms, Quotas, Settings

T = TypeVar("T")
UNREACHABLE = "The server's accounts cannot be reached now. Please try again later."


class Terms(NamedTuple):
    """What holds for a caller: the key's own quotas and its tenant's."""

    key: Quotas
    tenant: Quotas


_NOTHING = Terms(Quotas(concurrent=0), Quotas())


class Accounts(Struct, frozen=True, kw_only=True):
    """Who may call, what that costs, what it came to, and who changed any of it.

    The coroutines are for every request: they answer from memory for up to CACHE_S seconds, and read the database in a
    thread, so that one that is slow to answer holds up nobody else. Overloaded says that it cannot be reached.
    """

    database: Engine
    usual: Quotas
    usual_moderation: ModerationTerms
    keys: Keys
    tenants: Tenants
    media: TenantLimits
    prices: Prices
    audit: Audit
    usage: Usage

    async def key(self, presented: str) -> Key | None:
        """The key that was presented, usable or not; None if it is none of ours."""
        return await _found(self.keys.remembers(presented), lambda: self.keys.find(presented))

    async def tenant(self, name: str) -> Tenant | None:
        """A tenant, None where there is none."""
        return await _found(self.tenants.remembers(name), lambda: self.tenants.find(name))

    async def media_limits(self, tenant: str) -> MediaLimits:
        """What a tenant may send."""
        return await _found(self.media.remembers(tenant), lambda: self.media.of(tenant))

    async def moderation(self, tenant: str) -> ModerationTerms:
        """On which terms a tenant's requests and answers are moderated."""
        return self._moderation_of(await self.tenant(tenant))

    def remembered_moderation(self, tenant: str) -> ModerationTerms | None:
        """The same at once, None where the database would have to be read."""
        return self._moderation_of(self.tenants.find(tenant)) if self.tenants.remembers(tenant) else None

    def _moderation_of(self, tenant: Tenant | None) -> ModerationTerms:
        own = tenant.moderation if tenant else {}
        return differences.over(self.usual_moderation, ModerationTerms, own) if own else self.usual_moderation

    async def price(self, model: str, now_ms: int) -> Price | None:
        """The price in effect for a model at that time."""
        return await _found(self.prices.remembers(model), lambda: self.prices.at(model, now_ms))

    async def terms(self, caller: Caller) -> Terms:
        """What holds for a caller whose key or tenant was there a moment ago; one that is gone may use nothing."""
        if caller.key:
            key = await _found(self.keys.remembers(caller.key), lambda: self.keys.known(caller.key))
            return Terms(key.limits, key.tenant_limits) if key else _NOTHING
        tenant = await self.tenant(caller.tenant)
        return Terms(Quotas(), self.limits_of(tenant)) if tenant else _NOTHING

    def limits_of(self, tenant: Tenant) -> Quotas:
        """A tenant's quotas: its own over the operator's."""
        return differences.over(self.usual, Quotas, tenant.limits)


async def _found(remembered: bool, read: Callable[[], T]) -> T:
    if remembered:
        return read()
    try:
        return await asyncio.to_thread(read)
    except SQLAlchemyError as error:
        if is_lost(error):
            raise Overloaded(UNREACHABLE, retry_after=5) from None
        raise


def open_accounts(database: Engine, settings: Settings, *, served: bool = True) -> Accounts:
    """The accounts in a database that is open.

    Unless these are the settings `served`, there may be moderators although they name none.
    """
    moderators = settings.moderation.names
    usual = Quotas(**{name: getattr(settings.limits, name) for name in Quotas.__struct_fields__})
    return Accounts(
        database=database,
        usual=usual,
        usual_moderation=settings.moderation,
        keys=Keys(database, usual=usual),
        tenants=Tenants(database, moderators=moderators if served else moderators or None),
        media=TenantLimits(database, settings.media),
        prices=Prices(database),
        audit=Audit(database),
        usage=Usage(database),
    )
