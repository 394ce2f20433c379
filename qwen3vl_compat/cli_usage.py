"""The command `qwen3vl-compat usage`: what was used and spent, as a table or for other programs."""

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Engine

from qwen3vl_compat.accounts.export import csv_line, fields, json_line
from qwen3vl_compat.accounts.keys import UnknownTenant
from qwen3vl_compat.accounts.money import Counts, format_amount
from qwen3vl_compat.accounts.tables import COUNTS
from qwen3vl_compat.accounts.usage import GROUPS, Bucket, Open, Query, Usage
from qwen3vl_compat.settings import Settings

USUAL_DAYS, MOST_DAYS = 30, 36_500
_EPOCH = date(1970, 1, 1)

Sums = dict[tuple[str, ...], Counter[str]]
"""What a line is about (a day, a tenant ...), and its sums by the ledger's names."""


def add_usage(
    commands: Any, settings_of: Callable[[Namespace], Settings], database_of: Callable[[Settings], Engine]
) -> ArgumentParser:
    """Add the command to an argparse parser's subparsers."""
    usage: ArgumentParser = commands.add_parser("usage", help="print what was used and spent, by UTC days")
    usage.add_argument("--tenant", help="one tenant's alone")
    usage.add_argument("--days", type=int, help=f"so many days, today among them (default: {USUAL_DAYS})")
    usage.add_argument("--from", dest="first", metavar="2026-11-01", help="the first day")
    usage.add_argument("--to", dest="last", metavar="2026-11-30", help="the last day (default: today)")
    usage.add_argument("--by", default="day", help="a line for each: day, tenant, key, model, cache, with commas")
    usage.add_argument("--format", choices=("table", "csv", "jsonl"), default="table")
    usage.set_defaults(run=partial(_print, settings_of, database_of))
    return usage


def _print(
    settings_of: Callable[[Namespace], Settings], database_of: Callable[[Settings], Engine], options: Namespace
) -> None:
    first, last = _days(options, datetime.now(UTC).date())
    by = _by(options.by)
    query = Query(
        start=(first - _EPOCH).days * 86_400,
        end=((last - _EPOCH).days + 1) * 86_400,
        tenant=options.tenant,
        group_by=tuple(group for group in GROUPS if group in by),
    )
    settings = settings_of(options)
    usage = Usage(database_of(settings))
    if options.tenant is not None and not usage.knows(options.tenant):
        raise UnknownTenant(options.tenant)
    sums, currency = _sums(usage.buckets(query), by), settings.ledger.currency
    if options.format == "table":
        print("\n".join(_table(sums, by, currency)))
        print(_about(first, last, usage.open(query), currency))
        return
    for line in _lines(sums, by, currency, options.format):
        sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _days(options: Namespace, today: date) -> tuple[date, date]:
    """The first and the last day asked for."""
    if options.days is not None and (options.first or options.last):
        raise ValueError("--days is given instead of --from and --to, not beside them.")
    last = _date("--to", options.last) if options.last else today
    count = USUAL_DAYS if options.days is None else options.days
    if not 1 <= count <= MOST_DAYS:
        raise ValueError(f"--days is a number from 1 to {MOST_DAYS}.")
    first = _date("--from", options.first) if options.first else max(_EPOCH, last - timedelta(days=count - 1))
    if not 0 <= (last - first).days < MOST_DAYS:
        raise ValueError(f"--from is a day before --to, and at most {MOST_DAYS} days before.")
    return first, last


def _date(flag: str, text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if not _EPOCH <= day < date.max:
        raise ValueError(f"{flag} is a day as 2026-11-26; {text!r} is none.")
    return day


def _by(text: str) -> tuple[str, ...]:
    """What a line is for, in the order of the columns."""
    named = text.split(",")
    known = ("day", *GROUPS)
    if not set(named) <= set(known):
        raise ValueError(f"--by takes {', '.join(known)}, with commas between them; not {text!r}.")
    return tuple(name for name in known if name in named)


def _sums(buckets: Iterable[Bucket], by: Sequence[str]) -> Sums:
    found: Sums = {}
    for bucket in buckets:
        day = f"{datetime.fromtimestamp(bucket.start, UTC):%Y-%m-%d}"
        for result in bucket.results:
            about = {"day": day} | {name: getattr(result, name) for name in GROUPS}
            line = found.setdefault(tuple(about[name] or "" for name in by), Counter())
            line.update(requests=result.requests, cost=result.cost, **msgspec.structs.asdict(result.counts))
    return dict(sorted(found.items()))


def _fields(sums: Counter[str], currency: str) -> dict[str, object]:
    counts = Counts(**{name: sums[name] for name in COUNTS})
    return fields(sums["requests"], counts, sums["cost"], currency)


def _lines(sums: Sums, by: Sequence[str], currency: str, form: str) -> Iterator[bytes]:
    if form == "csv":
        yield csv_line([*by, *_fields(Counter(), currency)])
    for about, line in sums.items():
        record = dict(zip(by, about, strict=True)) | _fields(line, currency)
        yield csv_line(record.values()) if form == "csv" else json_line(record)


def _table(sums: Sums, by: Sequence[str], currency: str) -> Iterator[str]:
    """Lines of even columns: words to the left, numbers to the right, and the totals below."""
    total = sum(sums.values(), Counter[str]())
    heads = [*by, "requests", *(name.replace("_", " ") for name in COUNTS), currency]
    lines = [[*about, *_numbers(line)] for about, line in sums.items()]
    lines.append([*("total" if place == 0 else "" for place in range(len(by))), *_numbers(total)])
    widths = [max(len(line[place]) for line in [heads, *lines]) for place in range(len(heads))]
    rule = ["-" * width for width in widths]
    for line in [heads, rule, *lines[:-1], rule, lines[-1]]:
        cells = zip(line, widths, strict=True)
        padded = (
            cell.ljust(width) if place < len(by) else cell.rjust(width) for place, (cell, width) in enumerate(cells)
        )
        yield "  ".join(padded).rstrip()


def _numbers(sums: Counter[str]) -> list[str]:
    return [*(f"{sums[name]:,}" for name in ("requests", *COUNTS)), format_amount(sums["cost"])]


def _about(first: date, last: date, under_way: Open, currency: str) -> str:
    said = f"\nFrom {first} to {last}, in UTC days."
    if under_way.requests:
        reserved = f"{format_amount(under_way.reserved)} {currency}"
        said += f" Not among it: {under_way.requests} under way, with {reserved} reserved."
    return said
