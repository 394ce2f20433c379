"""Which sequences are computed next, and how far; plain Python.

Every step the scheduler makes a plan: one token for each sequence that is answering, and pieces of prompts up to a
budget. A sequence runs while it has a row and blocks; when blocks run out, the one that came last loses its own and
waits to be computed again.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qwen3vl_compat.engines.local.blocks import Blocks
from qwen3vl_compat.engines.local.sequence import Sequence, Span
from qwen3vl_compat.queue import FairQueue


@dataclass(frozen=True)
class Piece:
    """Tokens start..end of a sequence, to be computed in one go."""

    sequence: Sequence
    start: int
    end: int

    @property
    def completes(self) -> bool:
        """Whether a token follows this piece."""
        return self.end == len(self.sequence)

    @property
    def spans(self) -> list[Span]:
        """The pictures this piece needs."""
        return [span for span in self.sequence.spans if span.start < self.end and span.end > self.start]


@dataclass
class Plan:
    """One step's work. Those `admitted` begin with what earlier prompts left in their shared blocks."""

    decodes: list[Sequence] = field(default_factory=list[Sequence])
    pieces: list[Piece] = field(default_factory=list[Piece])
    admitted: list[Sequence] = field(default_factory=list[Sequence])
    preempted: list[tuple[Sequence, int]] = field(default_factory=list[tuple[Sequence, int]])
    """Those that lost their blocks, and the row each stood in."""
    moved: list[tuple[Sequence, int]] = field(default_factory=list[tuple[Sequence, int]])
    """Those that stand in another row now, and the row each stood in."""


class Waiting:
    """Sequences that wait, taken from each tenant in turn; those that already ran once go before all others."""

    def __init__(self) -> None:
        self._again: deque[Sequence] = deque()
        self._new: FairQueue[Sequence] = FairQueue()

    def __len__(self) -> int:
        return len(self._again) + len(self._new)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._again
        yield from self._new

    def add(self, sequence: Sequence) -> None:
        """Queue behind the others of the same tenant."""
        self._new.push(sequence.tenant, sequence)

    def add_again(self, sequence: Sequence) -> None:
        """Queue before everything."""
        self._again.appendleft(sequence)

    def first(self) -> Sequence | None:
        """Whose turn it is."""
        return self._again[0] if self._again else self._new.first()

    def pop(self) -> Sequence:
        """Take the first."""
        return self._again.popleft() if self._again else self._new.pop()

    def remove(self, sequence: Sequence) -> None:
        """Take one out, wherever it stands."""
        if sequence in self._again:
            self._again.remove(sequence)
        else:
            self._new.remove(sequence.tenant, sequence)


