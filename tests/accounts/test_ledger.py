"""The ledger: one row a request, opened and closed once, with sums that always agree with it."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, insert, select, update

from qwen3vl_compat.accounts.booking import Budget, Entry, Outcome, OverBudget
from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.ledger import Ledger, LedgerUnavailable
from qwen3vl_compat.accounts.money import Counts, Price
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.accounts.tables import COUNTS, daily, ledger, prices, processes, spending
from tests.accounts.conftest import Clock

AT = 1_700_000_000_000
"""2023-11-14 22:13:20 UTC."""
PRICE = Price(
    id=1, model="*", effective_from=0, text_in=10**9, vision_in=10**9, cached_in=0, out=2 * 10**9, reasoning=2 * 10**9,
    per_request=0,
)  # fmt: skip
"""A thousandth of a unit for a thousand tokens in, twice that out."""


@pytest.fixture
async def book(engine: Engine, keys: Keys, clock: Clock) -> AsyncIterator[Ledger]:
    with engine.begin() as connection:
        connection.execute(insert(prices).values(**{name: getattr(PRICE, name) for name in Price.__struct_fields__}))
    made = Ledger(engine, clock=clock, lease=60, wait=5)
    await made.start()
    yield made
    await made.close()


def entry(name: str, **changes: Any) -> Entry:
    usual = {
        "tenant": "acme", "key": "K" * 12, "model": "qwen3-vl", "wire": "openai", "stream": False, "created_at": AT,
        "reserved_out": 100, "reserved": 1000, "price": PRICE,
    }  # fmt: skip
    return Entry(id=name, **usual | changes)


def outcome(cost: int = 700, **changes: Any) -> Outcome:
    usual = {"state": "final", "finish": "stop", "ended_at": AT + 50, "started_at": AT + 5}
    return Outcome(**usual | {"cost": cost, "counts": Counts(text_in=10, out=5)} | changes)


def rows(engine: Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        return {row.id: row for row in connection.execute(select(ledger))}


def check(engine: Engine) -> None:
    """The sums are those of the rows: reserved of open ones, spent and counted of the others."""
    with engine.connect() as connection:
        found = connection.execute(select(ledger)).all()
        pots: dict[tuple[str, str], list[int]] = {}
        days: dict[tuple[str, ...], list[int]] = {}
        for row in found:
            day = "2023-11-14"
            for pot in (
                (scope, period) for scope in (f"tenant:{row.tenant}", f"key:{row.key}") for period in (day, day[:7])
            ):
                held = pots.setdefault(pot, [0, 0])
                held[row.state != "open"] += row.reserved if row.state == "open" else row.cost
            if row.state != "open":
                sums = days.setdefault((day, row.tenant, row.key, row.model, row.cache), [0] * 8)
                counts = (1, *(getattr(row, name) for name in COUNTS), row.cost)
                sums[:] = [one + other for one, other in zip(sums, counts, strict=True)]
        kept = {(row.scope, row.period): [row.reserved, row.spent] for row in connection.execute(select(spending))}
        assert {pot: held for pot, held in kept.items() if pot in pots or any(held)} == pots
        assert {tuple(row[:5]): list(row[5:]) for row in connection.execute(select(daily))} == days


async def test_a_row_is_opened_with_its_reservation_and_closed_with_its_cost(book: Ledger, engine: Engine) -> None:
    asked = entry("a")
    await book.open(asked)
    assert rows(engine)["a"].state == "open"
    assert rows(engine)["a"].owner == book.owner
    check(engine)
    assert await book.settle(asked, outcome()) == ("final", 700)
    row = rows(engine)["a"]
    assert (row.state, row.finish, row.cost, row.text_in, row.out, row.price) == ("final", "stop", 700, 10, 5, 1)
    assert (row.created_at, row.started_at, row.ended_at) == (AT, AT + 5, AT + 50)
    check(engine)


async def test_a_row_leaves_open_once(book: Ledger, engine: Engine) -> None:
    asked = entry("a")
    await book.open(asked)
    ends = await asyncio.gather(*(book.settle(asked, outcome(cost)) for cost in (3, 5, 7)))
    assert ends == [("final", 3)] * 3
    assert await book.settle(asked, outcome(9, state="aborted")) == ("final", 3)
    assert rows(engine)["a"].state == "final"
    check(engine)


async def test_what_was_never_opened_is_never_closed(book: Ledger, engine: Engine) -> None:
    assert await book.settle(entry("a"), outcome()) == ("never opened", 0)
    assert rows(engine) == {}
    check(engine)


async def test_checkpoints_change_open_rows_only(book: Ledger, engine: Engine) -> None:
    asked = entry("a")
    await book.open(asked)
    book.note(asked, AT + 3, Counts(text_in=10, out=1))
    book.note(asked, AT + 3, Counts(text_in=10, out=2))
    await book.open(entry("b"))
    assert rows(engine)["a"].out == 2
    await book.settle(asked, outcome())
    book.note(asked, AT + 3, Counts(text_in=10, out=3))
    await book.open(entry("c"))
    assert rows(engine)["a"].out == 5


@pytest.mark.parametrize("period", ["day", "month"])
@pytest.mark.parametrize("scope", ["tenant:acme", "key:" + "K" * 12])
async def test_200_racers_on_a_budget_for_10_let_10_through(
    book: Ledger, engine: Engine, scope: str, period: Any
) -> None:
    budget = Budget(scope=scope, period=period, limit=10_000)
    asked = [entry(f"r{number:03}") for number in range(200)]
    results = await asyncio.gather(*(book.open(each, [budget]) for each in asked), return_exceptions=True)
    assert sum(isinstance(each, OverBudget) for each in results) == 190
    assert sorted(left[0].amount for left in results if isinstance(left, tuple)) == list(range(0, 10_000, 1000))
    assert len(rows(engine)) == 10
    check(engine)


async def test_what_is_not_spent_can_be_reserved_again(book: Ledger, engine: Engine) -> None:
    budget = Budget(scope="tenant:acme", period="day", limit=1500)
    first = entry("a")
    await book.open(first, [budget])
    with pytest.raises(OverBudget) as refusal:
        await book.open(entry("b"), [budget])
    assert refusal.value.left.amount == 500
    await book.settle(first, outcome(cost=500))
    assert (await book.open(entry("c"), [budget]))[0].amount == 0
    check(engine)


async def test_the_tightest_of_several_budgets_holds_and_another_day_is_another(book: Ledger) -> None:
    budgets = [
        Budget(scope="tenant:acme", period="month", limit=2500),
        Budget(scope="tenant:acme", period="day", limit=1000),
    ]
    await book.open(entry("a"), budgets)
    with pytest.raises(OverBudget) as refusal:
        await book.open(entry("b"), budgets)
    assert refusal.value.left.budget.period == "day"
    tomorrow = AT + 86_400_000
    await book.open(entry("c", created_at=tomorrow), budgets)
    with pytest.raises(OverBudget) as refusal:
        await book.open(entry("d", created_at=tomorrow + 86_400_000), budgets)
    assert refusal.value.left.budget.period == "month"
    await book.open(entry("e", created_at=AT + 20 * 86_400_000), budgets)


async def test_a_request_without_a_price_passes_an_empty_budget(book: Ledger) -> None:
    budget = Budget(scope="tenant:acme", period="day", limit=0)
    await book.open(entry("a", reserved=0, price=None), [budget])


async def test_one_request_that_cannot_be_written_harms_no_other(book: Ledger, engine: Engine) -> None:
    asked = [entry("a"), entry("b", tenant="nobody"), entry("c")]
    results = await asyncio.gather(*(book.open(each) for each in asked), return_exceptions=True)
    assert isinstance(results[1], LedgerUnavailable)
    assert set(rows(engine)) == {"a", "c"}
    check(engine)


async def test_who_gives_up_while_a_row_is_opened_leaves_none_open(book: Ledger, engine: Engine) -> None:
    waiting = [asyncio.create_task(book.open(entry(f"g{number:02}"))) for number in range(50)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for _ in range(200):
        await book.settle(entry("x"), outcome())
        if all(row.state == "aborted" for row in rows(engine).values()):
            break
        await asyncio.sleep(0.02)
    assert all((row.state, row.cost) == ("aborted", 0) for row in rows(engine).values())
    check(engine)


async def test_who_leaves_in_the_moment_a_row_is_opened_does_not_go_on(
    book: Ledger, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a whole answer would be made for nobody."""
    resolve = book._resolve

    def resolve_and_leave(replies: Any) -> None:
        resolve(replies)
        opening.cancel()

    monkeypatch.setattr(book, "_resolve", resolve_and_leave)
    opening = asyncio.create_task(book.open(entry("a")))
    with pytest.raises(asyncio.CancelledError):
        await opening
    monkeypatch.undo()
    await book.settle(entry("x"), outcome())
    assert (rows(engine)["a"].state, rows(engine)["a"].cost) == ("aborted", 0)
    check(engine)


