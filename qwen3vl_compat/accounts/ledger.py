"""The ledger: what every request took, written by one thread that commits what has gathered while it wrote the last.

A row is opened before the engine is asked and closed before the answer's last byte is sent, both durably. What a
process leaves open when it dies is closed by the others, or by its successor, as far as the last checkpoint tells.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from qwen3vl_compat.accounts.booking import Booking, Budget, Entry, Left, Outcome, OverBudget, Pot
from qwen3vl_compat.accounts.database import is_lost, writing
from qwen3vl_compat.accounts.heartbeat import Heartbeat
from qwen3vl_compat.accounts.money import Counts
from qwen3vl_compat.accounts.recovery import settle_some
from qwen3vl_compat.accounts.wishes import (
    Closing,
    LedgerUnavailable,
    Opening,
    Settled,
    Whole,
    Wish,
    nobodys,
    still_wanted,
    tried,
)

__all__ = ["Ledger", "LedgerUnavailable", "Settled"]

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH = 200
"""Most requests opened or closed in one transaction."""
_KNOWN_POTS = 10_000
_BEATS = 4
"""Signs of life in the length of a lease."""
NOTED_S = 0.1
"""A checkpoint waits no longer to be written."""
_AGAIN_S = 0.05
"""Before a transaction that failed is tried again."""


Reply = tuple[Wish[Any], Any]
Closed = Callable[[Entry, Outcome], None]
Notes = dict[str, tuple[int | None, Counts]]
"""Checkpoints by the request's id: when it started, and how far it is."""


