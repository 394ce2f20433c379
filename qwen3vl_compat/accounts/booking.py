"""What one transaction of the ledger writes: rows opened, brought up to date and closed, with the sums that go along.

Statements are for many rows at once, so that a transaction costs about the same for one request as for a hundred. Rows
of `spending` are locked before any other and in order, so that processes on one PostgreSQL never wait in a circle.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from operator import add, attrgetter
from typing import Literal

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, bindparam, literal_column, update

from qwen3vl_compat.accounts.money import Counts, Price
from qwen3vl_compat.accounts.statement import Statement, Values, locked
from qwen3vl_compat.accounts.tables import COUNTS, ledger
from qwen3vl_compat.messages import Cached

State = Literal["final", "aborted", "interrupted"]
Pot = tuple[str, str]
"""Whose money in which period, as `spending` names it."""

_ENDS = ("state", "finish", "started_at", "ended_at", "cost", "moderation")
_NOTED, _ENDED = ("started_at", *COUNTS), (*_ENDS, *COUNTS)
_SUMS = ("requests", *COUNTS, "cost")
_ADD_DAILY = Values(
    f"INSERT INTO daily (day, tenant, key, model, cache, {', '.join(_SUMS)}) VALUES ",  # noqa: S608 -- columns
    5 + len(_SUMS),
    " ON CONFLICT (day, tenant, key, model, cache) DO UPDATE SET "
    + ", ".join(f"{name} = daily.{name} + excluded.{name}" for name in _SUMS),
)
_ADD_POT = Values(
    "INSERT INTO spending (scope, period, reserved, spent) VALUES ", 4, " ON CONFLICT (scope, period) DO NOTHING"
)
_CHANGE_POT = Values(
    "UPDATE spending SET reserved = reserved + more.column3, spent = spent + more.column4 FROM (VALUES ",
    4,
    ") AS more WHERE scope = more.column1 AND period = more.column2",
)
_THIS_IF_OPEN = (ledger.c.id == bindparam("row")) & (ledger.c.state == literal_column("'open'"))
_NOTE = Statement(update(ledger).where(_THIS_IF_OPEN).values({name: bindparam(name) for name in _NOTED}))
_CLOSE = Statement(update(ledger).where(_THIS_IF_OPEN).values({name: bindparam(name) for name in _ENDED}))


class Budget(Struct, frozen=True, kw_only=True):
    """Most money that a scope may have reserved and spent together in a UTC day or month; nano-units."""

    scope: str
    period: Literal["day", "month"]
    limit: int


class Entry(Struct, frozen=True, kw_only=True):
    """A request as its row begins. `reserved_out` is the most tokens it can make, `reserved` the most it can cost."""

    id: str
    tenant: str
    key: str
    model: str
    wire: str
    stream: bool
    created_at: int
    reserved_out: int
    reserved: int
    price: Price | None
    cache: Cached = "off"

    def cost(self, counts: Counts) -> int:
        """What so much costs."""
        if self.price is None:
            return 0
        return (self.price.stored() if self.cache == "hit" else self.price).cost(counts)


class Outcome(Struct, frozen=True, kw_only=True):
    """How a request ended, and what of it is paid for."""

    state: State
    finish: str
    ended_at: int
    started_at: int | None = None
    counts: Counts = Counts()
    cost: int = 0
    moderation: str = ""
    """What moderators had to say of it."""


class Left(Struct, frozen=True, kw_only=True):
    """What a budget has left."""

    budget: Budget
    amount: int


class OverBudget(Exception):
    """A request that could cost more than a budget has left."""

    def __init__(self, left: Left) -> None:
        super().__init__(f"{left.amount} nano-units are left of the {left.budget.period}'s {left.budget.limit}")
        self.left = left


_OF_ENTRY = tuple(name for name in Entry.__struct_fields__ if name != "price")
_BEGUN = (*_OF_ENTRY, "price", "owner", "state")
_BOOKED = (*_BEGUN, *_ENDED[1:])
_OPEN, _BOOK = (
    Values(f"INSERT INTO ledger ({', '.join(columns)}) VALUES ", len(columns))  # noqa: S608 -- names of columns
    for columns in (_BEGUN, _BOOKED)
)
_entry_values, _end_values, _count_values = attrgetter(*_OF_ENTRY), attrgetter(*_ENDS), attrgetter(*COUNTS)


def period_of(created_at: int, period: Literal["day", "month"]) -> str:
    """The UTC day or month of a moment, as the tables write it."""
    day = _day(created_at // 86_400_000)
    return day if period == "day" else day[:7]


@lru_cache(64)
def _day(number: int) -> str:
    """The so manieth day since 1970."""
    return (date(1970, 1, 1) + timedelta(number)).isoformat()


def pots_of(entry: Entry) -> list[Pot]:
    """Where an entry's money counts."""
    day = period_of(entry.created_at, "day")
    scopes = [f"tenant:{entry.tenant}"] + ([f"key:{entry.key}"] if entry.key else [])
    return [(scope, period) for scope in scopes for period in (day, day[:7])]


