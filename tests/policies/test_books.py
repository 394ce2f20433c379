"""The promises of the books (docs/metering.md), held by a machine that does to them whatever can happen to a server.

Two processes share one database and, in one of two forms, one Redis. Requests begin, make tokens, end, are left, fail;
processes are killed and started; clocks jump; Redis is flushed, lost and comes back. After every step:

K1  what a budget has reserved and spent is never above it; K2 the sums are those of the rows;
K3  what was answered to the end has one row, and it is final; K4 what is charged is what was taken from the engine;
K5  what was refused has no row; K6 a dead process' rows are settled at a checkpoint, never above what was made;
K7  the usage told is the row's; K8 a row leaves `open` once; K10 daily sums and totals are the ledger's.
(K9, one charge for one Idempotency-Key, is in test_idempotency.py.)
"""

import asyncio
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec import Struct
from sqlalchemy import Engine, insert, select

from qwen3vl_compat.accounts.booking import period_of
from qwen3vl_compat.accounts.books import Terms
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.ledger import Ledger
from qwen3vl_compat.accounts.money import Price
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.accounts.tables import COUNTS, daily, ledger, prices, processes, spending
from qwen3vl_compat.errors import ApiError, EngineFailed, OutOfCredit, RateLimited
from qwen3vl_compat.events import Events, Finish, Started, TextDelta, Usage
from qwen3vl_compat.messages import Caller, Message, Request, Sampling, Text
from qwen3vl_compat.policies.bookkeeping import Bookkeeping
from qwen3vl_compat.policies.limiting import Limiter, make_limiter
from qwen3vl_compat.policies.metering import CHECKPOINT_TOKENS, Metering
from qwen3vl_compat.settings import LimitSettings, Quotas
from tests.redis_server import RedisServer

LEASE = 60.0
PRICE = Price(
    id=1, model="*", effective_from=0, text_in=10**9, vision_in=10**9, cached_in=0, out=10**9, reasoning=10**9,
    per_request=0,
)  # fmt: skip
"""A token costs 1,000 nano-units, whichever it is."""
PROMPT = 10
DAY, MONTH = 300_000, 1_000_000
"""Nano-units: 300 tokens a day, 1,000 a month."""
QUOTAS = {
    "poor": Quotas(budget=f"0.{DAY:09d}/day;0.{MONTH:09d}/month", concurrent=3),
    "busy": Quotas(tokens=400, tokens_out=300, concurrent=2),
}


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Process:
    """A server's books; `ticks` goes on while it lives, `clock` may jump."""

    def __init__(self, database: Engine, clock: Clock, ticks: Clock, redis: str) -> None:
        self.ledger = Ledger(database, lease=LEASE, clock=clock, ticks=ticks)
        limits = LimitSettings(redis=redis)
        self.limiter: Limiter = make_limiter(limits, seed=None, share=lambda: self.ledger.heartbeat.living)
        self.alive = True

    async def start(self) -> None:
        await self.ledger.start()
        await self.limiter.start()

    async def close(self) -> None:
        self.alive = False
        await self.limiter.close()
        await self.ledger.close()


class Asked(Struct):
    """A request under way, as its client and its engine know it."""

    name: str
    tenant: str
    process: Process
    events: Any
    most: int
    made: int = 0
    noted: int = 0
    begun: bool = False
    ended: str = ""
    told: Usage | None = None


