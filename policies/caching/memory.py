"""Values kept in this process, the longest unused given up first."""

import time
from collections import OrderedDict
from collections.abc import Callable

OVERHEAD = 200
"""Bytes that a value takes beside its own, about."""


class MemoryStore:
    """At most so many bytes."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self.size = 0

    async def get(self, name: str) -> bytes | None:
        value, until = self._values.get(name, (b"", 0.0))
        if until <= self._clock():
            self._drop(name)
            return None
        self._values.move_to_end(name)
        return value

    async def put(self, name: str, value: bytes, life: float) -> None:
        self._drop(name)
        if len(value) + OVERHEAD > self._most:
            return
        self._values[name] = value, self._clock() + life
        self.size += len(value) + OVERHEAD
        while self.size > self._most:
            self._drop(next(iter(self._values)))

    async def close(self) -> None:
        """Nothing to hang up."""

    def _drop(self, name: str) -> None:
        held = self._values.pop(name, None)
        if held is not None:
            self.size -= len(held[0]) + OVERHEAD
