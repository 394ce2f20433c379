"""Sums and exports say what the ledger says, to the last unit."""

import csv
import io
import json
from collections import Counter
from itertools import count, pairwise
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, insert, update

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.export import COLUMNS, csv_line, export
from qwen3vl_compat.accounts.money import Counts, parse_amount
from qwen3vl_compat.accounts.tables import COUNTS, ledger, spending
from qwen3vl_compat.accounts.usage import (
    GROUPS,
    WIDTHS,
    Bucket,
    Group,
    Open,
    Query,
    Result,
    Selection,
    Spending,
    TooManyResults,
    Usage,
)
from tests.accounts.conftest import Clock
from tests.accounts.rows import Row, record, row

DAY = 86_400
BASE = 19_675 * DAY
"""2023-11-14, at midnight."""
KEYS = ("A" * 12, "B" * 12, "C" * 12)


@pytest.fixture
def usage(engine: Engine, clock: Clock) -> Usage:
    return Usage(engine, clock)


def at(day: float, **changes: Any) -> Row:
    return row(next(numbers), int((BASE + day * DAY) * 1000), **changes)


numbers = count(1)


def days(usage: Usage, first: float, last: float, **changes: Any) -> tuple[Bucket, ...]:
    return usage.buckets(Query(start=int(BASE + first * DAY), end=int(BASE + last * DAY), **changes))


# ---------------------------------------------------------------------------------------------------------------- sums


def test_a_day_is_told_with_all_that_is_counted(engine: Engine, usage: Usage) -> None:
    record(engine, [at(0.5), at(0.6, key=KEYS[1], cost=100), at(1.0), at(0.7, state="open")])
    counts = Counts(text_in=20, vision_in=10, cached_in=6, out=14, reasoning=4, pictures=2)
    summed = Result(tenant=None, key=None, model=None, cache=None, requests=2, counts=counts, cost=125)
    assert days(usage, 0, 1) == (Bucket(BASE, BASE + DAY, (summed,)),)


def test_an_empty_day_is_there_without_results(engine: Engine, usage: Usage) -> None:
    record(engine, [at(0.5), at(2.5)])
    assert [len(bucket.results) for bucket in days(usage, -1, 4)] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("width", list(WIDTHS))
def test_the_start_is_inside_and_the_end_is_not(engine: Engine, usage: Usage, width: Any) -> None:
    record(engine, [at(0), at(1), row(next(numbers), (BASE + DAY) * 1000 - 1)])
    for start, end, requests in ((0, DAY, 2), (1, DAY, 1), (0, DAY + 1, 3), (DAY, DAY + 1, 1), (1, DAY - 1, 0)):
        found = usage.buckets(Query(start=BASE + start, end=BASE + end, width=width))
        assert sum(result.requests for bucket in found for result in bucket.results) == requests
        assert (found[0].start, found[-1].end) == (BASE + start, BASE + end)


def test_whole_days_are_read_from_their_sums_alone(engine: Engine, usage: Usage) -> None:
    record(engine, [at(each / 10) for each in range(40)])
    read: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: read.append(call[2]))
    days(usage, 0, 4)
    assert [text for text in read if "FROM ledger" in text] == []
    assert any("FROM daily" in text for text in read)


def test_one_tenant_sees_nothing_of_another(engine: Engine, usage: Usage) -> None:
    record(engine, [at(0.5), at(0.5, tenant="other", key=KEYS[1]), at(0.6, tenant="other", state="open")])
    for found in (days(usage, 0, 1, tenant="acme"), days(usage, 0.1, 0.9, tenant="acme")):
        assert [result.requests for result in found[0].results] == [1]
    assert days(usage, 0, 1, tenant="acme", key=KEYS[1])[0].results == ()
    mine = Selection(start=BASE, end=BASE + DAY, tenant="acme")
    assert usage.open(mine) == Open(0, 0)
    assert [each["tenant"] for chunk in usage.rows(mine) for each in chunk] == ["acme"]


