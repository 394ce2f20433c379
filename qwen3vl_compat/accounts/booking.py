"""What one transaction of the ledger writes: rows opened, brought up to date and closed, with the sums that go along.

Statements are for many rows at once, so that a transaction costs about the same for one request as for a hundred. Rows
of `spending` are locked before any other and in order, so that processes on one PostgreSQL never wait in a circle.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, bindparam, insert, select, text, tuple_, update

from qwen3vl_compat.accounts.money import Counts, Price
from qwen3vl_compat.accounts.tables import COUNTS, ledger, spending
from qwen3vl_compat.messages import Cached

State = Literal["final", "aborted", "interrupted"]
Pot = tuple[str, str]
"""Whose money in which period, as `spending` names it."""

_ENDS = ("state", "finish", "started_at", "ended_at", "cost", "moderation")
_SUMS = ("requests", *COUNTS, "cost")
_ADD_DAILY = text(
    f"INSERT INTO daily (day, tenant, key, model, {', '.join(_SUMS)}) "  # noqa: S608 -- names of columns
    f"VALUES (:day, :tenant, :key, :model, {', '.join(f':{name}' for name in _SUMS)}) "
    "ON CONFLICT (day, tenant, key, model) DO UPDATE SET "
    + ", ".join(f"{name} = daily.{name} + excluded.{name}" for name in _SUMS)
)
_ADD_POT = text(
    "INSERT INTO spending (scope, period, reserved, spent) VALUES (:scope, :period, 0, 0) "
    "ON CONFLICT (scope, period) DO NOTHING"
)
_CHANGE_POT = (
    update(spending)
    .where(spending.c.scope == bindparam("of"), spending.c.period == bindparam("during"))
    .values(reserved=spending.c.reserved + bindparam("reserved_more"), spent=spending.c.spent + bindparam("spent_more"))
)
_THIS_IF_OPEN = (ledger.c.id == bindparam("row")) & (ledger.c.state == "open")
_NOTE = update(ledger).where(_THIS_IF_OPEN)


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


def period_of(created_at: int, period: Literal["day", "month"]) -> str:
    """The UTC day or month of a moment, as the tables write it."""
    day = datetime.fromtimestamp(created_at / 1000, UTC).date().isoformat()
    return day if period == "day" else day[:7]


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
        if new := [{"scope": scope, "period": period} for scope, period in pots if (scope, period) not in known]:
            connection.execute(_ADD_POT, new)
        self.pots = pots
        self._taken = self._locked(pots) if pots else {}

    def _locked(self, pots: Sequence[Pot]) -> dict[Pot, int]:
        name = tuple_(spending.c.scope, spending.c.period)
        query = select(spending).where(name.in_(pots)).order_by(spending.c.scope, spending.c.period)
        return {
            (row.scope, row.period): row.reserved + row.spent
            for row in self._connection.execute(query.with_for_update())
        }

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """The state and cost of rows that are there; nobody else changes them until the end."""
        if not ids:
            return {}
        query = select(ledger.c.id, ledger.c.state, ledger.c.cost).where(ledger.c.id.in_(ids)).order_by(ledger.c.id)
        return {row.id: (row.state, row.cost) for row in self._connection.execute(query.with_for_update())}

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
        execute = self._connection.execute
        if self._opened:
            execute(insert(ledger), [_opened(entry, self._owner) for entry in self._opened])
        if self._booked:
            execute(insert(ledger), [_booked(entry, outcome, self._owner) for entry, outcome in self._booked])
        if notes := [
            {"row": name, "started_at": started_at, **msgspec.structs.asdict(counts)}
            for name, (started_at, counts) in sorted(noted.items())
        ]:
            execute(_NOTE.values({name: bindparam(name) for name in ("started_at", *COUNTS)}), notes)
        if self._closed:
            closed = [_closed(entry, outcome) for entry, outcome in sorted(self._closed, key=lambda one: one[0].id)]
            names = [name for name in closed[0] if name != "row"]
            execute(_NOTE.values({name: bindparam(name) for name in names}), closed)
        if over := self._booked + self._closed:
            execute(_ADD_DAILY, _sums(over))
        if changes := [
            {"of": scope, "during": period, "reserved_more": reserved, "spent_more": spent}
            for (scope, period), (reserved, spent) in sorted(self._changes.items())
            if reserved or spent
        ]:
            execute(_CHANGE_POT, changes)


def _opened(entry: Entry, owner: str) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(entry, name) for name in Entry.__struct_fields__}
    return row | {"state": "open", "owner": owner, "price": entry.price.id if entry.price else None}


def _closed(entry: Entry, outcome: Outcome) -> dict[str, object]:
    row = {name: getattr(outcome, name) for name in _ENDS}
    return {"row": entry.id, **row, **msgspec.structs.asdict(outcome.counts)}


def _booked(entry: Entry, outcome: Outcome, owner: str) -> dict[str, object]:
    closed = _closed(entry, outcome)
    del closed["row"]
    return _opened(entry, owner) | closed


def _sums(closed: Iterable[tuple[Entry, Outcome]]) -> list[dict[str, object]]:
    """Rows for `daily`, one for each day, tenant, key and model, in order."""
    sums: dict[tuple[str, str, str, str], list[int]] = defaultdict(lambda: [0] * len(_SUMS))
    for entry, outcome in closed:
        added = (1, *(getattr(outcome.counts, name) for name in COUNTS), outcome.cost)
        row = sums[period_of(entry.created_at, "day"), entry.tenant, entry.key, entry.model]
        row[:] = [one + other for one, other in zip(row, added, strict=True)]
    names = ("day", "tenant", "key", "model", *_SUMS)
    return [dict(zip(names, (*key, *row), strict=True)) for key, row in sorted(sums.items())]