def outlive(heirs: list[Ledger], ticks: Clock, quarters: int = 4) -> None:
    """Let so many quarters of a lease go by; whoever lives beats in each."""
    for _ in range(quarters):
        for heir in heirs:
            heir._beat()
        ticks.now += 15
    if quarters == 4:
        for heir in heirs:
            heir._beat()


class TestDeadProcesses:
    @pytest.fixture
    async def left(self, engine: Engine, book: Ledger) -> list[Entry]:
        """Rows of a process that is gone: one that had not begun, two at a checkpoint, one that is closed."""
        dead = Ledger(engine, lease=60)
        await dead.start()
        asked = [entry("none"), entry("some"), entry("done")]
        for each in asked:
            await dead.open(each)
        dead.note(asked[1], AT + 9, Counts(text_in=100, out=64))
        await dead.settle(asked[2], outcome())
        await dead.open(entry("again", cache="hit"))
        dead.note(entry("again"), AT + 9, Counts(cached_in=100, out=64))
        await dead.open(entry("later"))
        await dead.settle(entry("later"), outcome())
        await dead.close()
        with engine.begin() as connection:  # one that is killed does not say goodbye
            connection.execute(insert(processes).values(id=dead.owner, beat=7, started_at=AT))
        return asked

    async def test_their_rows_are_settled_at_the_checkpoint_when_the_lease_is_over(
        self, engine: Engine, book: Ledger, left: list[Entry]
    ) -> None:
        ticks = Clock()
        heir = Ledger(engine, lease=60, ticks=ticks)
        for _ in range(4):
            heir._beat()
            assert rows(engine)["some"].state == "open"
            ticks.now += 15
        assert heir.heartbeat.living == 3  # the dead one, the fixture's own and itself
        heir._beat()
        found = rows(engine)
        assert (found["none"].state, found["none"].cost, found["none"].text_in) == ("interrupted", 0, 0)
        assert (found["some"].state, found["some"].out) == ("interrupted", 64)
        assert found["some"].cost == PRICE.cost(Counts(text_in=100, out=64)) == 228_000
        # What was made for another is paid as such: its tokens are cached ones, which cost nothing here.
        assert (found["again"].state, found["again"].out, found["again"].cost) == ("interrupted", 64, 0)
        assert found["done"].state == "final"
        check(engine)
        with engine.connect() as connection:
            names = set(connection.execute(select(processes.c.id)).scalars())
        assert left[0].id not in names

    async def test_one_that_wakes_up_finds_its_rows_closed_and_changes_nothing(
        self, engine: Engine, book: Ledger, left: list[Entry]
    ) -> None:
        with engine.begin() as connection:
            connection.execute(update(ledger).where(ledger.c.id == "some").values(owner="frozen"))
        ticks = Clock()
        heir = Ledger(engine, lease=60, ticks=ticks)
        outlive([heir], ticks)
        cost = rows(engine)["some"].cost
        assert await book.settle(left[1], outcome(cost=1)) == ("interrupted", cost)
        assert rows(engine)["some"].state == "interrupted"
        check(engine)

    async def test_two_heirs_at_once_settle_each_row_once(
        self, engine: Engine, book: Ledger, left: list[Entry]
    ) -> None:
        ticks = Clock()
        heirs = [Ledger(engine, lease=60, ticks=ticks) for _ in range(4)]
        outlive(heirs, ticks, 3)
        ticks.now += 15
        threads = [threading.Thread(target=heir._beat) for heir in heirs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [row.state for row in rows(engine).values()].count("interrupted") == 3
        check(engine)

    @pytest.mark.parametrize("seconds", [61, 3600])
    async def test_who_could_not_look_declares_nobody_dead(
        self, engine: Engine, book: Ledger, left: list[Entry], seconds: int
    ) -> None:
        """The database was away, or this process asleep, for longer than a lease: everybody may have been."""
        ticks = Clock()
        heir = Ledger(engine, lease=60, ticks=ticks)
        outlive([heir], ticks, 3)
        ticks.now += seconds
        assert heir.heartbeat.alive(rows(engine)["some"].owner)
        heir._beat()
        assert rows(engine)["some"].state == "open"
        outlive([heir], ticks)
        assert rows(engine)["some"].state == "interrupted"

    async def test_a_clock_set_forward_kills_nobody(self, engine: Engine, book: Ledger, clock: Clock) -> None:
        await book.open(entry("a"))
        other = Ledger(engine, lease=60, clock=clock)
        other._beat()
        clock.now += 86_400
        other._beat()
        assert rows(engine)["a"].state == "open"


async def test_a_thousand_open_rows_of_a_dead_process_are_all_settled(engine: Engine, book: Ledger) -> None:
    asked = [entry(f"m{number:04}") for number in range(1000)]
    await asyncio.gather(*(book.open(each) for each in asked))
    with engine.begin() as connection:
        connection.execute(update(ledger).values(owner="gone"))
    ticks = Clock()
    heir = Ledger(engine, lease=60, ticks=ticks)
    outlive([heir], ticks)
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).where(ledger.c.state == "interrupted")).scalar() == 1000
    check(engine)


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)  # which is locked as a whole
async def test_a_locked_database_refuses_new_requests_in_time_and_settles_what_runs_afterwards(
    engine: Engine, keys: Keys, state_dir: Path
) -> None:
    made = Ledger(engine, wait=0.3)
    await made.start()
    asked = entry("a", price=None)
    await made.open(asked)
    with closing(sqlite3.connect(state_dir / FILE, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable):
            await made.open(entry("b", price=None))
        with pytest.raises(LedgerUnavailable):
            await made.settle(asked, outcome())
        lock.execute("ROLLBACK")
    for _ in range(400):
        if rows(engine)["a"].state != "open":
            break
        await asyncio.sleep(0.05)
    await made.close()
    assert (rows(engine)["a"].state, rows(engine)["a"].cost) == ("aborted", 0)
    assert all(row.state != "open" for row in rows(engine).values())
    check(engine)


async def test_what_cannot_be_booked_in_time_is_not_booked_later(engine: Engine, keys: Keys) -> None:
    made = Ledger(engine, wait=0.3)
    await made.start()
    with writing(engine).begin(), pytest.raises(LedgerUnavailable):  # another process's turn
        await made.book(entry("a", price=None), outcome())
    await made.book(entry("b", price=None), outcome())
    await made.close()
    assert set(rows(engine)) == {"b"}
    check(engine)


async def test_what_comes_until_it_is_this_processs_turn_is_written_in_it(book: Ledger, engine: Engine) -> None:
    commits: list[Any] = []
    with writing(engine).begin():  # another process's turn
        asked = [asyncio.create_task(book.open(entry("first", price=None)))]
        for _ in range(500):
            await asyncio.sleep(0.01)
            if not book._wishes:
                break
        asked += [asyncio.create_task(book.open(entry(f"e{number}", price=None))) for number in range(5)]
        await asyncio.sleep(0.01)
        event.listen(engine, "commit", commits.append)
    await asyncio.gather(*asked)
    assert len(commits) == 2, "the other's, and one for all six"
    check(engine)


async def test_after_the_end_nothing_is_taken(book: Ledger, engine: Engine) -> None:
    asked = entry("a")
    await book.open(asked)
    waiting = asyncio.create_task(book.settle(asked, outcome()))
    await asyncio.sleep(0)
    await book.close()
    assert await waiting == ("final", 700)
    with pytest.raises(LedgerUnavailable):
        await book.open(entry("b"))
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(processes)).scalar() == 0
