"""What is to be written to the ledger for somebody who waits for it, or for nobody any more."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from msgspec.structs import replace

from qwen3vl_compat.accounts.booking import Budget, Entry, Left, Outcome

T = TypeVar("T")


class Settled(NamedTuple):
    """How a row was closed in the end, and what it cost."""

    state: str
    cost: int


class LedgerUnavailable(Exception):
    """The database cannot be written now."""


class Wish(Generic[T]):
    """Something to be written, and whoever waits for it, if anybody does."""

    def __init__(self, entry: Entry, future: "asyncio.Future[T] | None") -> None:
        self.entry, self.future, self.tries = entry, future, 0
        self.under_way = False
        """Whether it may be written by now, which only the database can tell."""
        self.overdue = False
        """Whether its time is over: a row is not begun any more, unless it is there already."""
        self.patience: asyncio.TimerHandle | None = None

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future is None or self.future.done()

    def give_up(self) -> None:
        """Whoever waits is told that it is not written."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(LedgerUnavailable("the ledger cannot be written now"))


class Opening(Wish[tuple[Left, ...]]):
    """A row to begin, and the money to reserve."""

    def __init__(self, entry: Entry, future: "asyncio.Future[Any]", budgets: Sequence[Budget]) -> None:
        super().__init__(entry, future)
        self.budgets = budgets


class Closing(Wish[Settled]):
    """A row to close."""

    def __init__(self, entry: Entry, future: "asyncio.Future[Any] | None", outcome: Outcome) -> None:
        super().__init__(entry, future)
        self.outcome = outcome

    def give_up(self) -> None:
        """It is closed later, as one that failed."""
        super().give_up()
        self.outcome = replace(self.outcome, state="aborted", finish="failed", cost=0)


class Whole(Wish[tuple[Left, ...]]):
    """The row of a request that is over already."""

    def __init__(
        self, entry: Entry, future: "asyncio.Future[Any]", outcome: Outcome, budgets: Sequence[Budget]
    ) -> None:
        super().__init__(entry, future)
        self.outcome, self.budgets = outcome, budgets


def still_wanted(wishes: Iterable[Wish[Any]], now_ms: int) -> Iterator[Wish[Any]]:
    """All but rows to begin that nobody waits for; what a commit whose reply was lost may have left open is closed."""
    for wish in wishes:
        if isinstance(wish, Closing) or not wish.given_up:
            yield wish
        elif isinstance(wish, Opening) and wish.tries:
            yield Closing(wish.entry, None, nobodys(now_ms))


def tried(wishes: list[Wish[Any]]) -> list[Wish[Any]]:
    """The same, to be written once more: the database may hold them already."""
    for wish in wishes:
        wish.tries += 1
    return wishes


def nobodys(now_ms: int) -> Outcome:
    """The end of a row that was opened for somebody who had given up."""
    return Outcome(state="aborted", finish="gone", ended_at=now_ms)