def test_what_is_open_is_told_apart(engine: Engine, usage: Usage) -> None:
    record(engine, [at(0.5), at(0.5, state="open", reserved=5), at(0.6, state="open", reserved=6, key=KEYS[1])])
    assert usage.open(Selection(start=BASE, end=BASE + DAY)) == Open(2, 11)
    assert usage.open(Selection(start=BASE, end=BASE + DAY, key=KEYS[1])) == Open(1, 6)
    assert usage.open(Selection(start=BASE + DAY, end=BASE + 2 * DAY)) == Open(0, 0)


def test_more_results_than_asked_for_are_refused(engine: Engine, usage: Usage) -> None:
    record(engine, [at(day, key=key) for day in (0.5, 1.5, 2.5) for key in KEYS])
    query = Query(start=BASE + DAY // 3, end=BASE + 3 * DAY - DAY // 3, group_by=("key",))
    assert sum(len(bucket.results) for bucket in usage.buckets(query, most=9)) == 9
    for most in (2, 3, 5, 6, 8):
        with pytest.raises(TooManyResults):
            usage.buckets(query, most)


stretches = count()
LONG = 4 * DAY

made = st.fixed_dictionaries(
    {
        "at": st.one_of(
            st.integers(0, LONG * 1000 - 1),
            st.builds(lambda hour, off: max(0, hour * 3_600_000 + off), st.integers(0, 95), st.integers(-1, 1)),
        ),
        "tenant": st.sampled_from(["acme", "beta"]),
        "key": st.sampled_from(KEYS),
        "model": st.sampled_from(["qwen3-vl", "=other"]),
        "state": st.sampled_from(["open", "final", "aborted", "interrupted"]),
        **{name: st.integers(0, 10**6) for name in COUNTS if name != "reasoning"},
        "reserved": st.integers(0, 10**15),
        "cost": st.integers(0, 10**15),
        "cache": st.sampled_from(["off", "miss", "hit"]),
    }
)
moments = st.one_of(st.integers(0, LONG), st.integers(0, 96).map(lambda hour: hour * 3600))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rows=st.lists(made, max_size=30))
def test_sums_are_those_of_the_ledger(engine: Engine, data: st.DataObject, rows: list[Row]) -> None:
    """Whatever the range, the width, the groups and the filters. Each example has four days to itself."""
    base = BASE + next(stretches) * LONG
    rows = [
        row(next(numbers), base * 1000 + each.pop("at"), **each, reasoning=each["out"] // 2)
        for each in map(dict[str, Any], rows)
    ]
    record(engine, rows)
    start, end = sorted(data.draw(st.tuples(moments, moments).filter(lambda pair: pair[0] != pair[1])))
    query = Query(
        start=base + start,
        end=base + end,
        tenant=data.draw(st.sampled_from([None, "acme", "beta", "nobody"])),
        key=data.draw(st.sampled_from([None, *KEYS])),
        model=data.draw(st.sampled_from([None, "qwen3-vl"])),
        width=data.draw(st.sampled_from(["1h", "1d"])),
        group_by=tuple(data.draw(st.lists(st.sampled_from(get_args(Group)), unique=True))),
    )
    usage = Usage(engine)
    buckets = usage.buckets(query)
    assert flat(buckets) == summed(rows, query)
    for before, after in pairwise(buckets):
        assert before.end == after.start
        assert after.start % WIDTHS[query.width] == 0
    assert all(list(bucket.results) == sorted(bucket.results, key=repr_of) for bucket in buckets)
    opened = [each for each in rows if each["state"] == "open" and chosen(each, query)]
    assert usage.open(query) == Open(len(opened), sum(each["reserved"] for each in opened))
    exported = [each["id"] for chunk in usage.rows(query, chunk=7) for each in chunk]
    closed = [each for each in rows if each["state"] != "open" and chosen(each, query)]
    assert exported == [each["id"] for each in sorted(closed, key=lambda each: (each["created_at"], each["id"]))]


def repr_of(result: Result) -> tuple[str, ...]:
    return result.tenant or "", result.key or "", result.model or "", result.cache or ""


def chosen(each: Row, query: Selection) -> bool:
    wanted = {"tenant": query.tenant, "key": query.key, "model": query.model}
    whose = all(value in (None, each[name]) for name, value in wanted.items())
    return whose and query.start * 1000 <= each["created_at"] < query.end * 1000


Sums = dict[tuple[Any, ...], Counter[str]]


def summed(rows: list[Row], query: Query) -> Sums:
    """By a plain loop over the rows: (start of the bucket, tenant, key, model, cache) to its sums."""
    sums: Sums = {}
    width = WIDTHS[query.width]
    for each in rows:
        if each["state"] != "open" and chosen(each, query):
            start = max(query.start, each["created_at"] // 1000 // width * width)
            group = (each[name] if name in query.group_by else None for name in GROUPS)
            counts = {name: each[name] for name in (*COUNTS, "cost")}
            sums.setdefault((start, *group), Counter()).update(requests=1, **counts)
    return sums


def flat(buckets: tuple[Bucket, ...]) -> Sums:
    found: Sums = {}
    for bucket in buckets:
        for result in bucket.results:
            counts = {name: getattr(result.counts, name) for name in COUNTS}
            group = bucket.start, *(getattr(result, name) for name in GROUPS)
            assert group not in found
            found[group] = Counter(requests=result.requests, cost=result.cost, **counts)
    return found


# ------------------------------------------------------------------------------------------------------------- exports


def everything() -> Selection:
    return Selection(start=BASE, end=BASE + 30 * DAY)


@pytest.mark.parametrize("alike", [True, False])
def test_rows_that_come_and_close_meanwhile_disturb_no_export(engine: Engine, usage: Usage, alike: bool) -> None:
    """Also where many were admitted in one millisecond."""
    rows = [at(1.0 if alike else 1.0 + each / 100) for each in range(10)]
    opened = at(1.05, state="open")
    record(engine, [*rows, opened])
    seen: list[str] = []
    for number, chunk in enumerate(usage.rows(everything(), chunk=3)):
        seen += [each["id"] for each in chunk]
        if number == 1:
            record(engine, [at(0.5), at(1.0), at(9.0)])
            with writing(engine).begin() as connection:
                over = {"state": "final", "ended_at": opened["created_at"] + 1}
                connection.execute(update(ledger).where(ledger.c.id == opened["id"]).values(over))
    assert len(seen) == len(set(seen))
    assert {each["id"] for each in rows} <= set(seen)


def test_between_two_chunks_no_connection_is_held(engine: Engine, usage: Usage) -> None:
    record(engine, [at(1.0) for _ in range(10)])
    held = 0

    def taken(*_: Any) -> None:
        nonlocal held
        held += 1

    def back(*_: Any) -> None:
        nonlocal held
        held -= 1

    event.listen(engine, "checkout", taken)
    event.listen(engine, "checkin", back)
    for chunk in usage.rows(everything(), chunk=3):
        assert chunk
        assert held == 0


def exported(usage: Usage, form: Any, currency: str = "EUR") -> bytes:
    return b"".join(export(usage.rows(everything()), form, currency))


def test_a_csv_file_has_a_line_for_each_row(engine: Engine, usage: Usage) -> None:
    made = at(1.5, model='a "b", c\nd', stream=True, cost=1_500_000_000, started_at=None)
    record(engine, [made, at(1.6)])
    text = exported(usage, "csv").decode()
    head, *lines = csv.reader(io.StringIO(text, newline=""))
    assert text.endswith("\r\n")
    assert tuple(head) == COLUMNS
    assert len(lines) == 2
    assert dict(zip(head, lines[0], strict=True)) == {
        "id": made["id"],
        "tenant": "acme",
        "key": KEYS[0],
        "model": 'a "b", c\nd',
        "wire": "openai",
        "stream": "true",
        "state": "final",
        "finish": "stop",
        "created_at": "2023-11-15T12:00:00.000Z",
        "started_at": "",
        "ended_at": "2023-11-15T12:00:00.500Z",
        "text_in": "10",
        "vision_in": "5",
        "cached_in": "3",
        "out": "7",
        "reasoning": "2",
        "pictures": "1",
        "reserved_out": "100",
        "price": "",
        "reserved": "0.000001",
        "cost": "1.50",
        "cache": "off",
        "moderation": "",
        "currency": "EUR",
    }


def test_a_jsonl_file_has_an_object_for_each_row(engine: Engine, usage: Usage) -> None:
    record(engine, [at(1.5, model="=x"), at(1.6, stream=True, cost=10**18)])
    first, second = (json.loads(line) for line in exported(usage, "jsonl").splitlines())
    assert tuple(first) == COLUMNS
    assert (first["model"], first["stream"], first["price"], first["cost"]) == ("=x", False, None, "0.000000025")
    assert (second["stream"], second["cost"], second["out"]) == (True, "1000000000.00", 7)


def test_an_empty_file_has_its_head_alone(usage: Usage) -> None:
    assert exported(usage, "csv") == csv_line(COLUMNS)
    assert exported(usage, "jsonl") == b""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "＝1", "-"])
