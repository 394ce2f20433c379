"""The fair queue: each rule as a property of random runs beside a plainer model, and things lent in its order."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwen3vl_compat.errors import Overloaded
from qwen3vl_compat.queue import FairQueue, Pool

TENANTS = "abc"


@settings(max_examples=100, stateful_step_count=50)
class Machine(RuleBasedStateMachine):
    """Beside one list of all that wait, in the order of their coming, and one of the tenants, in the order of turns."""

    @initialize(most=st.integers(1, 7))
    def start(self, most: int) -> None:
        self.most, self.came = most, 0
        self.queue: FairQueue[tuple[str, int]] = FairQueue(most)
        self.waiting: list[tuple[str, int]] = []
        self.turns: list[str] = []

    def of(self, tenant: str) -> list[tuple[str, int]]:
        return [each for each in self.waiting if each[0] == tenant]

    def leave(self, item: tuple[str, int]) -> None:
        self.waiting.remove(item)
        if not self.of(item[0]):
            self.turns.remove(item[0])

    @rule(tenant=st.sampled_from(TENANTS))
    def push(self, tenant: str) -> None:
        self.came += 1
        item, before = (tenant, self.came), list(self.waiting)
        places = self.queue.occupancy.places(tenant)
        assert places >= self.most - len(before)
        gone = self.queue.push(tenant, item)
        assert (places == 0) == (gone == item)
        if len(before) < self.most:
            assert gone is None
        elif gone != item:
            assert gone is not None
            counts = Counter(each for each, _ in before)
            assert gone == self.of(gone[0])[-1], "another than the newest had to go"
            assert counts[gone[0]] == max(counts.values())
            assert counts[tenant] + 1 <= counts[gone[0]] - 1, "who came has more than who had to go"
        else:
            most = max(Counter(each for each, _ in before).values())
            assert len(self.of(tenant)) + 1 >= most, "a tenant with less was kept out"
        if gone is not None and gone != item:
            self.leave(gone)
        if gone != item:
            self.waiting.append(item)
            self.turns += [tenant] if tenant not in self.turns else []

    @precondition(lambda self: self.waiting)
    @rule()
    def pop(self) -> None:
        tenant = self.turns[0]
        expected = self.of(tenant)[0]
        assert self.queue.first() == expected
        assert self.queue.pop() == expected
        self.waiting.remove(expected)
        self.turns = self.turns[1:] + ([tenant] if self.of(tenant) else [])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        self.queue.remove(item[0], item)
        self.leave(item)

    @rule(tenant=st.sampled_from(TENANTS))
    def remove_what_is_not_there(self, tenant: str) -> None:
        self.queue.remove(tenant, (tenant, -1))

    @invariant()
    def adds_up(self) -> None:
        assert len(self.queue) == len(self.waiting) <= self.most
        assert sorted(self.queue) == sorted(self.waiting)
        assert (self.queue.first() is None) == (not self.waiting)


TestMachine = Machine.TestCase


def test_a_flood_keeps_nobody_out_and_gets_no_more_than_its_turn() -> None:
    queue: FairQueue[str] = FairQueue(8)
    for number in range(1000):
        queue.push("flood", f"flood{number}")
    for tenant in ("a", "b", "c"):
        assert queue.push(tenant, tenant) == f"flood{7 - 'abc'.index(tenant)}"
    assert queue.occupancy.places("flood") == 0
    assert [queue.pop() for _ in range(8)] == ["flood0", "a", "b", "c", *(f"flood{number}" for number in range(1, 5))]


@given(before=st.lists(st.sampled_from(TENANTS), max_size=30), most=st.integers(1, 12))
def test_so_many_places_as_there_are_can_be_taken(before: list[str], most: int) -> None:
    queue: FairQueue[int] = FairQueue(most)
    for number, tenant in enumerate(before):
        queue.push(tenant, number)
    places = queue.occupancy.places("a")
    for number in range(places):
        assert queue.push("a", 100 + number) != 100 + number


def test_equals_do_not_push_each_other_out() -> None:
    """Else of two tenants under the same load each newcomer would end a request that was booked already."""
    queue: FairQueue[int] = FairQueue(3)
    for number, tenant in enumerate("aab"):
        assert queue.push(tenant, number) is None
    assert queue.push("b", 3) == 3
    assert queue.push("a", 4) == 4


async def settled(*tasks: "asyncio.Task[str]") -> list[object]:
    return [
        type(each) if isinstance(each, Exception) else each
        for each in await asyncio.gather(*tasks, return_exceptions=True)
    ]


async def asked(pool: Pool[str], tenants: str) -> list["asyncio.Task[str]"]:
    tasks = [asyncio.create_task(pool.take(tenant)) for tenant in tenants]
    await asyncio.sleep(0)
    return tasks


async def test_what_is_free_is_lent_at_once_and_the_rest_in_turn() -> None:
    pool: Pool[str] = Pool(["one"], 4, "full")
    assert await pool.take("a") == "one"
    order: list[str] = []

    async def use(tenant: str) -> None:
        thing = await pool.take(tenant)
        order.append(tenant)
        pool.give(thing)

    tasks = [asyncio.create_task(use(tenant)) for tenant in "aaab"]
    await asyncio.sleep(0)
    assert (pool.waiting, [pool.occupancy.places(tenant) for tenant in "abc"]) == (4, [0, 1, 1])
    pool.give("one")
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "a", "a"]
    assert (pool.free, pool.waiting) == (["one"], 0)


async def test_who_is_pushed_out_hears_of_it() -> None:
    pool: Pool[str] = Pool([], 2, "no room")
    first, second = await asked(pool, "aa")
    (refused,) = await asked(pool, "a")
    (other,) = await asked(pool, "b")
    assert await settled(refused, second) == [Overloaded, Overloaded]
    error = refused.exception()
    assert isinstance(error, Overloaded)
    assert (error.message, error.retry_after) == ("no room", 2)
    pool.give("x")
    pool.give("y")
    assert await settled(first, other) == ["x", "y"]


@pytest.mark.parametrize("given_first", [False, True])
async def test_who_leaves_takes_nothing_along(given_first: bool) -> None:
    """Also in the very moment in which it is given something."""
    pool: Pool[str] = Pool([], 3, "full")
    gone, stays = await asked(pool, "ab")
    if given_first:
        pool.give("x")
        gone.cancel()
    else:
        gone.cancel()
        pool.give("x")
    assert await stays == "x"
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (pool.waiting, pool.free) == (0, [])


async def test_who_leaves_while_being_pushed_out_disturbs_nobody() -> None:
    pool: Pool[str] = Pool([], 2, "full")
    stays, gone = await asked(pool, "aa")
    gone.cancel()
    (comes,) = await asked(pool, "b")
    pool.give("x")
    pool.give("y")
    assert await settled(stays, comes) == ["x", "y"]
    assert pool.waiting == 0


async def test_all_who_wait_can_be_sent_away() -> None:
    pool: Pool[str] = Pool([], 3, "full")
    waiting = await asked(pool, "ab")
    pool.refuse_all(Overloaded("closed"))
    assert await settled(*waiting) == [Overloaded, Overloaded]
