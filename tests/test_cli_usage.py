"""`qwen3vl-compat usage` prints what the ledger holds."""

import csv
import io
import json
import time
from pathlib import Path

import pytest

from qwen3vl_compat import cli
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.money import NANO
from tests.accounts.rows import day_of, record, row

NOON = 1_700_049_600_000
"""2023-11-15."""
DAY = 86_400_000
RANGE = ("--from", "2023-11-10", "--to", "2023-11-16")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    engine = open_database(tmp_path / "state")
    record(
        engine,
        [
            row(1, NOON, cost=NANO, out=12_345),
            row(2, NOON + DAY, model="=small"),
            row(3, NOON + DAY, tenant="other", key="B" * 12, cost=3 * NANO),
            row(4, NOON, state="open", reserved=NANO // 2),
            row(5, NOON + 2 * DAY),
            row(6, int(time.time() * 1000), tenant="now", cost=4 * NANO),
        ],
    )
    engine.dispose()
    return tmp_path / "state"


def run(state: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    cli.main(["usage", *words, "--state-dir", str(state)])
    return capsys.readouterr().out


def test_a_table_has_its_totals(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state, capsys, *RANGE).splitlines() == [
        "day         requests  text in  vision in  cached in     out  reasoning  pictures          USD",
        "----------  --------  -------  ---------  ---------  ------  ---------  --------  -----------",
        "2023-11-15         1       10          5          3  12,345          2         1         1.00",
        "2023-11-16         2       20         10          6      14          4         2  3.000000025",
        "----------  --------  -------  ---------  ---------  ------  ---------  --------  -----------",
        "total              3       30         15          9  12,359          6         3  4.000000025",
        "",
        "From 2023-11-10 to 2023-11-16, in UTC days. Not among it: 1 under way, with 0.50 USD reserved.",
    ]


def test_lines_are_for_what_is_asked(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = list(csv.DictReader(io.StringIO(run(state, capsys, *RANGE, "--by", "model,tenant", "--format", "csv"))))
    assert [(each["tenant"], each["model"], each["requests"], each["cost"]) for each in read] == [
        ("acme", "'=small", "1", "0.000000025"),
        ("acme", "qwen3-vl", "1", "1.00"),
        ("other", "qwen3-vl", "1", "3.00"),
    ]
    lines = run(state, capsys, *RANGE, "--tenant", "other", "--by", "day,key", "--format", "jsonl").splitlines()
    assert [(each["day"], each["key"], each["input_tokens"]) for each in map(json.loads, lines)] == [
        ("2023-11-16", "B" * 12, 18)
    ]


def test_the_last_days_end_with_today(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--days", "2")):
        (line,) = map(json.loads, run(state, capsys, *words, "--by", "tenant", "--format", "jsonl").splitlines())
        assert (line["tenant"], line["cost"]) == ("now", "4.00")
    today = day_of(int(time.time() * 1000))
    assert f"From {today} to {today}," in run(state, capsys, "--days", "1")


def test_nothing_is_a_table_too(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "total         0" in run(state, capsys, "--from", "2023-01-01", "--to", "2023-01-31")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--tenant", "nobody"), "nobody"),
        (("--by", "colour"), "--by"),
        (("--by", ""), "--by"),
        (("--days", "0"), "--days"),
        (("--days", "-1"), "--days"),
        (("--days", "9" * 30), "--days"),
        (("--days", "3", "--to", "2023-11-16"), "--days"),
        (("--from", "yesterday"), "--from"),
        (("--from", "2023-11-31"), "--from"),
        (("--from", "0001-01-01"), "--from"),
        (("--to", "9999-12-31"), "--to"),
        (("--from", "2023-11-16", "--to", "2023-11-15"), "--from"),
        (("--from", "1970-01-01", "--to", "9999-12-30"), "--from"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(
    state: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], named: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(state, capsys, *words)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert named in said
    assert "Traceback" not in said