def test_no_text_is_a_formula_to_a_spreadsheet(engine: Engine, usage: Usage, text: str) -> None:
    record(engine, [at(1.5, model=text)])
    read = list(csv.DictReader(io.StringIO(exported(usage, "csv").decode(), newline="")))
    assert [each["model"] for each in read] == [f"'{text}"]


def test_an_export_is_the_sums_in_long(engine: Engine, usage: Usage) -> None:
    record(engine, [at(each / 7, cost=each * 10**9 + 1) for each in range(100)])
    read = csv.DictReader(io.StringIO(exported(usage, "csv").decode(), newline=""))
    total = sum(parse_amount(each["cost"]) for each in read)
    assert total == sum(result.cost for bucket in days(usage, 0, 30) for result in bucket.results)


# ------------------------------------------------------------------------------------------------------------ standing


def spent(engine: Engine, scope: str, period: str, amount: int, reserved: int) -> None:
    with writing(engine).begin() as connection:
        connection.execute(insert(spending).values(scope=scope, period=period, spent=amount, reserved=reserved))


def test_the_standing_is_that_of_this_day_and_month(engine: Engine, usage: Usage, clock: Clock) -> None:
    clock.now = BASE + DAY - 1
    for scope, period, amount in (
        (f"key:{KEYS[0]}", "2023-11-14", 1), ("tenant:acme", "2023-11-14", 2), ("tenant:acme", "2023-11", 3),
        (f"key:{KEYS[0]}", "2023-11-13", 9), ("tenant:other", "2023-11", 9), (f"key:{KEYS[1]}", "2023-11", 9),
    ):  # fmt: skip
        spent(engine, scope, period, amount, amount * 10)
    assert usage.standing("acme", KEYS[0]) == {
        ("key", "day"): Spending("2023-11-14", 1, 10),
        ("key", "month"): Spending("2023-11"),
        ("tenant", "day"): Spending("2023-11-14", 2, 20),
        ("tenant", "month"): Spending("2023-11", 3, 30),
    }
    clock.now += 1
    assert usage.standing("acme", KEYS[0])["tenant", "day"] == Spending("2023-11-15")


def test_only_tenants_there_are_are_known(engine: Engine, usage: Usage) -> None:
    record(engine, [at(0)])
    assert [usage.knows(tenant) for tenant in ("acme", "other", "' OR 1=1 --")] == [True, False, False]
