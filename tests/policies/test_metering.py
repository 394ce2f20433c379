"""Metering around the scripted engine: what is reserved, what is booked, and what the answer says of it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update

from qwen3vl_compat.accounts.books import Terms
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.ledger import Ledger
from qwen3vl_compat.accounts.money import Counts, Price
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.accounts.tables import ledger, prices
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import EngineFailed, InvalidRequest, OutOfCredit, Overloaded, RateLimited
from qwen3vl_compat.events import Event, Events, Finish, Started, fold
from qwen3vl_compat.messages import Caller, Message, Request, Sampling, Text
from qwen3vl_compat.policies.bookkeeping import Bookkeeping
from qwen3vl_compat.policies.limiting.local import LocalLimiter
from qwen3vl_compat.policies.metering import Metering
from qwen3vl_compat.settings import Quotas

PRICE = Price(
    id=1, model="*", effective_from=0, text_in=10**9, vision_in=10**9, cached_in=0, out=2 * 10**9, reasoning=10**9,
    per_request=5,
)  # fmt: skip
KEY = "K" * 12


class House:
    """A ledger, a limiter and an engine, with what the caller's key and tenant may use."""

    def __init__(self, database: Engine) -> None:
        self.database, self.closed = database, list[Any]()
        self.ledger = Ledger(database, closed=lambda *row: self.closed.append(row))
        self.limiter = LocalLimiter(seed=None, share=lambda: 1)
        self.key, self.tenant, self.price = Quotas(), Quotas(), PRICE
        self.engine = ScriptedEngine()
        self.reached = asyncio.Event()

    async def terms_of(self, caller: Caller) -> Terms:
        return Terms(self.key, self.tenant)

    async def price_of(self, model: str, now: int) -> Price | None:
        return self.price

    def generate(self, request: Request, inner: Any = None) -> Events:
        books = Bookkeeping(self.ledger, self.limiter, self.terms_of, self.price_of)
        return Metering(books, self.engine.count, self.engine.room, self.engine.check)(inner or self.engine.generate)(
            request
        )

    def rows(self) -> dict[str, Any]:
        with self.database.connect() as connection:
            return {row.id: row for row in connection.execute(select(ledger))}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    database = open_database(tmp_path / "state")
    Keys(database).add_tenant("acme")
    with database.begin() as connection:
        connection.execute(insert(prices).values(**{name: getattr(PRICE, name) for name in Price.__struct_fields__}))
    made = House(database)
    await made.ledger.start()
    await made.limiter.start()
    yield made
    await made.limiter.close()
    await made.ledger.close()
    database.dispose()


def asking(text: str, name: str = "r1", **sampling: Any) -> Request:
    return Request(
        id=name, created=0, model="qwen3-vl", messages=(Message("user", (Text(text),)),), sampling=Sampling(**sampling),
        caller=Caller("acme", KEY), wire="openai",
    )  # fmt: skip


async def test_an_answer_is_booked_to_the_last_token(house: House) -> None:
    events = [event async for event in house.generate(asking("count to 7", max_tokens=100))]
    last = events[-1]
    assert isinstance(last, Finish)
    row = house.rows()["r1"]
    assert (row.state, row.finish, row.wire, row.stream) == ("final", "stop", "openai", False)
    assert (row.text_in, row.out, row.reserved_out) == (last.usage.prompt, 7, 100)
    assert row.cost == PRICE.cost(Counts(text_in=row.text_in, out=7)) == row.text_in * 1000 + 14_005
    assert row.reserved == PRICE.worst(Counts(text_in=row.text_in, out=100)) == row.text_in * 1000 + 200_005
    assert dict(last.headers)["x-cost-total"] == "0.000021005"
    [(entry, outcome)] = house.closed
    assert (entry.id, outcome.state, outcome.counts) == ("r1", "final", Counts(text_in=row.text_in, out=7))


async def test_the_row_is_closed_before_the_last_event_goes_out(house: House) -> None:
    async for event in house.generate(asking("count to 3")):
        state = house.rows()["r1"].state
        assert state == ("final" if isinstance(event, Finish) else "open")


async def test_thoughts_have_a_price_of_their_own(house: House) -> None:
    completion = await fold(house.generate(asking("think: one two three then say: four")))
    row = house.rows()["r1"]
    assert (row.out, row.reasoning) == (completion.usage.completion, completion.usage.reasoning)
    assert row.reasoning >= 3
    assert row.cost == row.text_in * 1000 + (row.out - row.reasoning) * 2000 + row.reasoning * 1000 + 5


async def test_all_choices_are_reserved_and_counted(house: House) -> None:
    from msgspec.structs import replace

    completion = await fold(house.generate(replace(asking("count to 4", max_tokens=10), choices=3)))
    row = house.rows()["r1"]
    assert (row.out, row.reserved_out) == (12, 30) == (completion.usage.completion, 30)