class Ledger:
    """One process's way to the ledger. Its methods are called from one asyncio loop, once `start` has returned."""

    def __init__(
        self,
        engine: Engine,
        *,
        lease: float = 10,
        wait: float = 5,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        closed: Closed = lambda entry, outcome: None,
    ) -> None:
        """`lease` is how long a process may be silent, `wait` how long a call waits for the database, in seconds.

        `closed` is told of every row that this process has closed, from any thread.
        """
        self._closed = closed
        self._engine, self._writer = engine, writing(engine)
        self._wait, self._clock, self._ticks = wait, clock, ticks
        self.owner = secrets.token_hex(8)
        self.heartbeat = Heartbeat(self.owner, lease, ticks)
        self._every = lease / _BEATS
        self._next_beat = 0.0
        self._known: set[Pot] = set()
        self._wishes: list[Wish[Any]] = []
        self._notes: Notes = {}
        self._change = threading.Condition()
        self._closing = self._lost = self._restless = False
        self._wakes_at = 0.0
        self._end_at = self._noted_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    async def start(self) -> None:
        """Begin to write; raises LedgerUnavailable when the database cannot be written at all."""
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._beat)
        except SQLAlchemyError as error:
            raise LedgerUnavailable("the ledger cannot be written") from error
        self._thread.start()

    async def close(self) -> None:
        """Write what is still to be written, as far as the database lets, and end."""
        with self._change:
            self._closing, self._end_at = True, self._ticks() + self._wait
            self._change.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 2 * self._wait)

    @property
    def writable(self) -> bool:
        """Whether the thread that writes is there, and could write when it last tried."""
        return self._thread.is_alive() and not self._lost

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self._clock() * 1000)

    # ---------------------------------------------------------------------------------------------------- one request

    async def open(self, entry: Entry, budgets: Sequence[Budget] = ()) -> tuple[Left, ...]:
        """Begin a row and reserve its money, durably; returns what the budgets have left then.

        Raises OverBudget or LedgerUnavailable, and then there is no row, or will be none that costs anything.
        """
        future: asyncio.Future[tuple[Left, ...]] = asyncio.get_running_loop().create_future()
        wish = Opening(entry, future, budgets)
        self._ask(wish)
        try:
            return await self._in_time(wish)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._close_for_nobody(entry)  # opened in the very moment in which the caller left
            raise

    async def book(self, entry: Entry, outcome: Outcome, budgets: Sequence[Budget] = ()) -> tuple[Left, ...]:
        """Write the row of a request that is over already, durably, and nothing before; as `open` otherwise.

        A row that is written stays: whoever is told that there is none waits until it is known that there is none.
        """
        future: asyncio.Future[tuple[Left, ...]] = asyncio.get_running_loop().create_future()
        wish = Whole(entry, future, outcome, budgets)
        self._ask(wish)
        return await self._in_time(wish)

    async def _in_time(self, wish: Wish[T]) -> T:
        """What comes of a wish; LedgerUnavailable where that takes too long, and then it is given up."""
        assert self._loop is not None
        assert wish.future is not None
        wish.patience = self._loop.call_later(self._wait, self._lose_patience, wish)
        try:
            return await wish.future
        finally:
            wish.patience.cancel()

    def _lose_patience(self, wish: Wish[Any]) -> None:
        """Give it up, unless it is just being written: what has come of it is soon known."""
        assert self._loop is not None
        with self._change:
            wish.overdue = True
            if not wish.under_way or not self._thread.is_alive():
                wish.give_up()
            else:
                wish.patience = self._loop.call_later(_AGAIN_S, self._lose_patience, wish)

    def note(self, entry: Entry, started_at: int, counts: Counts) -> None:
        """A checkpoint: what is to be paid if this process dies. Of several only the last is written.

        It goes with the next rows, or NOTED_S later at most; if its own is closed by then, not at all.
        """
        with self._change:
            if not self._notes:
                self._noted_at = self._ticks()
                if self._wakes_at > self._noted_at + NOTED_S:
                    self._change.notify()
            self._notes[entry.id] = (started_at, counts)

    async def settle(self, entry: Entry, outcome: Outcome) -> Settled:
        """Close a row, durably, if it is still open; returns how it was closed, here or elsewhere before.

        LedgerUnavailable says that it is not written yet. It will be as soon as it can, as one that failed and costs
        nothing: whoever waited for the answer does not get it.
        """
        future: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        wish = Closing(entry, future, outcome)
        self._ask(wish)
        return await self._in_time(wish)

    def _ask(self, wish: Wish[Any]) -> None:
        if not self._thread.is_alive() or self._closing:
            raise LedgerUnavailable("the ledger is closed")
        with self._change:
            self._wishes.append(wish)
            self._change.notify()

    # ----------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while True:
            with self._change:
                while not (self._wishes or self._closing) and (seconds := self._idle()) > 0:
                    # After rows checkpoints follow, which then need not wake this thread each.
                    seconds = min(seconds, NOTED_S) if self._restless else seconds
                    self._wakes_at = self._ticks() + seconds
                    self._restless &= self._change.wait(seconds)
                self._restless |= bool(self._wishes)
                wishes, self._wishes = self._wishes[:BATCH], self._wishes[BATCH:]
                notes, self._notes = self._notes, {}
            left = self._write([*still_wanted(wishes, self.now_ms())], notes)
            if left is not None:
                with self._change:
                    self._wishes[:0] = left
                    self._notes = notes | self._notes
                time.sleep(_AGAIN_S)
            with self._change:
                over = self._closing and (not (self._wishes or self._notes) or self._ticks() >= self._end_at)
            if over:
                self._leave()
                return

    def _idle(self) -> float:
        """Seconds until there is something to do that nobody waits for: a sign of life, or a checkpoint."""
        at = self._next_beat
        if self._notes:
            at = min(at, self._noted_at + NOTED_S)
        return at - self._ticks()

    def _write(self, wishes: list[Wish[Any]], notes: Notes) -> list[Wish[Any]] | None:
        """Write all in one transaction, or each alone where that fails because of one of them.

        Returns None, or what is to be tried again with the notes, because the database was lost.
        """
        try:
            if self._ticks() >= self._next_beat:
                self._beat()
            if wishes or notes:
                self._answer(self._commit(wishes, notes, joined=True))
        except Exception as error:
            if self._is_lost(error):
                return tried(wishes)
            log.exception("the ledger failed")
            return self._one_by_one(wishes, notes)
        self._is_back()
        return None

    def _one_by_one(self, wishes: list[Wish[Any]], notes: Notes) -> list[Wish[Any]] | None:
        """One of these cannot be written, whatever is tried; the others can."""
        for number, wish in enumerate(wishes):
            try:
                self._answer(self._commit([wish], {}))
            except Exception as error:
                if self._is_lost(error):
                    return tried(wishes[number:])
                log.error("request %s cannot be written to the ledger (%s)", wish.entry.id, type(error).__name__)
                self._answer([(wish, LedgerUnavailable("the ledger cannot take this request"))])
        return None

    def _is_lost(self, error: Exception) -> bool:
        """Whether it is the database that does not answer; the log says so once."""
        if not isinstance(error, SQLAlchemyError) or not is_lost(error):
            return False
        if not self._lost:
            self._lost = True
            log.warning("the ledger cannot be written: %s", str(getattr(error, "orig", error)).partition("\n")[0])
        return True

    def _is_back(self) -> None:
        if self._lost:
            self._lost = False
            log.warning("the ledger can be written again")

    def _commit(self, wishes: list[Wish[Any]], notes: Notes, *, joined: bool = False) -> list[Reply]:
        """Write these; `joined` by what comes until it is this process's turn to write, which they then hold too."""
        taken: list[Wish[Any]] = []
        committing = False
        try:
            with self._writer.begin() as connection:
                if joined:
                    wishes += self._come_meanwhile(BATCH - len(wishes))
                entries = [wish.entry for wish in wishes]
                booking = Booking(connection, self.owner, entries, self._known)
                looked = [wish.entry.id for wish in wishes if isinstance(wish, Closing) or wish.tries]
                states = booking.states(sorted(looked))
                replies, closed = self._book(booking, wishes, states, taken)
                booking.write({name: note for name, note in notes.items() if name not in states})
                committing = True
        except Exception:
            self._leave_alone(taken, committing=committing)
            raise
        for entry, outcome in closed:
            self._closed(entry, outcome)
        if len(self._known) > _KNOWN_POTS:
            self._known.clear()
        self._known.update(booking.pots)
        return replies

    def _come_meanwhile(self, most: int) -> list[Wish[Any]]:
        with self._change:
            come, self._wishes = self._wishes[:most], self._wishes[most:]
        return [*still_wanted(come, self.now_ms())]

    def _book(
        self,
        booking: Booking,
        wishes: Sequence[Wish[Any]],
        states: dict[str, tuple[str, int]],
        taken: list[Wish[Any]],
    ) -> tuple[list[Reply], list[tuple[Entry, Outcome]]]:
        """Book each wish, closings first, beside what is in the ledger; returns the replies, and what is closed then.

        Those that are `taken` nobody gives up from then on.
        """
        replies: list[Reply] = []
        closed: list[tuple[Entry, Outcome]] = []
        for wish in wishes:
            if not isinstance(wish, Closing):
                continue
            self._take(wish, taken)
            found = states.get(wish.entry.id)
            if found is not None and found[0] == "open":
                booking.settle(wish.entry, wish.outcome)
                closed.append((wish.entry, wish.outcome))
                found = states[wish.entry.id] = (wish.outcome.state, wish.outcome.cost)
            elif wish.tries and found == (wish.outcome.state, wish.outcome.cost):
                closed.append((wish.entry, wish.outcome))  # by the commit whose reply was lost
            replies.append((wish, Settled(*(found or ("never opened", 0)))))
        for wish in wishes:
            if isinstance(wish, Closing):
                continue
            if wish.entry.id in states:  # the answer to the first try was lost, not the try
                replies.append((wish, ()))
                if isinstance(wish, Whole):
                    closed.append((wish.entry, wish.outcome))
                continue
            try:
                if isinstance(wish, Opening):
                    left = booking.open(wish.entry, wish.budgets)
                elif isinstance(wish, Whole) and self._take(wish, taken):
                    left = booking.book(wish.entry, wish.outcome, wish.budgets)
                    closed.append((wish.entry, wish.outcome))
                else:  # its time was over before its turn: nobody gets the answer that this would charge for
                    continue
                replies.append((wish, left))
            except OverBudget as refusal:
                replies.append((wish, refusal))
        return replies, closed

    def _take(self, wish: Wish[Any], taken: list[Wish[Any]]) -> bool:
        """Whether a wish is wanted still; nobody gives it up from now on."""
        with self._change:
            late = wish.overdue and isinstance(wish, Whole)
            wish.under_way = not (wish.given_up or late)
            if wish.under_way:
                taken.append(wish)
            return wish.under_way

    def _leave_alone(self, taken: Iterable[Wish[Any]], *, committing: bool) -> None:
        """A transaction failed, so that its wishes may be given up again; while it was `committing` it may be done.

        Then whoever has no row but this one waits on. Of an answer all has gone out but its end, which does not wait.
        """
        with self._change:
            for wish in taken:
                wish.under_way = committing and isinstance(wish, Whole)

    def _answer(self, replies: list[Reply]) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._resolve, replies)

    def _resolve(self, replies: list[Reply]) -> None:
        """In the loop: tell those who wait; a row that was opened for somebody who has given up is closed again."""
        for wish, result in replies:
            if wish.future is None or wish.future.done():
                if isinstance(wish, Opening) and not isinstance(result, Exception):
                    self._close_for_nobody(wish.entry)
            elif isinstance(result, Exception):
                wish.future.set_exception(result)
                wish.future.exception()  # nobody may be left to fetch it
            else:
                wish.future.set_result(result)

    def _close_for_nobody(self, entry: Entry) -> None:
        with suppress(LedgerUnavailable):
            self._ask(Closing(entry, None, nobodys(self.now_ms())))

    # ----------------------------------------------------------------------------------------------------- the others

    def _beat(self) -> None:
        """Say that this process lives, and settle what dead ones have left."""
        self._next_beat = self._ticks() + self._every
        with self._writer.begin() as connection:
            self.heartbeat.beat(connection, self.now_ms())
        for owner in self.heartbeat.dead:
            while self._settle_some_of(owner):
                pass

    def _settle_some_of(self, owner: str) -> bool:
        """Close some rows of a dead process; False when there are none left."""
        with self._writer.begin() as connection:
            closed = settle_some(connection, self.heartbeat, owner, self.now_ms())
        for entry, outcome in closed:
            self._closed(entry, outcome)
        if closed:
            log.warning("%d requests that a dead process left open are settled at their last checkpoint", len(closed))
        return bool(closed)

    def _leave(self) -> None:
        with suppress(SQLAlchemyError), self._writer.begin() as connection:
            self.heartbeat.leave(connection)
