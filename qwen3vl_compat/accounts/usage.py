"""What was used and spent, read from the ledger and its sums for people to look at. Nothing here writes.

Of the ledger only rows that have left `open` are summed and shown: those still open are told of apart, by `open`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Engine,
    RowMapping,
    Select,
    Table,
    and_,
    func,
    literal_column,
    or_,
    select,
)

from qwen3vl_compat.accounts.money import Counts
from qwen3vl_compat.accounts.tables import COUNTS, daily, ledger, spending, tenants

Width = Literal["1h", "1d"]
Group = Literal["tenant", "key", "model", "cache"]
GROUPS: tuple[Group, ...] = ("tenant", "key", "model", "cache")
Whose = Literal["key", "tenant"]
Period = Literal["day", "month"]
WIDTHS: Mapping[Width, int] = {"1h": 3600, "1d": 86_400}
"""Seconds of a bucket. Hours and days are those of UTC."""
DAY = WIDTHS["1d"]
CHUNK = 1000
"""Rows read at once for an export."""


class TooManyResults(ValueError):
    """The answer would be longer than asked for."""


class Selection(Struct, frozen=True, kw_only=True):
    """Requests admitted from `start` until just before `end` (seconds since 1970), None being anybody's and any."""

    start: int
    end: int
    tenant: str | None = None
    key: str | None = None
    model: str | None = None


class Query(Selection, frozen=True, kw_only=True):
    """What is to be summed, over which stretches of time, and what is kept apart."""

    width: Width = "1d"
    group_by: tuple[Group, ...] = ()


class Result(Struct, frozen=True, kw_only=True):
    """Sums over requests of a tenant, key, model and part of the cache, or of all where it is None.

    `cost` is in nano-units.
    """

    tenant: str | None
    key: str | None
    model: str | None
    cache: str | None
    requests: int
    counts: Counts
    cost: int


class Bucket(Struct, frozen=True):
    """What was used from `start` until before `end` (seconds since 1970): one result for each group, sorted."""

    start: int
    end: int
    results: tuple[Result, ...]


class Open(Struct, frozen=True):
    """Requests under way, and the nano-units set apart for them."""

    requests: int
    reserved: int


class Spending(Struct, frozen=True):
    """Nano-units in a UTC day (2026-11-26) or month (2026-11): of requests that are over, and of those under way."""

    period: str
    spent: int = 0
    reserved: int = 0


class Usage:
    """The usage of all tenants of one database. Calls are short and synchronous, and may come from any thread."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._engine, self._clock = engine, clock

    def knows(self, tenant: str) -> bool:
        """Whether there is such a tenant."""
        with self._engine.connect() as connection:
            return connection.execute(select(tenants.c.id).where(tenants.c.id == tenant)).first() is not None

    def buckets(self, query: Query, most: int | None = None) -> tuple[Bucket, ...]:
        """Every hour or day of the time asked for, oldest first, empty ones too; the first and last may be cut.

        Raises TooManyResults beyond `most` results.
        """
        width, left = WIDTHS[query.width], most
        found: dict[int, list[Result]] = {start: [] for start in range(query.start // width * width, query.end, width)}
        with self._engine.connect() as connection:
            for part in _parts(query):
                rows = connection.execute(part if left is None else part.limit(left + 1)).mappings().all()
                if left is not None and len(rows) > left:
                    raise TooManyResults
                left = None if left is None else left - len(rows)
                for row in rows:
                    found[_start(row["bucket"], width)].append(_result(row, query))
        return tuple(
            Bucket(max(start, query.start), min(start + width, query.end), tuple(sorted(results, key=_order)))
            for start, results in found.items()
        )

    def open(self, selection: Selection) -> Open:
        """What is under way of it."""
        sums = select(func.count(), func.coalesce(func.sum(ledger.c.reserved), 0))
        query = sums.where(ledger.c.state == "open", _within(selection), *_whose(selection, ledger))
        with self._engine.connect() as connection:
            requests, reserved = connection.execute(query).one()
        return Open(requests, int(reserved))

    def rows(self, selection: Selection, chunk: int = CHUNK) -> Iterator[Sequence[RowMapping]]:
        """Rows of the ledger in the order of (created_at, id), some at a time, each chunk read in a moment of its own.

        Nothing is held between two chunks. A row that was there when this began comes exactly once.
        """
        columns, at = ledger.c, selection.start * 1000
        query = select(ledger).where(columns.state != "open", _within(selection), *_whose(selection, ledger))
        query = query.order_by(columns.created_at, columns.id).limit(chunk)
        last = ""
        while True:
            beyond = and_(columns.created_at >= at, or_(columns.created_at > at, columns.id > last))
            with self._engine.connect() as connection:
                rows = connection.execute(query.where(beyond)).mappings().all()
            if rows:
                yield rows
            if len(rows) < chunk:
                return
            at, last = rows[-1]["created_at"], rows[-1]["id"]

    def used(self, scope: str, kind: str, since: int) -> int:
        """Requests or pictures of a scope (`tenant:<id>`, `key:<public>`) admitted since then (milliseconds)."""
        column = {"tenant": ledger.c.tenant, "key": ledger.c.key}.get(scope.partition(":")[0])
        if column is None:
            return 0
        amount = func.count() if kind == "requests" else func.coalesce(func.sum(ledger.c.pictures), 0)
        query = select(amount).where(column == scope.partition(":")[2], ledger.c.created_at >= since)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def standing(self, tenant: str, key: str) -> Mapping[tuple[Whose, Period], Spending]:
        """What a key and its tenant have spent and reserved in this day and this month: all four are there."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        scopes: dict[Whose, str] = {"key": f"key:{key}", "tenant": f"tenant:{tenant}"}
        periods: dict[Period, str] = {"day": f"{now:%Y-%m-%d}", "month": f"{now:%Y-%m}"}
        kept = select(spending).where(spending.c.scope.in_(scopes.values()), spending.c.period.in_(periods.values()))
        with self._engine.connect() as connection:
            rows = connection.execute(kept).mappings().all()
        noted = {(row["scope"], row["period"]): Spending(row["period"], row["spent"], row["reserved"]) for row in rows}
        return {
            (whose, name): noted.get((scope, period)) or Spending(period)
            for whose, scope in scopes.items()
            for name, period in periods.items()
        }


