"""Counts in Redis, for all processes together: one script call for a decision and one for its settlement.

All keys have one hash tag, so that a script finds them on one node of a cluster; two installations take two databases.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct
from redis.exceptions import NoScriptError, ResponseError

from qwen3vl_compat.policies.limiting import HELD_S, Claim, Decision, Seed
from qwen3vl_compat.policies.limiting.line import Line, Lost, Patience
from qwen3vl_compat.policies.limiting.scripts import ADMIT, RENEW, SETTLE, Script
from qwen3vl_compat.policies.limiting.seeding import Seeds

PREFIX = "qwen3vl:{limits}:"
OPENING_S = 1.0
"""Connecting may take this long when no request waits for it."""
PROBE = Claim(scope="probe", kind="requests", period=60, limit=2**53, amount=1)


class Settlement(Struct, frozen=True):
    """What is to become of a name's claims. Without amounts it is given up, whether it was ever noted or not."""

    name: str
    gauges: tuple[str, ...]
    amounts: tuple[int, ...] | None


class RedisLimiter:
    """Decides and settles in Redis, and raises Lost where that does not succeed: FallbackLimiter knows what then."""

    def __init__(
        self, url: str, seed: Seed | None = None, *, wait: float = 0.05, clock: Callable[[], float] | None = None
    ) -> None:
        """`wait` is seconds for Redis in a decision; `clock`, seconds since 1970, stands in for Redis' own.

        Raises ValueError for a URL that is none.
        """
        self._line, self._seeds, self._wait, self._clock = Line(url), Seeds(seed), wait, clock
        self._places: dict[str, tuple[str, ...]] = {}

    async def start(self) -> None:
        """Bring the scripts to Redis and see whether it does its work in time."""
        patience = Patience(OPENING_S)
        for script in (ADMIT, SETTLE, RENEW):
            await self._call(patience, "SCRIPT", "LOAD", script.text)
        await self.admit("", [PROBE])

    async def close(self) -> None:
        await self._seeds.close()
        await self._line.close()

    async def admit(self, name: str, claims: Sequence[Claim]) -> Decision:
        patience, told = Patience(self._wait), dict[int, tuple[int, int]]()
        while True:
            verdict, now, *found = await self._ask(patience, name, claims, told)
            if verdict >= 0:
                break
            for number in found:
                start = claims[number - 1].start(now)
                told[number] = await self._seeds.of(claims[number - 1], start), start
        standings = tuple(claim.standing(claim.limit - used, now) for claim, used in zip(claims, found, strict=True))
        if name and not verdict:
            self.adopt(name, claims)
        return Decision(standings=standings, refused=standings[verdict - 1] if verdict else None)

    async def settle(self, name: str, amounts: Sequence[int]) -> None:
        await self.deliver(self.settlement(name, amounts))

    def settlement(self, name: str, amounts: Sequence[int]) -> Settlement:
        """What `settle` brings to Redis. From now on the name's places are not renewed."""
        return Settlement(name, self._places.pop(name, ()), tuple(amounts))

    async def deliver(self, settlement: Settlement) -> None:
        """Bring it there; again changes nothing."""
        given_up = settlement.amounts is None
        keys = [f"hold:{settlement.name}", *settlement.gauges]
        await self._run(
            Patience(self._wait), SETTLE, keys, (settlement.name, int(given_up), *(settlement.amounts or ()))
        )

    def adopt(self, name: str, claims: Sequence[Claim]) -> None:
        """Renew the name's places from now on, wherever it was admitted."""
        gauges = gauges_of(claims)
        if gauges:
            self._places[name] = gauges

    async def renew(self) -> None:
        """Keep the places of all names that are under way here; those that are not there are taken again."""
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name, gauges in self._places.items():
            for gauge in gauges:
                names[gauge].append(name)
        for gauge, those in names.items():
            await self._run(Patience(self._wait), RENEW, [gauge], [name for name in those if name in self._places])

    async def forget(self, counters: Sequence[tuple[str, int]]) -> None:
        """Have these counters, by name and start of their window, begun anew with what the ledger knows."""
        if counters:
            await self._call(Patience(self._wait), "DEL", *(f"{PREFIX}{name}:{start}" for name, start in counters))

    async def _ask(
        self, patience: Patience, name: str, claims: Sequence[Claim], told: dict[int, tuple[int, int]]
    ) -> list[int]:
        """What the script answers, once it has the form that it should."""
        words: list[str | int] = [name]
        for number, claim in enumerate(claims, 1):
            usual = ("", "") if self._seeds.tell_of(claim.period) else (0, "")
            words += [1000 * claim.period, claim.limit, claim.amount, *told.get(number, usual)]
        answer = await self._run(patience, ADMIT, [f"hold:{name}", *(claim.counter for claim in claims)], words)
        verdict, found = (answer[0], answer[2:]) if len(answer) > 1 else (-2, [])
        numbers = range(1, len(claims) + 1)
        if verdict == -1 and found and all(number in numbers for number in found):
            return answer
        if len(found) != len(claims) or verdict not in (0, *numbers):
            raise Lost("it answers what was not asked")
        return answer

    async def _run(
        self, patience: Patience, script: Script, keys: Sequence[str], words: Sequence[str | int]
    ) -> list[int]:
        """A script's answer; Redis is sent the script where it does not know it."""
        now = "" if self._clock is None else int(self._clock() * 1000)
        rest = (len(keys), *(PREFIX + key for key in keys), now, 1000 * HELD_S, *words)
        try:
            answer = await self._line.call(patience, "EVALSHA", script.digest, *rest)
        except NoScriptError:
            answer = await self._call(patience, "EVAL", script.text, *rest)
        except ResponseError as refusal:
            raise Lost(str(refusal)) from None
        try:
            return msgspec.convert(answer, list[int])
        except msgspec.ValidationError:
            raise Lost("it answers what was not asked") from None

    async def _call(self, patience: Patience, *words: str | int) -> object:
        try:
            return await self._line.call(patience, *words)
        except ResponseError as refusal:
            raise Lost(str(refusal)) from None


def gauges_of(claims: Sequence[Claim]) -> tuple[str, ...]:
    """Where these claims take a place."""
    return tuple(claim.counter for claim in claims if claim.period == 0 and claim.amount)
