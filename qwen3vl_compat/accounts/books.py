"""The accounts of one database, opened together."""

from msgspec import Struct
from sqlalchemy import Engine

from qwen3vl_compat.accounts.audit import Audit
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.prices import Prices
from qwen3vl_compat.accounts.tenants import Tenants
from qwen3vl_compat.settings import Settings


class Accounts(Struct, frozen=True, kw_only=True):
    """Who may call, what that costs, and who changed either."""

    database: Engine
    keys: Keys
    tenants: Tenants
    prices: Prices
    audit: Audit


def open_accounts(database: Engine, settings: Settings) -> Accounts:
    """The accounts in a database that is open."""
    return Accounts(
        database=database,
        keys=Keys(database, usual=settings.limits),
        tenants=Tenants(database),
        prices=Prices(database),
        audit=Audit(database),
    )
