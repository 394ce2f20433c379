"""Time in steps, as a device makes it: in each step every row makes one token."""

import asyncio


class Clock:
    """Steps of so many seconds on the loop's clock; one timer wakes all who wait for the next one."""

    def __init__(self, seconds: float) -> None:
        """Above 0."""
        self._seconds = seconds
        self._step = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def steps(self) -> int:
        """How many are over."""
        return int(asyncio.get_running_loop().time() / self._seconds)

    async def reach(self, step: int) -> None:
        """Wait until so many are over; at once for those that are."""
        while self.steps < step:
            if self._timer is None:
                when = (self.steps + 1) * self._seconds
                self._timer = asyncio.get_running_loop().call_at(when, self._ring)
            await self._step.wait()

    def _ring(self) -> None:
        self._timer = None
        self._step.set()
        self._step = asyncio.Event()
