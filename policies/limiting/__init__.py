"""Limits on what may be used in a time: a request claims all that it could use at once, and gives back the rest.

A counter counts in windows of its period that begin at whole multiples of it since 1970 (so days are UTC days); one of
period 0 is a gauge of what is under way. Whether all claims fit is decided in one step: all are noted, or none.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from qwen3vl_compat.settings import LimitSettings, SettingsError

Kind = Literal["requests", "tokens", "tokens_in", "tokens_out", "pictures", "concurrent"]
HELD_S = 60
"""A place under way is free again this long after it was last renewed: its process has died."""
SEEDED_S = 3600
"""A counter of at least this period that is not there is begun with what the ledger knows, not with nothing."""


class Claim(Struct, frozen=True, kw_only=True):
    """So much of one counter. `scope` is whose: `ip:<address>`, `key:<public>` or `tenant:<id>`.

    Nothing always fits. Two claims of one decision on the same counter are added up.
    """

    scope: str
    kind: Kind
    period: int
    """Seconds; 0 for `concurrent`."""
    limit: int
    """Most in one window."""
    amount: int
    """Of `concurrent` 1: a name has one place."""

    @property
    def counter(self) -> str:
        """The counter's name, the same in every process."""
        return f"{self.scope}:{self.kind}:{self.period}"

    def start(self, now: int) -> int:
        """When the window began that `now` lies in, both in milliseconds since 1970."""
        return now - now % (1000 * self.period)

    def standing(self, room: int, now: int, most: int | None = None) -> "Standing":
        """How the counter stands with so much room at `now`, milliseconds since 1970; `most` if it is not the limit."""
        reset = (self.start(now) + 1000 * self.period - now) / 1000 if self.period else 0.0
        return Standing(claim=self, most=self.limit if most is None else most, remaining=max(0, room), reset=reset)


class Standing(Struct, frozen=True, kw_only=True):
    """How a counter stands after a decision: what is left of it (never below 0), and seconds until it begins anew.

    A gauge never does: its `reset` is 0. `most` is what one who counts alone can admit at all: a share of the limit.
    """

    claim: Claim
    most: int
    remaining: int
    reset: float


class Look(Struct, frozen=True, kw_only=True):
    """A stored answer, by its key in Redis, and the seal that it has to bear: its first bytes."""

    key: str
    seal: bytes


class Decision(Struct, frozen=True, kw_only=True):
    """Whether all claims fit; `refused` is the first that did not, and `standings` are in the order of the claims."""

    standings: tuple[Standing, ...]
    refused: Standing | None = None
    stored: bytes | None = None
    """The answer that was looked for, if it is there and all fits."""
    receipt: object = None
    """Of what was noted without a name: `give_back` reads it."""


Seed = Callable[[Claim, int], Awaitable[int]]
"""What the ledger knows was used of a counter since the start of its window (milliseconds since 1970)."""


class Limiter(Protocol):
    """Counts claims. All methods are called from one asyncio loop and none raises: a limiter that cannot do as it
    should does the next best and says so in the log. A name is one request's, and never used again by another.
    """

    async def admit(self, name: str, claims: Sequence[Claim]) -> Decision:
        """Note all claims, or none. With a name they are held until settled; again with the same changes nothing.

        Places are taken only under a name.
        """
        ...

    async def admit_stored(self, claims: Sequence[Claim], more: Sequence[Claim], look: Look) -> Decision:
        """As `admit` without a name; a stored answer comes along if it is there, and for it `more` are noted too."""
        ...

    async def settle(self, name: str, amounts: Sequence[int]) -> None:
        """What was used of each claim, in their order: the rest goes back to the same window, and a place under way is
        free. Only the first time for a name; an unknown one is nothing. No more is counted than was claimed.
        """
        ...

    async def give_back(self, decision: Decision, amounts: Sequence[int]) -> None:
        """As `settle` for a decision without a name, whose request was refused after all. To be called once."""
        ...

    async def start(self) -> None:
        """Begin to renew the places held, and to look for what was lost."""
        ...

    async def close(self) -> None:
        """End that."""
        ...


def make_limiter(settings: LimitSettings, seed: Seed | None, share: Callable[[], int]) -> Limiter:
    """The limiter that is asked for: in Redis with `limits.redis`, else in this process with its share of all limits.

    `share` says how many processes there are. Raises SettingsError.
    """
    from qwen3vl_compat.policies.limiting.local import LocalLimiter

    local = LocalLimiter(seed, time.time, share)
    if not settings.redis:
        return local
    try:
        from qwen3vl_compat.policies.limiting.fallback import FallbackLimiter
        from qwen3vl_compat.policies.limiting.shared import RedisLimiter
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        raise SettingsError("limits.redis needs the package redis: install qwen3vl-compat[redis].") from None
    try:
        shared = RedisLimiter(settings.redis, seed, wait=settings.redis_wait)
    except ValueError as error:
        raise SettingsError(f"limits.redis cannot be used: {error}.") from None
    return FallbackLimiter(shared, local)
