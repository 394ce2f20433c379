"""What the ledger tells of a counter that is not there: asked once for all who wait for it, and missed by none."""

import asyncio
import logging

from qwen3vl_compat.policies.limiting import SEEDED_S, Claim, Seed

log = logging.getLogger(__name__)

WAIT_S = 5.0
"""The ledger is given up after this long."""


class Seeds:
    """The ledger's knowledge of counters. One that it cannot tell is taken for 0, and the log says so once."""

    def __init__(self, seed: Seed | None) -> None:
        self._seed, self._silent = seed, False
        self._asking: dict[tuple[str, int], asyncio.Task[int]] = {}

    def tell_of(self, period: int) -> bool:
        """Whether the ledger knows counters of so many seconds."""
        return self._seed is not None and period >= SEEDED_S

    async def of(self, claim: Claim, start: int) -> int:
        """What was used of the counter since `start`, milliseconds since 1970. Never raises."""
        asked = claim.counter, start
        task = self._asking.get(asked)
        if task is None:
            task = self._asking[asked] = asyncio.create_task(self._ask(claim, start))
            task.add_done_callback(lambda _: self._asking.pop(asked, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ask no more."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, claim: Claim, start: int) -> int:
        if self._seed is None:
            return 0
        try:
            async with asyncio.timeout(WAIT_S):
                told = max(0, int(await self._seed(claim, start)))
        except Exception as error:
            if not self._silent:
                log.error("the ledger does not tell what was used (%r): counters begin with nothing", error)
            self._silent = True
            return 0
        self._silent = False
        return told
