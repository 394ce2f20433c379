"""Counts in Redis while it does its work, and this process's share of every limit while it does not.

The first failure switches over: requests wait for Redis once, for `limits.redis_wait` at most, and then no more until
it has proved itself. What is counted where is settled there; what Redis cannot be told now it is told later.

So a counter that the ledger knows keeps to its limit through all this, as far as the ledger knows of a request when the
next one is decided. Another may be filled twice in the windows in which Redis goes or comes back: there, and here by
all processes together. Places under way count on both sides.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from qwen3vl_compat.policies.limiting import HELD_S, Claim, Decision, Look
from qwen3vl_compat.policies.limiting.local import LocalLimiter
from qwen3vl_compat.policies.limiting.shared import RedisLimiter, Settlement, gauges_of

log = logging.getLogger(__name__)

PROBE_S = 0.5
RENEW_S = HELD_S / 3
OWED = 10_000
"""Settlements kept for Redis; of more the oldest are dropped, so that their claims count until their windows end."""


class Held:
    """A request under way: what was decided, and where it is counted."""

    __slots__ = ("claims", "decision", "local", "shared")

    def __init__(self, claims: Sequence[Claim], decision: Decision, *, shared: bool) -> None:
        self.claims, self.decision = claims, decision
        self.shared, self.local = shared, not shared


class FallbackLimiter:
    """Asks `shared`, and `local` while that is lost."""

    def __init__(self, shared: RedisLimiter, local: LocalLimiter) -> None:
        self._shared, self._local = shared, local
        self._held: dict[str, Held] = {}
        self._owed: deque[Settlement] = deque(maxlen=OWED)
        self._stale: set[tuple[str, int]] = set()
        self._lost = False
        self._work = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        try:
            await self._shared.start()
        except Exception as failure:
            self._lose(failure)
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """What Redis is still owed is tried once more."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        if not self._lost:
            with suppress(Exception):
                await self._pay()
        self._lost = True  # whoever settles after the end opens no connection again
        await self._shared.close()
        await self._local.close()

    async def admit(self, name: str, claims: Sequence[Claim]) -> Decision:
        if name in self._held:
            return self._held[name].decision
        if not self._lost:
            try:
                decision = await self._shared.admit(name, claims)
            except Exception as failure:
                self._lose(failure)
                self._give_up(name, claims)
            except BaseException:
                self._give_up(name, claims)
                raise
            else:
                return self._keep(name, claims, decision, shared=True)
        return self._keep(name, claims, await self._local.admit(name, claims), shared=False)

    async def admit_stored(self, claims: Sequence[Claim], more: Sequence[Claim], look: Look) -> Decision:
        """As `admit` without a name; the answer is not there while Redis is lost."""
        if not self._lost:
            try:
                return await self._shared.admit_stored(claims, more, look)
            except Exception as failure:
                self._lose(failure)
        return await self._local.admit("", claims)

    async def settle(self, name: str, amounts: Sequence[int]) -> None:
        held = self._held.pop(name, None)
        if held is None:
            return
        if held.local:
            await self._local.settle(name, amounts)
        if held.shared:
            await self._tell(self._shared.settlement(name, amounts))

    async def give_back(self, decision: Decision, amounts: Sequence[int]) -> None:
        """Where it was counted. Redis is told once: what it does not hear counts until the windows end."""
        if not isinstance(decision.receipt, bytes):
            await self._local.give_back(decision, amounts)
        elif not self._lost:
            try:
                await self._shared.give_back(decision, amounts)
            except Exception as failure:
                self._lose(failure)

    def _keep(self, name: str, claims: Sequence[Claim], decision: Decision, *, shared: bool) -> Decision:
        if name and decision.refused is None:
            self._held[name] = Held(claims, decision, shared=shared)
            self._spread(name, self._held[name])
        return decision

    def _spread(self, name: str, held: Held) -> None:
        """Let the request's places count where decisions are made now, wherever its own was made."""
        if not gauges_of(held.claims):
            return
        if self._lost and not held.local:
            self._local.adopt(name, held.claims)
            held.local = True
        elif not self._lost and not held.shared:
            self._shared.adopt(name, held.claims)
            held.shared = True

    def _give_up(self, name: str, claims: Sequence[Claim]) -> None:
        """Nobody knows whether these claims were noted, or will be: they are not to count."""
        if name:
            self._owe(Settlement(name, gauges_of(claims), None))

    def _owe(self, settlement: Settlement) -> None:
        self._owed.append(settlement)
        if not self._lost:
            self._work.set()

    async def _tell(self, settlement: Settlement) -> None:
        if self._lost:
            return self._owe(settlement)
        try:
            await self._shared.deliver(settlement)
        except Exception as failure:
            self._lose(failure)
            self._owe(settlement)
        except BaseException:
            self._owe(settlement)
            raise

    def _lose(self, failure: Exception) -> None:
        if not self._lost:
            self._lost = True
            log.warning("Redis is lost (%s): this process counts alone, its share of every limit", failure)
            for name, held in self._held.items():
                self._spread(name, held)

    async def _watch(self) -> None:
        """Look for a lost Redis again and again; tell one that is there what it is owed, and renew the places."""
        loop = asyncio.get_running_loop()
        renewal = loop.time() + RENEW_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    await self._work.wait()
            self._work.clear()
            try:
                if self._lost:
                    await self._recover()
                    renewal = loop.time()
                await self._pay()  # before renewing: a name that was given up may have its places by another decision
                if loop.time() >= renewal:
                    await self._shared.renew()
                    renewal = loop.time() + RENEW_S
            except Exception as failure:
                self._lose(failure)

    async def _recover(self) -> None:
        """Have Redis prove itself, and then trust it again.

        What was admitted here it does not know: it begins with the ledger's knowledge where there is any.
        """
        await self._shared.start()
        self._stale.update(self._local.forget())
        while self._stale:
            await self._shared.forget(list(self._stale))
            self._stale = set(self._local.forget())
        self._lost = False
        log.warning("Redis is back: limits are counted in it again")
        for name, held in self._held.items():
            self._spread(name, held)

    async def _pay(self) -> None:
        """Tell Redis what it could not be told."""
        while self._owed:
            settlement = self._owed[0]
            await self._shared.deliver(settlement)
            if self._owed and self._owed[0] is settlement:
                self._owed.popleft()
