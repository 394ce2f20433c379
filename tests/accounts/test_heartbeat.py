"""Who lives and who is dead, when processes, machines and databases sleep; and what the dead cost the living."""

import asyncio
from typing import Any

from sqlalchemy import Engine, event

from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.ledger import Ledger
from qwen3vl_compat.accounts.replies import Asked, Replies
from tests.accounts.conftest import Clock
from tests.accounts.test_ledger import AT, entry, outcome, rows


async def test_processes_that_ended_in_order_cost_the_others_no_transactions(engine: Engine, keys: Keys) -> None:
    """Of 20 restarts beside a server that lives on nothing is left to be done at each of its beats."""
    ticks = Clock()
    living = Ledger(engine, lease=10, ticks=ticks)
    await living.start()
    for _ in range(20):
        other = Ledger(engine, lease=10)
        await other.start()
        await asyncio.to_thread(living._beat)
        await other.close()  # in order: nothing is left open, its row in `processes` is gone
    begun = [0]
    for _ in range(3):
        ticks.now += 2.5
        await asyncio.to_thread(living._beat)

    def count(connection: object) -> None:
        begun[0] += 1

    event.listen(engine, "begin", count)
    await asyncio.to_thread(living._beat)
    event.remove(engine, "begin", count)
    await living.close()
    assert begun[0] <= 2


async def test_what_a_process_that_woke_up_opens_is_not_buried_with_its_old_rows(engine: Engine, keys: Keys) -> None:
    """Between the look at the beats and the settling the frozen one beats and goes on."""
    ticks = Clock()
    frozen, heir = Ledger(engine, lease=10), Ledger(engine, lease=10, ticks=ticks)
    await frozen.start()
    await frozen.open(entry("old", price=None))
    for _ in range(4):
        await asyncio.to_thread(heir._beat)
        ticks.now += 2.5
    with heir._writer.begin() as connection:  # what `_beat` does first
        heir.heartbeat.beat(connection, AT)
    assert heir.heartbeat.dead == [frozen.owner]
    await asyncio.to_thread(frozen._beat)  # it wakes up: its number moves, in the database
    fresh = entry("fresh", price=None)
    await frozen.open(fresh)
    while await asyncio.to_thread(heir._settle_some_of, frozen.owner):  # and what it does then
        pass
    state = rows(engine)["fresh"].state
    await frozen.close()
    assert state == "open"


async def _two(engine: Engine) -> tuple[Clock, Ledger, Ledger]:
    """Two servers of one database that have seen each other; their beats are the test's to make."""
    ticks = Clock()
    one, other = (Ledger(engine, lease=10, ticks=ticks) for _ in range(2))
    for ledger in (one, other):
        await ledger.start()
    for ledger in (one, other, one, other):
        await asyncio.to_thread(ledger._beat)
    return ticks, one, other


async def test_a_database_that_was_away_longer_than_a_lease_costs_no_living_process_its_rows(
    engine: Engine, keys: Keys
) -> None:
    """The database restarts and takes 15 s: neither can beat. Whoever is back first must not bury the other."""
    ticks, one, other = await _two(engine)
    asked = entry("a", price=None)
    await one.open(asked)
    ticks.now += 15  # nobody could write; the same as both being frozen (docker pause, a machine that migrates)
    await asyncio.to_thread(other._beat)
    assert rows(engine)["a"].state == "open"
    cost = await one.settle(asked, outcome(cost=700))
    row = rows(engine)["a"]
    await one.close()
    await other.close()
    assert (row.state, row.cost, row.out, cost) == ("final", 700, 5, ("final", 700))


async def test_nor_is_a_request_under_an_idempotency_key_carried_out_again(engine: Engine, keys: Keys) -> None:
    ticks, one, other = await _two(engine)
    shelves: list[Any] = [Replies(engine, each.owner, each.heartbeat.alive, 86_400) for each in (one, other)]

    def asking(request: str) -> Asked:
        return Asked(tenant="acme", key_hash="a" * 64, fingerprint="b" * 64, request=request)

    assert shelves[0].begin(asking("first")) is None
    ticks.now += 15
    await asyncio.to_thread(other._beat)
    found = shelves[1].begin(asking("second"))
    await one.close()
    await other.close()
    assert found is not None, "the first is still under way in a living process: this would be a second charge"
