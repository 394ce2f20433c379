"""What tests of limiters count with: claims, a clock that only moves when told to, and limiters of both kinds."""

from collections.abc import Sequence

from qwen3vl_compat.policies.limiting import Claim, Decision, Kind, Seed
from qwen3vl_compat.policies.limiting.local import LocalLimiter
from qwen3vl_compat.policies.limiting.shared import RedisLimiter
from tests.redis_server import RedisServer

NOON = 1_700_049_600.0
"""Seconds since 1970 of a noon UTC."""
HOUR, DAY = 3600, 86_400
AGES = 10**9
"""The period of windows that end in 2033, for tests by the real clock."""
PATIENCE = 10.0
"""Seconds for Redis on a busy machine."""


class Clock:
    """Seconds since 1970 as the test says."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Told:
    """A ledger that knows what the test says, and notes what it was asked."""

    def __init__(self, used: int = 0) -> None:
        self.used = used
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, claim: Claim, start: int) -> int:
        self.asked.append((claim.counter, start))
        return self.used


class Counting:
    """Limiters of one kind, all of which count together: in one memory, or in one Redis."""

    def __init__(self, server: RedisServer | None) -> None:
        self.clock, self._server, self.shared = Clock(), server, server is not None
        self.made: list[LocalLimiter | RedisLimiter] = []
        if server is not None:
            server.command("FLUSHALL")

    def limiter(self, seed: Seed | None = None) -> LocalLimiter | RedisLimiter:
        if self._server is None:
            limiter = LocalLimiter(seed, self.clock)
        else:
            limiter = RedisLimiter(self._server.url, seed, wait=PATIENCE, clock=self.clock)
        self.made.append(limiter)
        return limiter

    async def close(self) -> None:
        for limiter in self.made:
            await limiter.close()


def claim(kind: Kind, limit: int, amount: int = 1, *, period: int = 60, scope: str = "key:a") -> Claim:
    """A minute's claim of a key, unless said otherwise; `concurrent` has no period."""
    return Claim(scope=scope, kind=kind, period=0 if kind == "concurrent" else period, limit=limit, amount=amount)


def left(decision: Decision) -> list[int]:
    return [standing.remaining for standing in decision.standings]


def refused(decision: Decision) -> str | None:
    """The kind of the claim that did not fit."""
    return decision.refused and decision.refused.claim.kind


async def room(limiter: LocalLimiter | RedisLimiter, claims: Sequence[Claim]) -> list[int]:
    """What is left of these counters, asked without taking any."""
    nothing = [Claim(scope=c.scope, kind=c.kind, period=c.period, limit=c.limit, amount=0) for c in claims]
    return left(await limiter.admit("", nothing))
