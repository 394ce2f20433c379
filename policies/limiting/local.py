"""Counts in this process alone: exact for one process, and each one's share where there are several."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import cast

from msgspec import Struct

from qwen3vl_compat.policies.limiting import Claim, Decision, Look, Seed
from qwen3vl_compat.policies.limiting.seeding import Seeds

SWEPT = 1024
"""Counters that are kept before those of windows gone by are looked for."""


class Count:
    """What was used of a counter in one window of `period` seconds; `told` is what the ledger knew of that."""

    __slots__ = ("period", "told", "used")

    def __init__(self, period: int, told: int = 0) -> None:
        self.period, self.told, self.used = period, told, told


Noted = tuple[tuple[Count | None, int], ...]
"""What was noted of claims, in their order: the count, of those that have one, and the amount."""


class Hold(Struct, frozen=True):
    """What a name holds, and the gauges it has a place in."""

    counts: Noted
    gauges: tuple[str, ...]


class LocalLimiter:
    """Counts in memory. With several processes each admits its share of every limit, and of what the ledger left."""

    def __init__(
        self,
        seed: Seed | None = None,
        clock: Callable[[], float] = time.time,
        share: Callable[[], int] = lambda: 1,
    ) -> None:
        """`clock` gives seconds since 1970, `share` the number of processes that count alone."""
        self._seeds, self._clock, self._share = Seeds(seed), clock, share
        self._counts: dict[tuple[str, int], Count] = {}
        self._places: defaultdict[str, set[str]] = defaultdict(set)
        self._holds: dict[str, Hold] = {}
        self._sweep_at = SWEPT

    async def start(self) -> None:
        """Nothing: places end with the process that counts them."""

    async def close(self) -> None:
        await self._seeds.close()

    async def admit(self, name: str, claims: Sequence[Claim]) -> Decision:
        now = self._now()
        while name not in self._holds and (missing := self._missing(claims, now)):
            for claim in missing:
                start = claim.start(now)
                told = await self._seeds.of(claim, start)
                self._counts.setdefault((claim.counter, start), Count(claim.period, told))
            now = self._now()
        if len(self._counts) > self._sweep_at:
            self._sweep(now)
        return self._decide(name, claims, now)  # nothing else runs on the loop from the last look to the note

    async def admit_stored(self, claims: Sequence[Claim], more: Sequence[Claim], look: Look) -> Decision:
        """Nothing is stored here."""
        return await self.admit("", claims)

    async def settle(self, name: str, amounts: Sequence[int]) -> None:
        hold = self._holds.pop(name, None)
        if hold is None:
            return
        _return(hold.counts, amounts)
        for gauge in hold.gauges:
            self._places[gauge].discard(name)
            if not self._places[gauge]:
                del self._places[gauge]

    async def give_back(self, decision: Decision, amounts: Sequence[int]) -> None:
        if decision.receipt is not None:
            _return(cast("Noted", decision.receipt), amounts)

    def adopt(self, name: str, claims: Sequence[Claim]) -> None:
        """Let a request that was admitted elsewhere have its places here too, whether they fit or not."""
        if name not in self._holds:
            self._hold(name, tuple((None, claim.amount) for claim in claims), claims)

    def forget(self) -> list[tuple[str, int]]:
        """Forget what the ledger can tell again; returns the counters and windows in which something was admitted."""
        known = {key: count for key, count in self._counts.items() if self._seeds.tell_of(count.period)}
        for key in known:
            del self._counts[key]
        return [key for key, count in known.items() if count.used != count.told]

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _missing(self, claims: Sequence[Claim], now: int) -> list[Claim]:
        """Those whose counters are not there although the ledger knows them."""
        told = [claim for claim in claims if self._seeds.tell_of(claim.period)]
        return [claim for claim in told if (claim.counter, claim.start(now)) not in self._counts]

    def _decide(self, name: str, claims: Sequence[Claim], now: int) -> Decision:
        again = name in self._holds
        taken: defaultdict[str, int] = defaultdict(int)
        fits: list[bool] = []
        for claim in claims:
            left = self._room(claim, now) - taken[claim.counter]
            fits.append(again or claim.amount == 0 or claim.amount <= left)
            taken[claim.counter] += claim.amount
        noted = self._note(name, claims, now) if not again and all(fits) else None
        standings = tuple(claim.standing(self._room(claim, now), now, self._share_of(claim.limit)) for claim in claims)
        refused = next((standing for standing, fit in zip(standings, fits, strict=True) if not fit), None)
        return Decision(standings=standings, refused=refused, receipt=None if name else noted)

    def _room(self, claim: Claim, now: int) -> int:
        """What this process may still admit of the claim's counter; below 0 where the limit was lowered."""
        if claim.period == 0:
            return self._share_of(claim.limit) - len(self._places.get(claim.counter, ()))
        count = self._counts.get((claim.counter, claim.start(now))) or Count(claim.period)
        return count.told + self._share_of(claim.limit - count.told) - count.used

    def _share_of(self, limit: int) -> int:
        return max(1, limit // max(1, self._share())) if limit > 0 else 0

    def _note(self, name: str, claims: Sequence[Claim], now: int) -> Noted:
        counts: list[tuple[Count | None, int]] = []
        for claim in claims:
            count = None
            if claim.period and claim.amount:
                count = self._counts.setdefault((claim.counter, claim.start(now)), Count(claim.period))
                count.used += claim.amount
            counts.append((count, claim.amount))
        if name:
            self._hold(name, tuple(counts), claims)
        return tuple(counts)

    def _hold(self, name: str, counts: Noted, claims: Sequence[Claim]) -> None:
        gauges = tuple(claim.counter for claim in claims if claim.period == 0 and claim.amount)
        for gauge in gauges:
            self._places[gauge].add(name)
        self._holds[name] = Hold(counts, gauges)

    def _sweep(self, now: int) -> None:
        """Drop the windows that are over, however often there is one more of them."""
        self._counts = {key: count for key, count in self._counts.items() if key[1] + 1000 * count.period > now}
        self._sweep_at = max(SWEPT, 2 * len(self._counts))


def _return(noted: Noted, amounts: Sequence[int]) -> None:
    """Take back of each count what was not used of it."""
    for (count, claimed), used in zip_longest(noted, amounts[: len(noted)]):
        if count is not None and used is not None:
            count.used -= claimed - min(max(used, 0), claimed)
