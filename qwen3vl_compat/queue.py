"""Waiting in turn: each tenant's in their order, the tenants one after the other, as many as there is room for."""

import asyncio
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from qwen3vl_compat.errors import Overloaded

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A bounded queue that no tenant can keep another out of.

    Tenants are served in turn, so a long line of one delays the others by one place. Where the room is full, whoever
    comes takes the place of the newest of the tenant that has most, unless that left its own tenant with more. What
    waits is told apart by `==`.
    """

    def __init__(self, most: int = sys.maxsize) -> None:
        self._most, self._size = most, 0
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        """By tenant, the one whose turn it is first; none is empty."""

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    def places(self, tenant: str) -> int:
        """How many more of this tenant there is room for, those counted that would give way to it."""
        free = self._most - self._size
        longest = max(map(len, self._lines.values()), default=0)
        return free + max(0, longest - len(self._lines.get(tenant, ())) - free) // 2

    def push(self, tenant: str, item: T) -> T | None:
        """Queue behind the others of the tenant; returns what there is no room for: this item, or an older one."""
        if not self.places(tenant):
            return item
        pushed_out = None
        if self._size == self._most:
            pushed_out = max(self._lines.values(), key=len).pop()  # of two or more, so none is left empty
            self._size -= 1
        self._lines.setdefault(tenant, deque()).append(item)
        self._size += 1
        return pushed_out

    def first(self) -> T | None:
        """Whose turn it is."""
        return next(iter(self._lines.values()))[0] if self._lines else None

    def pop(self) -> T:
        """Take the first; its tenant's next one comes after every other tenant's."""
        tenant, line = self._lines.popitem(last=False)
        item = line.popleft()
        if line:
            self._lines[tenant] = line
        self._size -= 1
        return item

    def remove(self, tenant: str, item: T) -> None:
        """Take one out, wherever it stands, if it is there."""
        line = self._lines.get(tenant)
        if line is not None and item in line:
            line.remove(item)
            self._size -= 1
            if not line:
                del self._lines[tenant]


class Pool(Generic[T]):
    """Things lent to one at a time, as rows of an engine or processes; who finds none free waits in a fair queue."""

    def __init__(self, things: Iterable[T], most: int, refusal: str) -> None:
        """`most` may wait; who may not is refused in these words."""
        self.free = list(things)
        """The one that was given back last is lent first."""
        self._queue: FairQueue[asyncio.Future[T]] = FairQueue(most)
        self._refusal = refusal

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def places(self, tenant: str) -> int:
        """How many more of this tenant would be lent one, now or later."""
        return len(self.free) + self._queue.places(tenant)

    async def take(self, tenant: str) -> T:
        """Borrow one; raises Overloaded, at once or when others' tenants have more right to wait."""
        if self.free:
            return self.free.pop()
        mine: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        pushed_out = self._queue.push(tenant, mine)
        if pushed_out is not None and not pushed_out.done():
            pushed_out.set_exception(Overloaded(self._refusal, retry_after=2))
        try:
            return await mine
        except asyncio.CancelledError:
            self._queue.remove(tenant, mine)
            if mine.done() and not mine.cancelled() and mine.exception() is None:
                self.give(mine.result())  # it came in the very moment of leaving
            raise

    def give(self, thing: T) -> None:
        """Give one back: to whose turn it is."""
        while self._queue:
            waiting = self._queue.pop()
            if not waiting.done():
                waiting.set_result(thing)
                return
        self.free.append(thing)

    def refuse_all(self, error: Overloaded) -> None:
        """Tell everyone who waits to go."""
        while self._queue:
            waiting = self._queue.pop()
            if not waiting.done():
                waiting.set_exception(error)