@pytest.mark.parametrize("taken", [0, 1, 2, 5, 40])
async def test_who_leaves_pays_for_what_was_taken(house: House, taken: int) -> None:
    async with aclosing(house.generate(asking("count to 100"))) as events:
        for _ in range(taken + 1):
            assert not isinstance(await anext(events), Finish)
    row = house.rows()["r1"]
    assert (row.state, row.finish, row.out) == ("aborted", "gone", taken)
    assert row.cost == row.text_in * 1000 + taken * 2000 + 5


async def test_who_leaves_before_it_began_pays_nothing(house: House) -> None:
    waiting = asyncio.Event()

    async def never(request: Request) -> Events:
        waiting.set()
        await asyncio.sleep(60)
        yield Started(await house.engine.count(request))

    task = asyncio.create_task(fold(house.generate(asking("x"), never)))
    await waiting.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    row = house.rows()["r1"]
    assert (row.state, row.finish, row.cost, row.text_in) == ("aborted", "gone", 0, 0)


@pytest.mark.parametrize("events", [0, 1, 4])
async def test_what_fails_costs_nothing(house: House, events: int) -> None:
    async def breaking(request: Request) -> Events:
        made = 0
        async for event in house.engine.generate(request):
            if made == events:
                raise EngineFailed("broken")
            made += 1
            yield event

    with pytest.raises(EngineFailed):
        await fold(house.generate(asking("count to 100"), breaking))
    row = house.rows()["r1"]
    assert (row.state, row.finish, row.cost) == ("aborted", "failed" if events else "refused", 0)


async def test_a_refused_prompt_has_no_row(house: House) -> None:
    with pytest.raises(InvalidRequest):
        await fold(house.generate(asking("word " * 40_000)))
    assert house.rows() == {}


async def test_200_racers_on_a_budget_for_10_let_10_through(house: House) -> None:
    """The scripted engine makes exactly max_tokens, so what is reserved is what is spent."""
    one = PRICE.cost(Counts(text_in=(await house.engine.count(asking("count to 999"))).prompt, out=20))
    house.tenant = Quotas(budget=f"{10 * one // 10**9}.{10 * one % 10**9:09d}/month")
    racing = (fold(house.generate(asking("count to 999", f"r{number}", max_tokens=20))) for number in range(200))
    results = await asyncio.gather(*racing, return_exceptions=True)
    assert sum(isinstance(each, OutOfCredit) for each in results) == 190
    rows = list(house.rows().values())
    assert [row.state for row in rows] == ["final"] * 10
    assert sum(row.cost for row in rows) == 10 * one
    refusal = next(each for each in results if isinstance(each, OutOfCredit))
    assert (refusal.code, dict(refusal.headers)["x-should-retry"], refusal.retry_after) == (
        "insufficient_quota",
        "false",
        None,
    )
    assert "tenant" in refusal.message


@pytest.mark.parametrize(
    ("quotas", "kind"),
    [
        (Quotas(tokens=120), "tokens"),
        (Quotas(tokens_in=20), "tokens of prompts"),
        (Quotas(tokens_out=150), "tokens of answers"),
        (Quotas(tokens=0), "tokens"),
    ],
)
async def test_token_limits_refuse_with_the_time_to_come_back(house: House, quotas: Quotas, kind: str) -> None:
    house.key = quotas
    refusals = []
    for number in range(3):
        try:
            await fold(house.generate(asking("say exactly: one two three", f"r{number}", max_tokens=100)))
        except RateLimited as refusal:
            refusals.append(refusal)
    if quotas.tokens == 0:
        assert len(refusals) == 3
        assert dict(refusals[0].headers)["x-should-retry"] == "false"
    if quotas.tokens_in == 20:
        assert 1 <= len(refusals) <= 2
    if quotas.tokens_out == 150:
        assert refusals == []  # what was not used came back
    for refusal in refusals:
        assert kind in refusal.message
        assert (refusal.retry_after is None) == (quotas.tokens == 0)  # then no pause helps
        assert refusal.retry_after is None or 1 <= refusal.retry_after <= 60
        assert "x-ratelimit-remaining-tokens" in dict(refusal.headers)
    assert len(house.rows()) == 3 - len(refusals)


async def test_what_is_reserved_counts_until_it_is_settled(house: House) -> None:
    house.key = Quotas(tokens_out=150)
    async with aclosing(house.generate(asking("count to 100", "a", max_tokens=100))) as events:
        started = await anext(events)
        assert isinstance(started, Started)
        told = dict(started.headers)
        assert (told["x-ratelimit-limit-tokens"], told["x-ratelimit-remaining-tokens"]) == ("150", "50")
        with pytest.raises(RateLimited):
            await fold(house.generate(asking("count to 3", "b", max_tokens=100)))
        await fold(house.generate(asking("count to 3", "c", max_tokens=50)))
    await fold(house.generate(asking("count to 3", "d", max_tokens=100)))
    assert set(house.rows()) == {"a", "c", "d"}


