"""Limiters beside a simple model, over whatever may happen in whatever order: every answer is the model's.

What holds throughout, for the requests themselves and not only for what the limiter believes: in each window used and
reserved are within the limit. For counters that the ledger knows this holds through crashes and flushes too; a flush
begins the others anew. Places may be exceeded only until they are renewed, after a flush or a jump of the clock, or by
what is left of a process that was killed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec import Struct

from qwen3vl_compat.policies.limiting import HELD_S, SEEDED_S, Claim, Decision
from tests.policies.counting import DAY, HOUR, Counting, claim
from tests.redis_server import RedisServer

LEASE = 1000 * HELD_S
KINDS = [
    claim("requests", 3),
    claim("tokens", 20, scope="tenant:t"),
    claim("requests", 5, period=HOUR),
    claim("pictures", 30, period=DAY, scope="tenant:t"),
    claim("tokens_out", 0),
    claim("concurrent", 2),
    claim("concurrent", 3, scope="tenant:t"),
]
Window = tuple[str, int]


class Taken(Struct, frozen=True):
    """What a name was admitted with; `era` is the number of flushes before."""

    process: int
    claims: list[Claim]
    windows: list[Window]
    era: int


class Machine(RuleBasedStateMachine):
    """The model and its limiters; `server` is set by the tests."""

    server: RedisServer | None = None

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.counting = Counting(self.server)
        self.processes = [self.counting.limiter(self.tell) for _ in range(2 if self.server else 1)]
        self.ledger: defaultdict[Window, int] = defaultdict(int)
        self.anew: defaultdict[Window, int] = defaultdict(int)
        """What was used and reserved since the last flush, of what the ledger does not know."""
        self.counts: dict[Window, int] = {}
        self.places: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self.taken: dict[str, Taken] = {}
        self.receipts: list[tuple[Decision, Taken]] = []
        self.era = self.named = 0

    def teardown(self) -> None:
        self.runner.run(self.counting.close())
        self.runner.close()

    async def tell(self, of: Claim, start: int) -> int:
        await asyncio.sleep(0)
        return self.ledger[of.counter, start]

    # ------------------------------------------------------------------------------------------------------- the model

    @property
    def now(self) -> int:
        return int(self.counting.clock() * 1000)

    def used(self, of: Claim) -> int:
        """What is used of a counter now; those that the ledger knows are begun when they are looked at."""
        if of.period == 0:
            ends = self.places[of.counter].values()
            return sum(self.server is None or self.now < end <= self.now + 2 * LEASE for end in ends)
        window = of.counter, of.start(self.now)
        if of.period >= SEEDED_S:
            self.counts.setdefault(window, self.ledger[window])
        return self.counts.get(window, 0)

    def note(self, name: str, claims: Sequence[Claim], process: int) -> None:
        windows = [(each.counter, each.start(self.now) if each.period else 0) for each in claims]
        for each, window in zip(claims, windows, strict=True):
            if each.period:
                self.counts[window] = self.counts.get(window, 0) + each.amount
                self.ledger[window] += each.amount
                self.anew[window] += each.amount
            elif each.amount and name:
                ends = self.places[each.counter]
                if self.server is not None:
                    for lapsed in [other for other, end in ends.items() if not self.now < end <= self.now + 2 * LEASE]:
                        del ends[lapsed]
                ends[name] = self.now + LEASE
        self.last = Taken(process, list(claims), windows, self.era)
        if name:
            self.taken[name] = self.last

    # ------------------------------------------------------------------------------------------------------- the rules

    @rule(data=st.data(), named=st.booleans())
    def admit(self, data: st.DataObject, named: bool) -> None:
        kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4, unique=True))
        claims = [
            claim(
                of.kind,
                of.limit,
                data.draw(st.integers(0, 1 if not of.period else 6)),
                period=of.period,
                scope=of.scope,
            )
            for of in kinds
        ]
        process = data.draw(st.integers(0, len(self.processes) - 1))
        self.named += 1
        name = f"r{self.named}" if named else ""
        decision = self.runner.run(self.processes[process].admit(name, claims))
        fits = [self.used(each) + each.amount <= each.limit or each.amount == 0 for each in claims]
        if all(fits):
            self.note(name, claims, process)
            if not named:
                self.receipts.append((decision, self.last))
        refused = next((each for each, fit in zip(claims, fits, strict=True) if not fit), None)
        assert (decision.refused.claim if decision.refused else None) == refused
        assert [s.remaining for s in decision.standings] == [max(0, each.limit - self.used(each)) for each in claims]
        for standing in decision.standings:
            period = 1000 * standing.claim.period
            assert round(1000 * standing.reset) == (period - self.now % period if period else 0)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def admit_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.taken)))
        taken = self.taken[name]
        if taken.era == self.era:
            decision = self.runner.run(self.processes[taken.process].admit(name, taken.claims))
            assert decision.refused is None

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), void=st.booleans(), times=st.integers(1, 2))
    def settle(self, data: st.DataObject, void: bool, times: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.taken)))
        taken = self.taken.pop(name)
        used = [0 if void else data.draw(st.integers(0, each.amount)) for each in taken.claims]
        for _ in range(times):
            self.runner.run(self.processes[taken.process].settle(name, used))
        for each in taken.claims:
            self.places[each.counter].pop(name, None)
        self.unuse(taken, used)

    @precondition(lambda self: self.receipts)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        decision, taken = self.receipts.pop(data.draw(st.integers(0, len(self.receipts) - 1)))
        used = [data.draw(st.integers(0, each.amount)) for each in taken.claims]
        self.runner.run(self.processes[taken.process].give_back(decision, used))
        self.unuse(taken, used)

    def unuse(self, taken: Taken, used: Sequence[int]) -> None:
        """Less was used than was taken."""
        for each, window, amount in zip(taken.claims, taken.windows, used, strict=True):
            if each.period == 0:
                continue
            self.ledger[window] -= each.amount - amount
            if taken.era == self.era:
                self.anew[window] -= each.amount - amount
                self.counts[window] -= each.amount - amount

    @rule(seconds=st.sampled_from([0.001, 1, 20, 59.999, 60, HOUR, DAY, -1, -DAY]))
    def tick(self, seconds: float) -> None:
        self.counting.clock.now += seconds

    @precondition(lambda self: self.server)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        process = data.draw(st.integers(0, len(self.processes) - 1))
        self.runner.run(self.processes[process].renew())
        for name, taken in self.taken.items():
            for each in taken.claims:
                if taken.process == process and each.period == 0 and each.amount:
                    self.places[each.counter][name] = self.now + LEASE

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """What the process held is never settled: it counts as reserved."""
        process = data.draw(st.integers(0, len(self.processes) - 1))
        self.processes[process] = self.counting.limiter(self.tell)
        self.taken = {name: taken for name, taken in self.taken.items() if taken.process != process}
        if self.server is None:
            self.lose()

    @precondition(lambda self: self.server)
    @rule()
    def flush(self) -> None:
        self.server.command("FLUSHALL")
        self.lose()

    def lose(self) -> None:
        self.era += 1
        for forgotten in (self.counts, self.places, self.anew):
            forgotten.clear()

    @invariant()
    def limits_are_kept(self) -> None:
        limits = {of.counter: of for of in KINDS}
        for (counter, _), used in self.ledger.items():
            assert used >= 0
            assert used <= limits[counter].limit or limits[counter].period < SEEDED_S
        for (counter, _), used in self.anew.items():
            assert 0 <= used <= limits[counter].limit


def check(server: RedisServer | None, examples: int) -> None:
    machine = type("Checked", (Machine,), {"server": server})
    unhurried = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=unhurried
        ),
    )


def test_in_memory() -> None:
    check(None, 100)


def test_in_redis(redis_server: RedisServer) -> None:
    check(redis_server, 100)


@pytest.mark.slow
def test_in_memory_at_length() -> None:
    check(None, 2500)


@pytest.mark.slow
def test_in_redis_at_length(redis_server: RedisServer) -> None:
    check(redis_server, 2500)
