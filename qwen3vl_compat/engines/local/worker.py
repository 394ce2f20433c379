"""The thread that owns the device: it takes jobs, runs steps and hands out events, and touches nothing of asyncio."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
import torch

from qwen3vl_compat.engines.local.answer import End
from qwen3vl_compat.engines.local.decoding import Scores
from qwen3vl_compat.engines.local.job import Job
from qwen3vl_compat.engines.local.metrics import Metrics
from qwen3vl_compat.engines.local.runner import Runner
from qwen3vl_compat.engines.local.sampling import Drawn, Row, draw
from qwen3vl_compat.engines.local.scheduler import Piece, Scheduler
from qwen3vl_compat.engines.local.sequence import Sequence
from qwen3vl_compat.engines.local.slots import Slots
from qwen3vl_compat.errors import OVERLOADED, ApiError, EngineFailed, Overloaded
from qwen3vl_compat.events import Event, Finish, Progress, Started, Usage
from qwen3vl_compat.settings import ModelSettings

log = logging.getLogger(__name__)

Delivery = tuple[Job, Event | ApiError]
T = TypeVar("T")
R = TypeVar("R")
PATCHES = 16_384
"""Patches of pictures encoded in one step."""


class Worker:
    """Steps of the scheduler's plans on the runner, one after the other."""

    def __init__(
        self,
        runner: Runner,
        settings: ModelSettings,
        deliver: Callable[[list[Delivery]], None],
    ) -> None:
        self.runner, self._settings, self._deliver = runner, settings, deliver
        copies = isinstance(runner.memory, Slots)
        self.scheduler = Scheduler(runner.blocks, settings.max_rows, runner.vision.patches, copies=copies)
        self.metrics = Metrics(self.scheduler, runner.vision)
        self.stepping_since: float | None = None
        """When the step under way began."""
        self._inbox: list[Job] = []
        self._news = threading.Condition()
        self._closing = False
        self.ended = False
        """Whether it takes no more work."""
        self._out: list[Delivery] = []
        self._sequences: dict[int, list[Sequence]] = {}

    # ------------------------------------------------------------------------------------------- called from elsewhere

    def submit(self, job: Job) -> None:
        """Take a new request; raises Overloaded if nobody is left to do it."""
        with self._news:
            if self.ended:
                raise Overloaded("The model is not running.", retry_after=5)
            self._inbox.append(job)
            self._news.notify()

    def wake(self) -> None:
        """Look at once for jobs that were cancelled."""
        with self._news:
            self._news.notify()

    def close(self) -> None:
        """End after the step under way."""
        with self._news:
            self._closing = True
            self._news.notify()

    # ------------------------------------------------------------------------------------------------------- the thread

    def run(self) -> None:
        """Serve until closed."""
        while True:
            with self._news:
                while not (self.busy or self._closing):
                    self._news.wait()
            self.turn()
            if self._closing:
                self.abandon(Overloaded("The server is stopping.", retry_after=5))
                return

    def turn(self) -> None:
        """Take what came in, let go of who left, and do one step."""
        with self._news:
            jobs, self._inbox = self._inbox, []
        for job in jobs:
            self._accept(job)
        self._drop_the_gone()
        self.stepping_since = time.monotonic()
        self._step()
        self.stepping_since = None
        self._flush()
        if not self._sequences:
            self.check()

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return bool(self._inbox or self._sequences)

    def check(self) -> None:
        """Assert that nothing is left behind when nothing runs."""
        self.scheduler.check()
        assert not self.scheduler.running
        assert not len(self.scheduler.waiting)
        assert self.scheduler.blocks.used == 0
        assert self.runner.vision.held == 0

    def _accept(self, job: Job) -> None:
        tokens = job.prompt.ids.tolist()
        sequence = Sequence(tokens, job.prompt.spans, tenant=job.tenant, forks=len(job.answers) - 1, owner=job)
        self._sequences[id(job)] = [sequence]
        self.scheduler.add(sequence)

    def _drop_the_gone(self) -> None:
        now = time.monotonic()
        for sequences in list(self._sequences.values()):
            job: Job = sequences[0].owner
            if not job.started and now - job.since > min(self._settings.max_wait, job.request.seconds):
                self._fail(job, Overloaded(OVERLOADED, retry_after=10))
            elif job.cancelled:
                self._end(job)

    def _step(self) -> None:
        plan = self.scheduler.plan(*self._budget())
        for sequence, row in plan.preempted:
            self.runner.vision.let_go(sequence, all_of_it=True)
            self.runner.memory.forget(row)
        for sequence, row in plan.moved:
            self.runner.memory.move(sequence, row)
        for sequence in plan.admitted:
            if sequence.computed:
                self.runner.memory.restore(sequence)
            if not sequence.owner.started:
                sequence.owner.started = True
                self.metrics.prompt_tokens.inc(sequence.prompt_length)
                self._out.append((sequence.owner, Started(_begun(sequence))))
        self._decode(plan.decodes)
        if plan.decodes:
            self._flush()
        self._compute([piece for piece in plan.pieces if piece.sequence.row is not None])

    def _budget(self) -> tuple[int, int]:
        """Prompt tokens and patches for a step: all there is room for, or what the time allows if someone waits."""
        tokens, patches, seconds = self._settings.piece_tokens, PATCHES, self._settings.piece_seconds
        if any(sequence.decoding for sequence in self.scheduler.running):
            tokens = max(16, self.runner.pace.within(seconds, tokens))
            patches = self.runner.vision.pace.within(seconds, patches)
        return tokens, patches

    def _isolated(
        self, call: Callable[[list[T]], R], items: list[tuple[Sequence, T]]
    ) -> Iterator[tuple[list[tuple[Sequence, T]], R]]:
        """The call over all items; if that fails, over each alone, so that only those fail which do so alone.

        What has lost its row meanwhile, because its request has failed or made room, is left out.
        """
        items = [(sequence, item) for sequence, item in items if sequence.row is not None]
        if not items:
            return
        try:
            result = call([item for _, item in items])
        except torch.AcceleratorError:
            raise  # the device is lost, with all that stood in its memory
        except Exception as error:
            if _out_of_memory(error):
                self._shed()
                yield from self._isolated(call, items)
            elif len(items) > 1:
                for item in items:
                    yield from self._isolated(call, [item])
            else:
                self._fail_alone(items[0][0].owner, error)
        else:
            yield items, result

    def _fail_alone(self, job: Job, error: Exception) -> None:
        if isinstance(error, ApiError):
            self._fail(job, error)
            return
        log.error("request %s failed in the engine", job.request.id, exc_info=error)
        self._fail(job, EngineFailed("The engine failed on this request."))

    def _shed(self) -> None:
        """Give up the request that holds most memory, so that the others can go on."""
        held = {key: sum(len(each.blocks) for each in sequences) for key, sequences in self._sequences.items()}
        largest = max(held, key=lambda key: held[key])
        self._fail(
            self._sequences[largest][0].owner, Overloaded("There is no memory for this request now.", retry_after=10)
        )

    def _decode(self, sequences: list[Sequence]) -> None:
        for decoded, scores in self._isolated(self.runner.decode, [(each, each) for each in sequences]):
            for sequence, _ in decoded:
                before, sequence.computed = sequence.computed, len(sequence)
                self._publish(sequence, before)
            self._extend(scores, [(row, sequence) for row, (sequence, _) in enumerate(decoded)])

    def _compute(self, pieces: list[Piece]) -> None:
        for computed, scores in self._isolated(self.runner.compute, [(piece.sequence, piece) for piece in pieces]):
            complete: list[tuple[int, Sequence]] = []
            row = 0
            for sequence, piece in computed:
                self.scheduler.computed(piece)
                self._publish(sequence, piece.start)
                self.runner.vision.let_go(sequence)
                if piece.completes:
                    complete += [(row, each) for each in (sequence, *self._fork(sequence))]
                    row += 1
            self._extend(scores, complete)

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        others = [sequence.fork(choice) for choice in range(1, sequence.forks + 1)]
        sequence.forks = 0
        for other in others:
            self._sequences[id(sequence.owner)].append(other)
            if self.scheduler.fork(sequence, other):
                self.runner.memory.fork(sequence, other)
        return others

    def _publish(self, sequence: Sequence, before: int) -> None:
        if named := self.scheduler.name_blocks(sequence, before):
            self.runner.memory.publish(sequence, named)

    def _extend(self, scores: Scores, rows: list[tuple[int, Sequence]]) -> None:
        """Draw each sequence's next token and show what it completes."""
        there = [(place, each) for place, each in rows if each.row is not None]
        wanted = [(each, row) for place, each in there if (row := self._wanted(place, each)) is not None]

        def drawn(rows: list[Row]) -> list[Drawn]:
            return draw(scores, rows)

        for items, tokens in self._isolated(drawn, wanted):
            for (sequence, _), token in zip(items, tokens, strict=True):
                try:
                    self._take(sequence, token)
                except Exception as error:
                    self._fail_alone(sequence.owner, error)

    def _wanted(self, place: int, sequence: Sequence) -> Row | None:
        job: Job = sequence.owner
        try:
            return job.answers[sequence.choice].row(place, sequence.made)
        except Exception as error:
            self._fail_alone(job, error)
        return None

    def _take(self, sequence: Sequence, drawn: Drawn) -> None:
        job: Job = sequence.owner
        if id(job) not in self._sequences:  # another choice of it has failed in this very step
            return
        made = sequence.made + (drawn.token is not None)
        deltas, end = job.answers[sequence.choice].take(drawn, made)
        if drawn.token is not None:
            sequence.append(drawn.token)
            self._clock(job, sequence)
        self._out += [(job, delta) for delta in deltas]
        if end is not None:
            self._finish(sequence, end)
        elif not deltas:
            self._out.append((job, Progress(sequence.choice, made)))

    def _clock(self, job: Job, sequence: Sequence) -> None:
        now, last = time.monotonic(), job.last_token[sequence.choice]
        job.last_token[sequence.choice] = now
        self.metrics.tokens.inc()
        if last is not None:
            self.metrics.between_tokens.observe(now - last)
        elif sequence.choice == 0:
            self.metrics.first_token.observe(now - job.since)

    def _finish(self, sequence: Sequence, end: End) -> None:
        job: Job = sequence.owner
        dialect = job.answers[sequence.choice].dialect
        self._out += [(job, delta) for delta in dialect.finish(sequence.made)]
        job.made[sequence.choice], job.thought[sequence.choice] = sequence.made, dialect.thought
        usage = msgspec.structs.replace(job.usage, completion=sum(job.made), reasoning=sum(job.thought))
        self._out.append((job, Finish(sequence.choice, end.reason, usage, end.details, stop=end.stop)))
        self._let_go(sequence)
        rest = self._sequences[id(job)]
        rest.remove(sequence)
        if not rest:
            del self._sequences[id(job)]

    # ------------------------------------------------------------------------------------------------------------- ends

    def _let_go(self, sequence: Sequence) -> None:
        row = sequence.row
        self.scheduler.finish(sequence)
        self.runner.vision.let_go(sequence, all_of_it=True)
        if row is not None:
            self.runner.memory.forget(row)

    def _end(self, job: Job) -> None:
        for sequence in self._sequences.pop(id(job)):
            self._let_go(sequence)

    def _fail(self, job: Job, error: ApiError) -> None:
        if id(job) in self._sequences:  # else one of its choices has failed before
            self._end(job)
            self._out.append((job, error))

    def abandon(self, error: ApiError) -> None:
        """Tell every request this error and take no more; the books, which may be what failed, are left as they are."""
        with self._news:
            self.ended = True
            jobs, self._inbox = self._inbox, []
        self._out += [(job, error) for job in jobs]
        self._out += [(sequences[0].owner, error) for sequences in self._sequences.values()]
        self._flush()

    def _flush(self) -> None:
        if self._out:
            self._deliver(self._out)
            self._out = []


def _begun(sequence: Sequence) -> Usage:
    """The prompt's tokens, now that it is known how many of them are computed already."""
    job: Job = sequence.owner
    known = sequence.computed
    slots = sum(min(span.end, known) - span.start for span in sequence.spans if span.start < known)
    job.usage = msgspec.structs.replace(job.usage, cached=known, cached_vision=slots)
    return job.usage


def _out_of_memory(error: Exception) -> bool:
    """On a CPU torch says so in a plain RuntimeError's text only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
