"""What may be used in a time."""

from functools import lru_cache
from typing import Annotated, Literal

import limits
from msgspec import Meta, Struct

from qwen3vl_compat.accounts.money import parse_amount
from qwen3vl_compat.settings.types import Limit, Redis, Words


class Quotas(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a tenant or a key may use; empty and None are no limit. A request has to pass its key's and its tenant's."""

    requests: Words = ""
    """In slowapi's words, as `60/minute;1000/day`; those refused for another reason count too."""
    tokens: Limit | None = None
    """A minute's, prompt and answer together; `tokens_in` and `tokens_out` each alone."""
    tokens_in: Limit | None = None
    tokens_out: Limit | None = None
    pictures: Limit | None = None
    """A UTC day's; a video and a document's page are one each."""
    concurrent: Limit | None = None
    """Requests under way at once."""
    budget: Words = ""
    """Money in a UTC day or month, as `0.50/day;5.00/month`."""

    def __post_init__(self) -> None:
        requests_of(self.requests)
        budgets_of(self.budget)


@lru_cache(1000)
def requests_of(text: str, name: str = "requests") -> tuple[tuple[int, int], ...]:
    """(Requests, seconds) for each part of a limit string; ValueError, by the setting's name, for one that is none."""
    if not text:
        return ()
    try:
        parts = limits.parse_many(text)
    except ValueError:
        raise ValueError(f"{name}: '{text[:80]}' is no limit as 60/minute;1000/day") from None
    if any(not 1 <= part.amount <= 10**9 or not 1 <= part.get_expiry() <= 366 * 86_400 for part in parts):
        raise ValueError(f"{name}: '{text[:80]}' has a limit that is too large or too small")
    if len({part.get_expiry() for part in parts}) != len(parts):
        raise ValueError(f"{name}: '{text[:80]}' has two limits for the same time")
    return tuple((part.amount, part.get_expiry()) for part in parts)


@lru_cache(1000)
def budgets_of(text: str) -> tuple[tuple[int, Literal["day", "month"]], ...]:
    """(Nano-units, period) for each part of a budget; ValueError for one that is none."""
    found: list[tuple[int, Literal["day", "month"]]] = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        amount, _, period = part.partition("/")
        if period not in ("day", "month") or period in [each for _, each in found]:
            raise ValueError(f"budget: '{text[:80]}' is no budget as 0.50/day;5.00/month")
        try:
            found.append((parse_amount(amount.strip()), period))
        except ValueError as error:
            raise ValueError(f"budget: {error}") from None
    return tuple(found)


class LimitSettings(Quotas, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may use that has nothing else set, and where it is counted."""

    ip: Words = ""
    """Requests from one address to any path that takes a key, as `600/minute`."""
    redis: Redis = ""
    """Where several processes count together, a database of its own; without it each takes its share of every limit."""
    redis_wait: Annotated[float, Meta(gt=0, le=1)] = 0.05
    """Seconds that a request waits for Redis at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        requests_of(self.ip, "ip")
