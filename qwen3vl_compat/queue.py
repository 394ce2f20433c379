"""Waiting in turn: each tenant's in their order, the tenants one after the other, as many as there is room for."""

import asyncio
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

from msgspec import Struct

from qwen3vl_compat.errors import Overloaded

T = TypeVar("T")


class Occupancy(Struct, frozen=True, array_like=True):
    """How full a queue is: places nobody has, and how many of each tenant wait."""

    free: int
    waiting: dict[str, int]

    def joined_by(self, tenants: Collection[str]) -> "Occupancy":
        """How full it is once one more of each of these waits."""
        if not tenants:
            return self
        waiting = Counter(self.waiting)
        waiting.update(tenants)
        return Occupancy(max(0, self.free - len(tenants)), waiting)

    def places(self, tenant: str) -> int:
        """How many more of this tenant there is room for, those counted that would give way to it."""
        ahead = max(self.waiting.values(), default=0) - self.waiting.get(tenant, 0)
        return self.free + max(0, ahead - self.free) // 2


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
        self._occupancy: Occupancy | None = None
        """Until the queue is another."""

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    @property
    def occupancy(self) -> Occupancy:
        """How full it is."""
        if self._occupancy is None:
            waiting = {tenant: len(line) for tenant, line in self._lines.items()}
            self._occupancy = Occupancy(self._most - self._size, waiting)
        return self._occupancy

    def push(self, tenant: str, item: T) -> T | None:
        """Queue behind the others of the tenant; returns what there is no room for: this item, or an older one."""
        pushed_out = None
        if self._size == self._most:
            if not self.occupancy.places(tenant):
                return item
            pushed_out = max(self._lines.values(), key=len).pop()  # of two or more, so none is left empty
            self._size -= 1
        self._lines.setdefault(tenant, deque()).append(item)
        self._size += 1
        self._occupancy = None
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
        self._occupancy = None
        return item

    def remove(self, tenant: str, item: T) -> None:
        """Take one out, wherever it stands, if it is there."""
        line = self._lines.get(tenant)
        if line is not None and item in line:
            line.remove(item)
            self._size -= 1
            self._occupancy = None
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

    @property
    def occupancy(self) -> Occupancy:
        """How many more would be lent one, now or later."""
        queue = self._queue.occupancy
        return Occupancy(len(self.free) + queue.free, queue.waiting) if self.free else queue

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
