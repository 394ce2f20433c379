"""How many requests a second the ledger opens and settles durably: `python -m benchmarks.ledger [--json FILE]`.

Workers in one loop open a row, write a checkpoint and settle it, over and over, each waiting for its own commits as a
request does. The times are of one `settle`, from the call to the durable row. PostgreSQL is one started for this, with
fsync and synchronous_commit on, when Debian's package is there.
"""

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from sqlalchemy import Engine

from qwen3vl_compat.accounts.booking import Budget, Entry, Outcome
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.ledger import Ledger
from qwen3vl_compat.accounts.money import Counts
from qwen3vl_compat.settings import LedgerSettings
from tests.postgres import BINARIES, Server, running

Row = dict[str, object]
TENANTS = 8
KINDS = ("SQLite NORMAL", "SQLite FULL", "PostgreSQL")


async def measured(engine: Engine, name: str, workers: int, seconds: float) -> Row:
    """Settles a second over `seconds`, and how long one takes."""
    keys = Keys(engine)
    for number in range(TENANTS):
        keys.add_tenant(f"t{number}")
    book = Ledger(engine)
    await book.start()
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def work(number: int) -> None:
        tenant, made = f"t{number % TENANTS}", 0
        budget = Budget(scope=f"tenant:{tenant}", period="month", limit=10**17)
        while time.perf_counter() < end:
            made += 1
            entry = Entry(
                id=f"{name}-{number}-{made}", tenant=tenant, key="K" * 12, model="qwen3-vl", wire="openai", stream=True,
                created_at=book.now_ms(), reserved_out=100, reserved=1000, price=None,
            )  # fmt: skip
            await book.open(entry, [budget])
            book.note(entry, entry.created_at, Counts(text_in=20))
            outcome = Outcome(
                state="final", finish="stop", started_at=entry.created_at, ended_at=book.now_ms(),
                counts=Counts(text_in=20, out=50), cost=700,
            )  # fmt: skip
            before = time.perf_counter()
            await book.settle(entry, outcome)
            took.append(time.perf_counter() - before)

    began = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(workers)))
    lasted = time.perf_counter() - began
    await book.close()
    took.sort()
    return {
        "database": name,
        "workers": workers,
        "settles/s": round(len(took) / lasted),
        "p50 ms": round(1000 * statistics.median(took), 1),
        "p99 ms": round(1000 * took[int(len(took) * 0.99)], 1),
    }


@contextmanager
def new_database(kind: str, server: Server | None) -> Iterator[Engine]:
    """A new database of a kind of KINDS."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        settings = LedgerSettings(synchronous="NORMAL" if kind == "SQLite NORMAL" else "FULL")
        if kind == "PostgreSQL":
            assert server is not None
            settings = LedgerSettings(url=server.url(stack.enter_context(server.database())))
        engine = open_database(folder / "state", settings)
        stack.callback(engine.dispose)
        yield engine


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    with running(durable=True) if BINARIES else nullcontext() as server:
        for kind in KINDS if server else KINDS[:2]:
            for workers in (1, 16, 64):
                with new_database(kind, server) as engine:
                    rows.append(asyncio.run(measured(engine, kind, workers, options.seconds)))
                print(rows[-1], flush=True)
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    if options.json:
        options.json.write_text(json.dumps({"machine": platform.platform(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
