"""Blocks and the scheduler: every rule as a property of random runs, in plain Python."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwen3vl_compat.engines.local.blocks import Blocks
from qwen3vl_compat.engines.local.scheduler import Plan, Scheduler
from qwen3vl_compat.engines.local.sequence import Sequence, Span


def sequence(tokens: list[int], tenant: str = "t", spans: tuple[Span, ...] = (), forks: int = 0) -> Sequence:
    return Sequence(tokens, spans, tenant=tenant, forks=forks)


class Memory:
    """What a device would hold: each block's tokens, with the picture and the tenant they were computed for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.size = scheduler, scheduler.blocks.size
        self.cells: dict[tuple[int, int], Any] = {}

    def meaning(self, each: Sequence, place: int) -> Any:
        """All that decides the keys and values at a place: everything up to it."""
        pictures = tuple((span.start, span.digest) for span in each.spans if span.start <= place)
        return (each.tenant, tuple(each.tokens[: place + 1]), pictures)

    def write(self, each: Sequence, start: int, end: int) -> None:
        for place in range(start, end):
            block = each.blocks[place // self.size]
            owners = [other for other in self.scheduler.running if block in other.blocks]
            assert owners == [each], "a shared block was written"
            self.cells[block, place % self.size] = self.meaning(each, place)

    def copy(self, source: Sequence, target: Sequence) -> None:
        """A fork's own copy of the partial block."""
        for place in range(source.prompt_length // self.size * self.size, source.prompt_length):
            cell = source.blocks[place // self.size], place % self.size
            self.cells[target.blocks[place // self.size], place % self.size] = self.cells[cell]

    def check(self, each: Sequence) -> None:
        for place in range(each.computed):
            assert self.cells[each.blocks[place // self.size], place % self.size] == self.meaning(each, place)


def run_step(scheduler: Scheduler, memory: Memory, budget: int, patches: int = 10) -> Plan:
    """What the engine does with a plan; a token's value follows from what came before, so choices stay equal."""
    plan = scheduler.plan(budget, patches)
    for each in plan.decodes:
        before = each.computed
        memory.check(each)
        memory.write(each, before, before + 1)
        each.computed += 1
        scheduler.name_blocks(each, before)
        each.append(sum(each.tokens) % 7 + each.choice)
    for piece in plan.pieces:
        memory.check(piece.sequence)
        memory.write(piece.sequence, piece.start, piece.end)
        scheduler.computed(piece)
        scheduler.name_blocks(piece.sequence, piece.start)
        if piece.end == len(piece.sequence):
            others = [piece.sequence.fork(choice) for choice in range(1, piece.sequence.forks + 1)]
            for other in others:
                if scheduler.fork(piece.sequence, other):
                    memory.copy(piece.sequence, other)
            for each in (piece.sequence, *others):
                each.append(sum(each.tokens) % 7 + each.choice)
            piece.sequence.forks = 0
    return plan


@settings(max_examples=150, stateful_step_count=40)
class Machine(RuleBasedStateMachine):
    """Sequences come, go, are answered and cancelled at random."""

    @initialize(count=st.integers(4, 24), size=st.integers(1, 5), rows=st.integers(1, 5), copies=st.booleans())
    def start(self, count: int, size: int, rows: int, copies: bool) -> None:
        self.blocks = Blocks(count, size)
        self.encoded: set[str] = set()
        self.scheduler = Scheduler(
            self.blocks, rows, lambda _, span: 0 if span.digest in self.encoded else 4 * span.length, copies=copies
        )
        self.memory = Memory(self.scheduler)
        self.alive: list[Sequence] = []

    @rule(
        tokens=st.lists(st.integers(0, 2), min_size=1, max_size=20),
        tenant=st.sampled_from("ab"),
        forks=st.integers(0, 2),
        picture=st.none() | st.tuples(st.integers(0, 19), st.integers(1, 6), st.sampled_from("xy")),
    )
    def add(self, tokens: list[int], tenant: str, forks: int, picture: tuple[int, int, str] | None) -> None:
        if not self.scheduler.fits(len(tokens), forks + 1):
            return
        spans = ()
        if picture is not None and picture[0] < len(tokens):
            start, length, digest = picture
            spans = (Span(start, min(length, len(tokens) - start), digest),)
        made = sequence(tokens, tenant, spans, forks)
        self.scheduler.add(made)

    @rule(budget=st.integers(1, 12), patches=st.integers(0, 20))
    def step(self, budget: int, patches: int) -> None:
        plan = run_step(self.scheduler, self.memory, budget, patches)
        assert sum(piece.end - piece.start for piece in plan.pieces) <= budget
        assert len(plan.decodes) + len(plan.pieces) <= self.scheduler.rows
        self.encoded |= {span.digest for piece in plan.pieces for span in piece.spans}
        if self.scheduler.running or len(self.scheduler.waiting):
            assert plan.decodes or plan.pieces, "nothing was planned though something waits"
        room = self.blocks.count * self.blocks.size
        for each in list(self.scheduler.running) + list(self.scheduler.waiting):
            if each.made >= 6 or len(each) >= room:
                self.scheduler.finish(each)

    @precondition(lambda self: self.scheduler.running or len(self.scheduler.waiting))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.finish(data.draw(st.sampled_from([*self.scheduler.running, *self.scheduler.waiting])))

    @invariant()
    def adds_up(self) -> None:
        self.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(3000):
            if not self.scheduler.running and not len(self.scheduler.waiting):
                break
            self.step(8, 8)
        else:
            raise AssertionError("some sequence never ends")
        self.scheduler.check()
        assert self.blocks.used == 0


TestMachine = Machine.TestCase


def test_what_is_known_is_not_computed_again_but_for_the_last_token() -> None:
    scheduler = Scheduler(Blocks(20, 4), 4)
    memory = Memory(scheduler)
    first = sequence(list(range(12)))
    scheduler.add(first)
    run_step(scheduler, memory, 100)
    for tokens, found in ((list(range(12)), 8), (list(range(13)), 12), ([*range(8), 99, 98], 8), ([5, *range(11)], 0)):
        again = sequence(tokens)
        scheduler.add(again)
        plan = scheduler.plan(100, 0)
        assert plan.pieces[-1].start == found
        scheduler.finish(again)
    assert scheduler.blocks.hits == 8 + 12 + 8


@pytest.mark.parametrize(
    "other",
    [
        sequence([1, 1, 1, 1, 9], "other"),
        sequence([1, 1, 1, 1, 9], spans=(Span(0, 2, "b"),)),
        sequence([1, 1, 1, 1, 9], spans=(Span(1, 2, "a"),)),
        sequence([1, 1, 1, 1, 9], spans=(Span(0, 3, "a"),)),
        sequence([1, 1, 1, 1, 9]),
        sequence([1, 1, 1, 2, 9], spans=(Span(0, 2, "a"),)),
    ],
)
def test_blocks_are_shared_only_where_everything_is_the_same(other: Sequence) -> None:
    scheduler = Scheduler(Blocks(20, 4), 4)
    scheduler.add(sequence([1, 1, 1, 1, 9], spans=(Span(0, 2, "a"),)))
    run_step(scheduler, Memory(scheduler), 100)
    scheduler.add(other)
    assert scheduler.plan(100, 0).pieces[-1].start == 0


def test_tenants_take_turns() -> None:
    scheduler = Scheduler(Blocks(50, 4), 1)
    for name in "aaab":
        scheduler.add(sequence([1], name))
    order = []
    for _ in range(4):
        admitted = scheduler.plan(10, 0).admitted[0]
        order.append(admitted.tenant)
        scheduler.finish(admitted)
    assert order == ["a", "b", "a", "a"]


def test_a_piece_ends_before_a_picture_that_is_too_much_for_the_step() -> None:
    scheduler = Scheduler(Blocks(50, 4), 4, lambda _, span: 4 * span.length)
    scheduler.add(sequence(list(range(20)), spans=(Span(2, 4, "a"), Span(10, 4, "b"))))
    assert [(piece.start, piece.end) for piece in scheduler.plan(100, 20).pieces] == [(0, 10)]


def test_a_picture_larger_than_the_budget_still_comes_first_in_some_step() -> None:
    scheduler = Scheduler(Blocks(50, 4), 4, lambda _, span: 4 * span.length)
    memory = Memory(scheduler)
    scheduler.add(sequence(list(range(20)), spans=(Span(2, 8, "a"),)))
    assert [(piece.start, piece.end) for piece in run_step(scheduler, memory, 100, 5).pieces] == [(0, 2)]
    assert [(piece.start, piece.end) for piece in run_step(scheduler, memory, 100, 5).pieces] == [(2, 20)]


def test_the_last_one_in_gives_way_and_comes_back_with_all_its_tokens() -> None:
    scheduler = Scheduler(Blocks(4, 2), 2)
    memory = Memory(scheduler)
    old, young = sequence([1, 2, 3]), sequence([4, 5])
    scheduler.add(old)
    run_step(scheduler, memory, 10)
    scheduler.add(young)
    run_step(scheduler, memory, 10)
    while young.row is not None:
        run_step(scheduler, memory, 10)
    made = young.tokens[:]
    assert scheduler.preemptions == 1
    assert old.row is not None
    scheduler.finish(old)
    run_step(scheduler, memory, 10)
    assert young.tokens[: len(made)] == made
    assert len(young) == len(made) + 1


def test_rows_with_copies_of_their_own_hold_no_more_than_there_is_memory_for() -> None:
    """24 equal prompts share their blocks; where each row copies them, only as many run as their copies fit."""
    for copies, expected in ((False, 24), (True, 4)):
        scheduler = Scheduler(Blocks(100, 4), 24, copies=copies)
        first = sequence(list(range(80)))
        scheduler.add(first)
        for piece in scheduler.plan(1000, 0).pieces:
            scheduler.computed(piece)
        scheduler.name_blocks(first, 0)
        for _ in range(23):
            scheduler.add(sequence(list(range(80))))
        scheduler.plan(1000, 0)
        assert len(scheduler.running) == expected
        scheduler.check()