def _parts(query: Query) -> Iterator[Select[Any]]:
    """The sums asked for, in reads that have no bucket in common: whole days are summed already, others are not."""
    first, last = -(-query.start // DAY) * DAY, query.end // DAY * DAY
    if query.width != "1d" or first >= last:
        yield _of_ledger(query)
        return
    if query.start < first:
        yield _of_ledger(msgspec.structs.replace(query, end=first))
    days = daily.c.day >= _day(first), daily.c.day < _day(last)
    yield _sums(query, daily, daily.c.day, func.sum(daily.c.requests)).where(*days)
    if last < query.end:
        yield _of_ledger(msgspec.structs.replace(query, start=last))


def _of_ledger(query: Query) -> Select[Any]:
    # the width is spelled out: two parameters would be two different expressions to PostgreSQL
    bucket = ledger.c.created_at // literal_column(str(WIDTHS[query.width] * 1000), BigInteger)
    return _sums(query, ledger, bucket, func.count()).where(ledger.c.state != "open", _within(query))


def _sums(query: Query, table: Table, bucket: ColumnElement[Any], requests: ColumnElement[Any]) -> Select[Any]:
    groups = [table.c[name] for name in query.group_by]
    sums = [func.sum(table.c[name]).label(name) for name in (*COUNTS, "cost")]
    columns = bucket.label("bucket"), *groups, requests.label("requests"), *sums
    return select(*columns).where(*_whose(query, table)).group_by(bucket, *groups)


def _within(selection: Selection) -> ColumnElement[bool]:
    at = ledger.c.created_at
    return and_(at >= selection.start * 1000, at < selection.end * 1000)


def _whose(selection: Selection, table: Table) -> list[ColumnElement[bool]]:
    asked = {"tenant": selection.tenant, "key": selection.key, "model": selection.model}
    return [table.c[name] == value for name, value in asked.items() if value is not None]


def _day(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _start(bucket: int | str, width: int) -> int:
    """When a bucket begins, named by its number since 1970 or by its day."""
    if isinstance(bucket, str):
        return int(datetime.fromisoformat(bucket).replace(tzinfo=UTC).timestamp())
    return bucket * width


def _result(row: RowMapping, query: Query) -> Result:
    """PostgreSQL gives sums of BIGINT as decimal numbers."""
    groups = {name: row[name] if name in query.group_by else None for name in GROUPS}
    return Result(
        **groups,
        requests=int(row["requests"]),
        counts=Counts(**{name: int(row[name]) for name in COUNTS}),
        cost=int(row["cost"]),
    )


def _order(result: Result) -> tuple[str, ...]:
    return tuple([getattr(result, name) or "" for name in GROUPS])