async def test_places_under_way(house: House) -> None:
    house.tenant = Quotas(concurrent=2)
    async with (
        aclosing(house.generate(asking("count to 9", "a"))) as first,
        aclosing(house.generate(asking("count to 9", "b"))) as second,
    ):
        await anext(first)
        await anext(second)
        with pytest.raises(RateLimited) as refusal:
            await fold(house.generate(asking("count to 9", "c")))
        assert refusal.value.retry_after == 1
        assert "requests at once" in refusal.value.message
    await fold(house.generate(asking("count to 9", "d")))


async def test_a_budget_that_refuses_gives_the_tokens_back(house: House) -> None:
    house.key = Quotas(tokens_out=100, concurrent=1, budget="0/day")
    for name in ("a", "b", "c"):
        with pytest.raises(OutOfCredit):
            await fold(house.generate(asking("count to 3", name, max_tokens=100)))
    house.key = Quotas(tokens_out=100, concurrent=1)
    await fold(house.generate(asking("count to 3", "d", max_tokens=100)))


async def test_budget_headers(house: House) -> None:
    house.tenant = Quotas(budget="1.00/month; 0.50/day")
    seen: list[Event] = [event async for event in house.generate(asking("count to 7", max_tokens=100))]
    row = house.rows()["r1"]
    begun, ended = dict(seen[0].headers), dict(seen[-1].headers)  # type: ignore[union-attr]
    assert (begun["x-budget-limit"], begun["x-budget-period"]) == ("0.50", "day")
    assert float(begun["x-budget-remaining"]) == pytest.approx(0.5 - row.reserved / 1e9)
    assert float(ended["x-budget-remaining"]) == pytest.approx(0.5 - row.cost / 1e9)
    assert ended["x-cost-currency"] == "USD"


async def test_without_a_ledger_nothing_is_generated(house: House) -> None:
    await house.ledger.close()

    async def asked(request: Request) -> Events:
        raise AssertionError("the engine was asked")
        yield

    house.key = Quotas(concurrent=1)
    for _ in range(2):
        with pytest.raises(Overloaded):
            await fold(house.generate(asking("x"), asked))


async def test_checkpoints_are_never_more_than_32_tokens_behind(house: House) -> None:
    async for event in house.generate(asking("count to 200")):
        made = getattr(event, "completion", 0)
        if made and made % 40 == 0:
            for _ in range(100):
                if made - house.rows()["r1"].out < 33:
                    break
                await asyncio.sleep(0.01)
            assert made - house.rows()["r1"].out < 33


async def test_no_answer_tells_a_usage_that_is_not_its_rows(house: House) -> None:
    """The process was asleep, another has settled its rows, and now it goes on."""
    async with aclosing(house.generate(asking("count to 100", max_tokens=200))) as events:
        for _ in range(3):
            await anext(events)
        with house.database.begin() as connection:
            connection.execute(update(ledger).values(state="interrupted", ended_at=1, out=2))
        seen: list[Event] = []
        with pytest.raises(Overloaded):
            seen += [event async for event in events]
    assert house.rows()["r1"].out == 2
    assert house.closed == []


async def test_what_is_booked_too_late_costs_nothing_and_is_summed_up(tmp_path: Path, house: House) -> None:
    house.ledger._wait = 0.2
    async with aclosing(house.generate(asking("count to 5", max_tokens=9))) as events:
        for _ in range(5):
            await anext(events)
        with closing(sqlite3.connect(tmp_path / "state" / FILE, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            with pytest.raises(Overloaded):
                async for _ in events:
                    pass
            lock.execute("ROLLBACK")
    for _ in range(400):
        if house.closed:
            break
        await asyncio.sleep(0.05)
    row = house.rows()["r1"]
    assert (row.state, row.finish, row.cost, row.out) == ("aborted", "failed", 0, 5)
    assert [outcome.cost for _, outcome in house.closed] == [0]


async def test_tokens_that_are_not_shown_are_paid_for_too(house: House) -> None:
    """What may be a stop string is held back until that is sure: who leaves then has made it all the same."""
    held = " ".join(str(number + 1) for number in range(60))
    task = asyncio.create_task(fold(house.generate(asking("count to 50", stop=(held,)), slowly(house, 40))))
    await house.reached.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    row = house.rows()["r1"]
    assert (row.state, row.out) == ("aborted", 40)


def slowly(house: House, tokens: int) -> Any:
    """The engine, which makes so many tokens and then takes its time."""

    async def generate(request: Request) -> Events:
        made = -1
        async for event in house.engine.generate(request):
            made += 1
            yield event
            if made == tokens:
                house.reached.set()
                await asyncio.sleep(60)

    return generate
