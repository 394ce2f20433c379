"""Counts in Redis, for all processes together: one script call for a decision and one for its settlement.

All keys have one hash tag, so that a script finds them on one node of a cluster; two installations take two databases.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from msgspec import Struct
from redis.exceptions import NoScriptError, ResponseError

from qwen3vl_compat.policies.limiting import HELD_S, Claim, Decision, Look, Seed
from qwen3vl_compat.policies.limiting.line import Line, Lost, Patience
from qwen3vl_compat.policies.limiting.scripts import ADMIT, RENEW, SETTLE, Script
from qwen3vl_compat.policies.limiting.seeding import Seeds

PREFIX = "qwen3vl:{limits}:"
OPENING_S = 1.0
"""Connecting may take this long when no request waits for it."""
PROBE = Claim(scope="probe", kind="requests", period=60, limit=2**53, amount=1)


class Asked(Struct, frozen=True):
    """What is to be decided: all of the claims, or the first so many of them where a stored answer is not there."""

    name: str
    claims: Sequence[Claim]
    look: Look | None = None
    least: int = 0


class Said(NamedTuple):
    """What the script says: 0, the number of a claim or -1; its time; a number for each claim; and what comes along."""

    verdict: int
    now: int
    found: list[int]
    receipt: bytes = b""
    stored: bytes | None = None


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
        decision = await self._decide(Asked(name, claims))
        if name and decision.refused is None:
            self.adopt(name, claims)
        return decision

    async def admit_stored(self, claims: Sequence[Claim], more: Sequence[Claim], look: Look) -> Decision:
        """Note all of `claims` or none, and bring a stored answer along if it is there, for which there are `more`."""
        return await self._decide(Asked("", (*claims, *more), look, len(claims)))

    async def _decide(self, asked: "Asked") -> Decision:
        patience, told, claims = Patience(self._wait), dict[int, tuple[int, int]](), asked.claims
        while True:
            said = await self._ask(patience, asked, told)
            verdict, now, found = said.verdict, said.now, said.found
            if verdict >= 0:
                break
            for number in found:
                start = claims[number - 1].start(now)
                told[number] = await self._seeds.of(claims[number - 1], start), start
        standings = tuple(claim.standing(claim.limit - used, now) for claim, used in zip(claims, found, strict=False))
        refused = standings[verdict - 1] if verdict else None
        return Decision(standings=standings, refused=refused, stored=said.stored, receipt=said.receipt or None)

    async def settle(self, name: str, amounts: Sequence[int]) -> None:
        await self.deliver(self.settlement(name, amounts))

    def settlement(self, name: str, amounts: Sequence[int]) -> Settlement:
        """What `settle` brings to Redis. From now on the name's places are not renewed."""
        return Settlement(name, self._places.pop(name, ()), tuple(amounts))

    async def deliver(self, settlement: Settlement) -> None:
        """Bring it there; again changes nothing."""
        given_up = settlement.amounts is None
        keys = [f"hold:{settlement.name}", *settlement.gauges]
        words = (settlement.name, int(given_up), "", *(settlement.amounts or ()))
        await self._run(Patience(self._wait), SETTLE, keys, words)

    async def give_back(self, decision: Decision, amounts: Sequence[int]) -> None:
        if isinstance(decision.receipt, bytes):
            await self._run(Patience(self._wait), SETTLE, ["hold:"], ("", 0, decision.receipt, *amounts))

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

    async def _ask(self, patience: Patience, asked: "Asked", told: dict[int, tuple[int, int]]) -> "Said":
        """What the script answers, once it has the form that it should."""
        claims, look = asked.claims, asked.look
        words: list[str | bytes | int] = [asked.name, look.seal if look else "", asked.least]
        for number, claim in enumerate(claims, 1):
            usual = ("", "") if self._seeds.tell_of(claim.period) else (0, "")
            words += [1000 * claim.period, claim.limit, claim.amount, *told.get(number, usual)]
        keys = [f"hold:{asked.name}", *(claim.counter for claim in claims)]
        answer = await self._run(patience, ADMIT, keys if look is None else [*keys, look.key], words)
        stored = answer.pop() if look and answer and isinstance(answer[-1], bytes) else None
        receipt = answer.pop(2) if len(answer) > 2 else None
        if not isinstance(receipt, bytes) or not all(isinstance(each, int) for each in answer):
            raise Lost("it answers what was not asked")
        verdict, now, *found = cast("list[int]", answer)
        numbers = range(1, len(claims) + 1)
        if verdict == -1 and found and all(number in numbers for number in found):
            return Said(verdict, now, found)
        counted = len(claims) if look is None or stored is not None else None
        if len(found) not in {counted or asked.least, len(claims)} or verdict not in (0, *numbers):
            raise Lost("it answers what was not asked")
        return Said(verdict, now, found, receipt, stored)

    async def _run(
        self, patience: Patience, script: Script, keys: Sequence[str], words: Sequence[str | bytes | int]
    ) -> list[object]:
        """A script's answer; Redis is sent the script where it does not know it."""
        now = "" if self._clock is None else int(self._clock() * 1000)
        rest = (len(keys), *(PREFIX + key for key in keys), now, 1000 * HELD_S, *words)
        try:
            answer = await self._line.call(patience, "EVALSHA", script.digest, *rest)
        except NoScriptError:
            answer = await self._call(patience, "EVAL", script.text, *rest)
        except ResponseError as refusal:
            raise Lost(str(refusal)) from None
        if not isinstance(answer, list):
            raise Lost("it answers what was not asked")
        return cast("list[object]", answer)

    async def _call(self, patience: Patience, *words: str | int) -> object:
        try:
            return await self._line.call(patience, *words)
        except ResponseError as refusal:
            raise Lost(str(refusal)) from None


def gauges_of(claims: Sequence[Claim]) -> tuple[str, ...]:
    """Where these claims take a place."""
    return tuple(claim.counter for claim in claims if claim.period == 0 and claim.amount)
