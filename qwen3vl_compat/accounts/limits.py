"""What each tenant may send: the operator's settings, and where a tenant differs."""

import time

from sqlalchemy import Engine, select

from qwen3vl_compat.accounts import differences
from qwen3vl_compat.accounts.recent import CACHE_S, Recent
from qwen3vl_compat.accounts.tables import tenants
from qwen3vl_compat.settings import MediaLimits


class TenantLimits:
    """The limits of all tenants of one database; a change is seen by every process within CACHE_S seconds."""

    def __init__(self, engine: Engine, usual: MediaLimits) -> None:
        """`usual` holds for a tenant wherever nothing else is said of it."""
        self._engine, self._usual = engine, usual
        self._recent: Recent[MediaLimits] = Recent(keep_s=CACHE_S)

    def remembers(self, tenant: str) -> bool:
        """Whether `of` answers from memory."""
        return self._recent.get(tenant, time.monotonic())[0]

    def of(self, tenant: str) -> MediaLimits:
        """What a tenant may send; one that does not exist gets the usual."""
        now = time.monotonic()
        seen, limits = self._recent.get(tenant, now)
        if not seen or limits is None:
            with self._engine.connect() as connection:
                own = connection.execute(select(tenants.c.media).where(tenants.c.id == tenant)).scalar()
            limits = differences.over(self._usual, MediaLimits, differences.decode(own))
            self._recent.put(tenant, limits, now)
        return limits
