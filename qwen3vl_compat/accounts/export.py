"""Rows of the ledger, and sums of them, as files for other programs: CSV (RFC 4180) and JSON Lines."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
from sqlalchemy import RowMapping

from qwen3vl_compat.accounts.money import Counts, format_amount
from qwen3vl_compat.accounts.tables import ledger

Form = Literal["csv", "jsonl"]
COLUMNS = (*(column.name for column in ledger.columns if column.name != "owner"), "currency")
"""The ledger's own; which process served a request is the server's business."""

_TIMES = ("created_at", "started_at", "ended_at")
_MONEY = ("reserved", "cost")
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""A spreadsheet computes what begins with one of these."""


def export(chunks: Iterable[Sequence[RowMapping]], form: Form, currency: str) -> Iterator[bytes]:
    """A whole file, a piece for each chunk of the ledger's rows; the CSV's first line comes with the first piece."""
    head = csv_line(COLUMNS) if form == "csv" else b""
    for chunk in chunks:
        records = [_record(row, currency) for row in chunk]
        lines = (csv_line(record.values()) if form == "csv" else json_line(record) for record in records)
        yield head + b"".join(lines)
        head = b""
    if head:
        yield head


def csv_line(values: Iterable[object]) -> bytes:
    """One line of a CSV file; a text that a spreadsheet would compute gets an apostrophe in front."""
    line = io.StringIO()
    csv.writer(line).writerow([_cell(value) for value in values])
    return line.getvalue().encode()


def json_line(record: Mapping[str, object]) -> bytes:
    """One line of a JSON Lines file."""
    return msgspec.json.encode(record) + b"\n"


def fields(requests: int, counts: Counts, cost: int, currency: str) -> dict[str, object]:
    """Sums under the names that people and programs read them by; `cost` is in nano-units."""
    return {
        "requests": requests,
        "input_tokens": counts.tokens_in,
        "input_text_tokens": counts.text_in,
        "input_vision_tokens": counts.vision_in,
        "input_cached_tokens": counts.cached_in,
        "output_tokens": counts.out,
        "reasoning_tokens": counts.reasoning,
        "pictures": counts.pictures,
        "cost": format_amount(cost),
        "currency": currency,
    }


def _record(row: RowMapping, currency: str) -> dict[str, object]:
    """A row with its times in ISO 8601 and its money as decimal numbers in text."""
    record: dict[str, object] = {name: row[name] for name in COLUMNS[:-1]}
    record |= {name: _moment(row[name]) for name in _TIMES if row[name] is not None}
    return record | {name: format_amount(row[name]) for name in _MONEY} | {"currency": currency}


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