class Booking:
    """One transaction. Call `settle` before `open`, so that what is given back can be taken again, and `write` last."""

    def __init__(self, connection: Connection, owner: str, entries: Iterable[Entry], known: set[Pot]) -> None:
        """Locks the money of all `entries`; `known` are pots whose rows are there already."""
        self._connection, self._owner = connection, owner
        self._changes: dict[Pot, list[int]] = defaultdict(lambda: [0, 0])
        self._opened: list[Entry] = []
        self._booked: list[tuple[Entry, Outcome]] = []
        self._closed: list[tuple[Entry, Outcome]] = []
        pots = sorted({pot for entry in entries for pot in pots_of(entry)})
        if new := [(*pot, 0, 0) for pot in pots if pot not in known]:
            _ADD_POT.run(connection, new)
        self.pots = pots
        self._taken = self._locked(pots) if pots else {}

    def _locked(self, pots: Sequence[Pot]) -> dict[Pot, int]:
        rows = locked(self._connection, "scope, period, reserved + spent", "spending", "scope, period", pots)
        return {(scope, period): taken for scope, period, taken in rows}

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """The state and cost of rows that are there; nobody else changes them until the end."""
        if not ids:
            return {}
        rows = locked(self._connection, "id, state, cost", "ledger", "id", [(each,) for each in ids])
        return {name: (state, cost) for name, state, cost in rows}

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """Close a row that `states` has told is open."""
        self._closed.append((entry, outcome))
        for pot in pots_of(entry):
            self._change(pot, -entry.reserved, outcome.cost)

    def open(self, entry: Entry, budgets: Sequence[Budget]) -> tuple[Left, ...]:
        """Begin a row and reserve its money; returns what is left then. Raises OverBudget and has done nothing."""
        left = self._afforded(entry, budgets, entry.reserved)
        self._opened.append(entry)
        for pot in pots_of(entry):
            self._change(pot, entry.reserved, 0)
        return left

    def book(self, entry: Entry, outcome: Outcome, budgets: Sequence[Budget]) -> tuple[Left, ...]:
        """Begin and close a row at once; returns what is left then. Raises OverBudget and has done nothing."""
        left = self._afforded(entry, budgets, outcome.cost)
        self._booked.append((entry, outcome))
        for pot in pots_of(entry):
            self._change(pot, 0, outcome.cost)
        return left

    def _afforded(self, entry: Entry, budgets: Sequence[Budget], amount: int) -> tuple[Left, ...]:
        left = [self._left(entry, budget) for budget in budgets]
        for each in left:
            if each.amount < amount:
                raise OverBudget(each)
        return tuple(Left(budget=each.budget, amount=each.amount - amount) for each in left)

    def _left(self, entry: Entry, budget: Budget) -> Left:
        pot = (budget.scope, period_of(entry.created_at, budget.period))
        return Left(budget=budget, amount=budget.limit - self._taken[pot])

    def _change(self, pot: Pot, reserved: int, spent: int) -> None:
        change = self._changes[pot]
        change[0] += reserved
        change[1] += spent
        self._taken[pot] += reserved + spent

    def write(self, noted: Mapping[str, tuple[int | None, Counts]]) -> None:
        """Write it all, and the counts of open rows: by id, when they started and how far they are."""
        connection = self._connection
        if self._opened:
            _OPEN.run(connection, [_opened(entry, self._owner) for entry in self._opened])
        if self._booked:
            _BOOK.run(connection, [_booked(entry, outcome, self._owner) for entry, outcome in self._booked])
        if notes := [
            {"row": name, "started_at": started_at, **msgspec.structs.asdict(counts)}
            for name, (started_at, counts) in sorted(noted.items())
        ]:
            _NOTE.run(connection, notes)
        if self._closed:
            in_order = sorted(self._closed, key=lambda one: one[0].id)
            _CLOSE.run(connection, [_closed(entry, outcome) for entry, outcome in in_order])
        if over := self._booked + self._closed:
            _ADD_DAILY.run(connection, _sums(over))
        if changes := [
            (*pot, reserved, spent) for pot, (reserved, spent) in sorted(self._changes.items()) if reserved or spent
        ]:
            _CHANGE_POT.run(connection, changes)


def _begun(entry: Entry, owner: str) -> tuple[object, ...]:
    return (*_entry_values(entry), entry.price.id if entry.price else None, owner)


def _opened(entry: Entry, owner: str) -> tuple[object, ...]:
    return (*_begun(entry, owner), "open")


def _booked(entry: Entry, outcome: Outcome, owner: str) -> tuple[object, ...]:
    return (*_begun(entry, owner), *_end_values(outcome), *_count_values(outcome.counts))


def _closed(entry: Entry, outcome: Outcome) -> dict[str, object]:
    row = {name: getattr(outcome, name) for name in _ENDS}
    return {"row": entry.id, **row, **msgspec.structs.asdict(outcome.counts)}


def _sums(closed: Iterable[tuple[Entry, Outcome]]) -> list[tuple[object, ...]]:
    """Rows for `daily`, one for each day, tenant, key, model and part of the cache, in order."""
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * len(_SUMS))
    for entry, outcome in closed:
        added = (1, *_count_values(outcome.counts), outcome.cost)
        row = sums[period_of(entry.created_at, "day"), entry.tenant, entry.key, entry.model, entry.cache]
        row[:] = map(add, row, added)
    return [(*key, *row) for key, row in sorted(sums.items())]