class Scheduler:
    """Rows, blocks and the queue. `patches` says how many patches a picture of a sequence still costs to encode.

    `copies` says that each row holds a copy of its own of all its blocks, shared ones too: then those of all rows
    together are as few as the blocks that can be shared.
    """

    def __init__(
        self,
        blocks: Blocks,
        rows: int,
        patches: Callable[[Sequence, Span], int] | None = None,
        *,
        copies: bool = False,
    ) -> None:
        self.blocks, self.rows, self._copies = blocks, rows, copies
        self.waiting = Waiting()
        self.running: list[Sequence] = []
        """In the order of their admission."""
        self.preemptions = 0
        self._patches = patches or (lambda _sequence, _span: 0)

    # ---------------------------------------------------------------------------------------------- what comes and goes

    def fits(self, tokens: int, choices: int) -> bool:
        """Whether a prompt of so many tokens, with one token for each choice, could ever be held."""
        return self._blocks_for(tokens + 1) + choices - 1 <= self.blocks.count and choices <= self.rows

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Let go of a sequence, whether it is running or waiting."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._drop(sequence)
        else:
            self.waiting.remove(sequence)

    def fork(self, sequence: Sequence, other: Sequence) -> bool:
        """Start `other` beside `sequence` on the same prompt, which is computed to its end.

        Full blocks are shared; a partial last one becomes a block of its own, to be copied before it is written. False
        if there is no row or block for it: then it waits to be computed again.
        """
        full = sequence.prompt_length // self.blocks.size
        partial = int(sequence.prompt_length % self.blocks.size > 0)
        row = self._free_row()
        if row is None or self.blocks.free < partial or self._copies_left() < full + partial:
            self.waiting.add_again(other)
            return False
        self.blocks.share(sequence.blocks[:full])
        other.blocks = sequence.blocks[:full] + self.blocks.allocate(partial)
        other.computed, other.row = sequence.prompt_length, row
        self.running.append(other)
        return True

    def _drop(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.computed, sequence.row = [], 0, None

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        self.preemptions += 1
        assert sequence.row is not None
        plan.preempted.append((sequence, sequence.row))
        self.running.remove(sequence)
        self._drop(sequence)
        self.waiting.add_again(sequence)

    # --------------------------------------------------------------------------------------------------------- the plan

    def plan(self, tokens: int, patches: int) -> Plan:
        """The next step: at most `tokens` of prompts and `patches` of pictures, yet never nothing if anything waits."""
        plan = Plan()
        for sequence in [each for each in self.running if each.decoding]:
            if sequence.row is not None and self._grow(sequence, plan):
                plan.decodes.append(sequence)
        plan.decodes = [each for each in plan.decodes if each.row is not None]
        self._close_ranks(plan)
        budget = _Budget(tokens, patches)
        for sequence in self.running:
            if not sequence.decoding:
                self._add_piece(plan, sequence, budget)
        while budget.tokens > 0 and (sequence := self._admit()) is not None:
            plan.admitted.append(sequence)
            self._add_piece(plan, sequence, budget)
        return plan

    def _close_ranks(self, plan: Plan) -> None:
        """Move those in the highest rows to free ones when more than one row in four is empty: a step costs by rows."""
        while self.running:
            last = max(self.running, key=lambda each: each.row or 0)
            free = self._free_row()
            if last.row is None or free is None or last.row < len(self.running) + len(self.running) // 4:
                break
            plan.moved.append((last, last.row))
            last.row = free
        plan.decodes.sort(key=lambda each: each.row or 0)

    def _grow(self, sequence: Sequence, plan: Plan) -> bool:
        """A place for the newest token; others that came later make room for it, or it gives way itself."""
        while self._blocks_for(len(sequence)) > len(sequence.blocks):
            if self.blocks.free and self._copies_left():
                sequence.blocks += self.blocks.allocate(1)
                continue
            last = self.running[-1]
            self._preempt(last, plan)
            if last is sequence:
                return False
        return True

    def _admit(self) -> Sequence | None:
        """Give the first in the queue a row and blocks for all its tokens, if there are any."""
        sequence = self.waiting.first()
        row = self._free_row()
        if sequence is None or row is None or self._rows_left() <= sequence.forks:
            return None
        # The last token is always computed, in a block of one's own: it yields the first answer's token.
        names = sequence.names(self.blocks.size, (len(sequence) - 1) // self.blocks.size)
        shared = self.blocks.match(names)
        needed = self._blocks_for(len(sequence)) - len(shared)
        # Leave each running sequence room for one more block, so that nobody is admitted only to be preempted at once.
        spare = sequence.forks + (len(self.running) if self.running else 0)
        if needed + spare > self.blocks.free - self.blocks.idle(shared):
            return None
        if self._blocks_for(len(sequence)) + spare > self._copies_left():
            return None
        self.waiting.pop()
        self.blocks.share(shared)
        self.blocks.queries += len(sequence)
        self.blocks.hits += len(shared) * self.blocks.size
        sequence.blocks = shared + self.blocks.allocate(needed)
        sequence.computed, sequence.row = len(shared) * self.blocks.size, row
        self.running.append(sequence)
        return sequence

    def _add_piece(self, plan: Plan, sequence: Sequence, budget: "_Budget") -> None:
        start = sequence.computed
        end = min(len(sequence), start + budget.tokens)
        for span in sequence.spans:
            if span.end <= start or span.start >= end:
                continue
            cost = self._patches(sequence, span)
            if cost > budget.patches and (plan.pieces or span.start > start or budget.spent):
                end = max(start, span.start)
                break
            budget.spend(cost)
        if end > start:
            budget.tokens -= end - start
            plan.pieces.append(Piece(sequence, start, end))

    def computed(self, piece: Piece) -> None:
        """Note that a piece's keys and values are stored."""
        piece.sequence.computed = piece.end

    def name_blocks(self, sequence: Sequence, before: int) -> list[tuple[int, int]]:
        """Make blocks that were filled since `before` tokens known to all: (place in the sequence, block) of each."""
        size = self.blocks.size
        first, last = before // size, sequence.computed // size
        names = sequence.names(size, last) if last > first else []
        return [
            (place, sequence.blocks[place])
            for place in range(first, last)
            if self.blocks.name(sequence.blocks[place], names[place])
        ]

    # ------------------------------------------------------------------------------------------------------------- rows

    def _rows_left(self) -> int:
        return self.rows - len(self.running)

    def _copies_left(self) -> int:
        """Blocks that rows may still hold, whoever else holds them too."""
        if not self._copies:
            return self.blocks.count
        return self.blocks.count - sum(len(sequence.blocks) for sequence in self.running)

    def _free_row(self) -> int | None:
        taken = {sequence.row for sequence in self.running}
        return next((row for row in range(self.rows) if row not in taken), None)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.blocks.size)

    def check(self) -> None:
        """Assert that rows and blocks add up."""
        self.blocks.check(sequence.blocks for sequence in self.running)
        rows = [sequence.row for sequence in self.running]
        assert None not in rows
        assert len(set(rows)) == len(rows) <= self.rows
        assert all(sequence.row is None and not sequence.blocks for sequence in self.waiting)
        assert all(self._blocks_for(sequence.computed) <= len(sequence.blocks) for sequence in self.running)
        assert self._copies_left() >= 0


@dataclass
class _Budget:
    """What is left of a step for prompts."""

    tokens: int
    patches: int
    spent: bool = False

    def spend(self, patches: int) -> None:
        """Count a picture that will be encoded."""
        if patches:
            self.patches -= patches
            self.spent = True
