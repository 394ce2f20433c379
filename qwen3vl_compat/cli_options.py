"""What the commands' options mean: the settings, the database, times, spans and lists; and tables for people."""

import argparse
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.settings import Settings, load_settings

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_config(command: argparse.ArgumentParser) -> None:
    """The options that every command has."""
    command.add_argument("--config", type=Path, help="a TOML file (default: $QWEN3VL_CONFIG, then ./qwen3vl.toml)")
    command.add_argument("--state-dir", dest="server.state_dir", help="where keys and accounts are kept")


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings as these options, the environment and the file have them."""
    flags = {name: value for name, value in vars(options).items() if "." in name}
    return load_settings(options.config, flags)


def database_of(settings: Settings, *, make: bool = False) -> Engine:
    """The database that holds the accounts. Only the server may `make` it: a command that did would hide a mistake."""
    folder = Path(settings.server.state_dir).expanduser()
    return open_database(folder, settings.ledger, make=make)


def parse_span(text: str) -> int:
    """`90s`, `30m`, `24h` or `7d` in seconds, and `0`."""
    if text == "0":
        return 0
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time as 90s, 30m, 24h or 7d")
    return int(found[1]) * _SECONDS[found[2]]


def parse_time(text: str) -> int:
    """A date (its beginning) or time, in UTC unless it says otherwise, or a span from now; milliseconds since 1970."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return (int(datetime.now(UTC).timestamp()) + parse_span(text)) * 1000
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(f"{text!r} is no time as 2027-01-31 or 30d") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * 1000


def parse_end(text: str) -> int | None:
    """As `parse_time`; `never` is None."""
    return None if text == "never" else parse_time(text)


def parse_scope(text: str) -> tuple[str, ...] | None:
    """Names between commas; `all` is None, an empty text none at all."""
    return None if text == "all" else tuple(part.strip() for part in text.split(",") if part.strip())


def parse_limit(text: str) -> int | None:
    """A whole number; `none` is None."""
    if text == "none":
        return None
    if not re.fullmatch(r"[0-9]{1,16}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor none")
    return int(text)


def day_of(milliseconds: int | None) -> str:
    """The UTC day of a time, `-` for none."""
    return "-" if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC).date().isoformat()


def second_of(milliseconds: int) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what is in them; the last one may be of any length."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