class Machine(RuleBasedStateMachine):
    """Whatever can happen, in any order."""

    template: Path
    redis: RedisServer | None = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="books-"))
        shutil.copytree(self.template, self.folder / "state")
        self.database = open_database(self.folder / "state")
        self.clock, self.ticks = Clock(1_700_000_000.0), Clock(0.0)
        if self.redis is not None:
            self.redis.command("FLUSHALL")
        self.lost = False
        self.processes = [self._new_process() for _ in range(2)]
        self.asked: list[Asked] = []
        self.refused: set[str] = set()
        self.closed: dict[str, Any] = {}
        self.number = 0

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def _new_process(self) -> Process:
        url = "" if self.redis is None else self.redis.url
        process = Process(self.database, self.clock, self.ticks, url)
        self.run(process.start())
        return process

    def running(self) -> list[Asked]:
        return [each for each in self.asked if not each.ended]

    # ---------------------------------------------------------------------------------------------------- what happens

    @rule(tenant=st.sampled_from(sorted(QUOTAS)), which=st.integers(0, 1), most=st.integers(1, 120))
    def begin(self, tenant: str, which: int, most: int) -> None:
        self.number += 1
        name, process = f"r{self.number}", self.processes[which]
        one = Asked(name, tenant, process, None, most)

        async def engine(request: Request) -> Events:
            yield Started(Usage(prompt_text=PROMPT))
            for made in range(1, (request.sampling.max_tokens or 0) + 1):
                one.made = made
                yield TextDelta(0, "x", made)
            yield Finish(0, "length", Usage(prompt_text=PROMPT, completion=one.made))

        async def count(request: Request) -> Usage:
            return Usage(prompt_text=PROMPT)

        async def terms_of(caller: Caller) -> Terms:
            return Terms(Quotas(), QUOTAS[caller.tenant])

        async def price_of(model: str, now: int) -> Price | None:
            return PRICE

        books = Bookkeeping(process.ledger, process.limiter, terms_of, price_of)

        async def check(request: Request) -> None:
            assert request.sampling.max_tokens == most

        metering = Metering(books, count, lambda request, usage: request.sampling.max_tokens or 0, check)
        request = Request(
            id=name, created=0, model="m", messages=(Message("user", (Text("x"),)),),
            sampling=Sampling(max_tokens=most), caller=Caller(tenant, "K" * 12), wire="openai",
        )  # fmt: skip
        one.events = metering(engine)(request)
        try:
            started = self.run(anext(one.events))
        except (RateLimited, OutOfCredit):
            self.refused.add(name)
            return
        assert isinstance(started, Started)
        one.begun = True
        self.asked.append(one)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), tokens=st.integers(1, 60))
    def make(self, data: st.DataObject, tokens: int) -> None:
        one = data.draw(st.sampled_from(self.running()))
        for _ in range(tokens):
            event = self.run(anext(one.events))
            if isinstance(event, Finish):
                one.ended, one.told = "final", event.usage
                return

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running()))
        self.run(one.events.aclose())
        one.ended = "aborted"

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running()))
        with pytest.raises(EngineFailed):
            self.run(one.events.athrow(EngineFailed("broken")))
        one.ended = "failed"

    @rule(which=st.integers(0, 1))
    def kill(self, which: int) -> None:
        """What a killed process has not written is lost, and it says goodbye to nobody."""
        dead = self.processes[which]
        self.run(dead.close())
        with self.database.begin() as connection:
            connection.execute(insert(processes).values(id=dead.ledger.owner, beat=-1, started_at=0))
        for one in self.running():
            if one.process is dead:
                one.ended = "killed"
        self.processes[which] = self._new_process()

    @rule(quarters=st.integers(1, 6))
    def pass_time(self, quarters: int) -> None:
        """Every quarter of a lease whoever lives says so."""
        for _ in range(quarters):
            self.clock.now += LEASE / 4
            self.ticks.now += LEASE / 4
            self._beat()

    @rule(seconds=st.sampled_from((-86_400, -60, 60, 3600, 86_400, 31 * 86_400)))
    def set_clock(self, seconds: int) -> None:
        self.clock.now += seconds
        self._beat()

    def _beat(self) -> None:
        for process in self.processes:
            process.ledger._beat()

    @precondition(lambda self: self.redis is not None and not self.lost)
    @rule()
    def flush_redis(self) -> None:
        assert self.redis is not None
        self.redis.command("FLUSHALL")

    @precondition(lambda self: self.redis is not None)
    @rule()
    def lose_redis_or_have_it_back(self) -> None:
        assert self.redis is not None
        if self.lost:
            self.redis.start()
        else:
            self.redis.kill()
        self.lost = not self.lost

    # ------------------------------------------------------------------------------------------------------ what holds

    @invariant()
    def the_books_are_right(self) -> None:
        with self.database.connect() as connection:
            rows = {row.id: row for row in connection.execute(select(ledger))}
            pots = {(row.scope, row.period): row for row in connection.execute(select(spending))}
            sums = {tuple(row[:5]): row for row in connection.execute(select(daily))}
        self._check_rows(rows)
        self._check_sums(rows, pots, sums)

    def _check_rows(self, rows: dict[str, Any]) -> None:
        assert rows.keys() == {one.name for one in self.asked}  # K3, K5
        for name, before in self.closed.items():
            assert tuple(rows[name]) == tuple(before)  # K8
        self.closed = {name: row for name, row in rows.items() if row.state != "open"}
        for one in self.asked:
            row = rows[one.name]
            assert row.reserved == (PROMPT + one.most) * 1000
            if one.ended == "final":
                assert one.told is not None
                assert (row.state, row.text_in, row.out) == ("final", one.told.prompt, one.told.completion)  # K7
                assert row.cost == (PROMPT + one.made) * 1000  # K4
            elif one.ended == "aborted":
                assert (row.state, row.out, row.cost) == ("aborted", one.made, (PROMPT + one.made) * 1000)  # K4
            elif one.ended == "failed":
                assert (row.state, row.cost) == ("aborted", 0)
            elif one.ended == "killed":
                assert row.state in ("open", "interrupted")
                if row.state == "interrupted":  # K6
                    assert row.cost == (PROMPT + row.out) * 1000
                    assert one.made - CHECKPOINT_TOKENS <= row.out <= one.made
            else:
                assert row.state in ("open", "interrupted")

    def _check_sums(self, rows: dict[str, Any], pots: dict[Any, Any], sums: dict[Any, Any]) -> None:
        held: dict[Any, list[int]] = {}
        counted: dict[Any, list[int]] = {}
        for row in rows.values():
            day = period_of(row.created_at, "day")
            for scope in (f"tenant:{row.tenant}", f"key:{row.key}"):
                for period in (day, day[:7]):
                    pot = held.setdefault((scope, period), [0, 0])
                    pot[row.state != "open"] += row.reserved if row.state == "open" else row.cost
            if row.state != "open":
                total = counted.setdefault((day, row.tenant, row.key, row.model, row.cache), [0] * (len(COUNTS) + 2))
                added = (1, *(getattr(row, name) for name in COUNTS), row.cost)
                total[:] = [one + other for one, other in zip(total, added, strict=True)]
        for name, pot in pots.items():
            assert [pot.reserved, pot.spent] == held.get(name, [0, 0])  # K2
            if name[0] == "tenant:poor":
                assert pot.reserved + pot.spent <= (DAY if len(name[1]) == 10 else MONTH)  # K1
        assert {name: list(row[5:]) for name, row in sums.items()} == counted  # K10

    def teardown(self) -> None:
        async def end() -> None:
            for one in self.running():
                await one.events.aclose()
            for process in self.processes:
                await process.close()
            for one in self.asked:
                with suppress(ApiError):  # the ledger of its process is closed
                    await one.events.aclose()

        self.run(end())
        if self.redis is not None and self.lost:
            self.redis.start()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self.database.dispose()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a server with both tenants and the price."""
    folder = tmp_path_factory.mktemp("books") / "state"
    database = open_database(folder)
    keys = Keys(database)
    for tenant in QUOTAS:
        keys.add_tenant(tenant)
    with database.begin() as connection:
        connection.execute(insert(prices).values(**{name: getattr(PRICE, name) for name in Price.__struct_fields__}))
    database.dispose()
    assert (folder / FILE).exists()
    return folder


@pytest.fixture(params=["in process", "redis"])
def machine(request: pytest.FixtureRequest, template: Path) -> type[Machine]:
    """The machine on one kind of limiter."""
    server = request.getfixturevalue("own_redis") if request.param == "redis" else None

    class Here(Machine):
        pass

    Here.template, Here.redis = template, server
    return Here


def run(machine: type[Machine], examples: int) -> None:
    wanted = settings(max_examples=examples, stateful_step_count=30, deadline=None, print_blob=True)
    run_state_machine_as_test(machine, settings=wanted)


def test_the_books_are_right_whatever_happens(machine: type[Machine]) -> None:
    run(machine, 20)


@pytest.mark.slow
def test_the_books_are_right_whatever_happens_for_long(machine: type[Machine]) -> None:
    run(machine, 2000)
