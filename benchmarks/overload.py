"""What becomes of a server that is asked for more than it can do: `python -m benchmarks.overload`.

A real server with the scripted engine at 8 rows of 50 tokens a second, answers of 20 tokens, a queue of 32, every
policy on and the ledger on disk. First how much it can do, then loads of half to ten times that from a generator that
does not wait for answers, then one tenant that floods five quiet ones, with words and with pictures. `--json` and
`--plot` keep the figures.
"""

import argparse
import asyncio
import base64
import io
import json
import platform
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import psutil
from PIL import Image

from benchmarks.load import Client, Flow, Told, closed_loop, open_loop
from benchmarks.plot import draw_overload
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.cli import main as command_line
from tests.serving import Served, serving

ROWS, PACE, TOKENS, WAITING = 8, 50, 20, 32
LOADS = (0.5, 0.9, 1.0, 1.5, 2.0, 5.0, 10.0)
DEADLINE = 5.0
"""Seconds after which an answer is worth nothing to its client, as it tells the server, each time that it tries."""
WARM = 0.2
"""Share of the time, at its beginning, that is not counted."""
QUIET, FLOOD = 5, 100
"""Quiet tenants, and how many times its fair share the flooding one asks for."""
ENVIRONMENT = {
    "QWEN3VL_MODEL__ENGINE": "scripted",
    "QWEN3VL_MODEL__PAUSE": str(1 / PACE),
    "QWEN3VL_MODEL__MAX_ROWS": str(ROWS),
    "QWEN3VL_MODEL__MAX_WAITING": str(WAITING),
    "QWEN3VL_LIMITS__IP": "1000000/minute",
}
LIMITS = ("--rpm", "1000000", "--tpm", "100000000", "--concurrent", "10000", "--budget", "100000/month")
"""So large that none is reached, and each is counted."""
SAID = "say exactly: " + " ".join(f"word{number}" for number in range(TOKENS))
UNBUSY = {"QWEN3VL_MODEL__PAUSE": "0", "QWEN3VL_MODEL__MAX_ROWS": "256"}
"""Where decoding is all that there can be too much of."""
Figures = dict[str, Any]


class Bench:
    """A running server, its tenants' requests, and what its process takes."""

    def __init__(self, served: Served) -> None:
        parts = urlsplit(served.url)
        self._where = str(parts.hostname), parts.port or 80
        self._served, self._process = served, psutil.Process(served.process.pid)
        self._said("prices", "set", "*", "--text-in", "0.3", "--out", "1.2")
        self._requests: dict[str, bytes] = {}

    def _said(self, *words: str) -> str:
        told = io.StringIO()
        with redirect_stdout(told):
            command_line([*words, "--state-dir", str(self._served.state)])
        return told.getvalue().strip()

    def flow(self, tenant: str, rate: float, content: Any = SAID, *, even: bool = False) -> Flow:
        """So many requests a second of a tenant of its own."""
        if tenant not in self._requests:
            self._said("tenants", "create", tenant)
            key = self._said("keys", "create", "--tenant", tenant, *LIMITS)
            self._requests[tenant] = self._request(key, content)
        return Flow(tenant, self._requests[tenant], rate, even)

    def _request(self, key: str, content: Any) -> bytes:
        asked = {"model": "qwen3-vl", "max_tokens": TOKENS, "messages": [{"role": "user", "content": content}]}
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._where[0]}\r\nauthorization: Bearer {key}\r\n"
            f"x-server-timeout: {DEADLINE}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def _gave_way(self) -> int:
        """How many have been refused that were booked: they had waited, and made room for others."""
        where = f"file:{self._served.state / FILE}?mode=ro"
        with closing(sqlite3.connect(where, uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM ledger WHERE finish = 'refused'").fetchone()[0]

    def run(self, load: Callable[[Client], Any], seconds: float, *, retries: int = 0) -> tuple[list[Told], Figures]:
        """Put a load on the server; what its clients saw, and the figures of all of them together."""

        async def runs() -> tuple[list[Told], Client]:
            client = Client(*self._where, retries=retries)
            try:
                return await load(client), client
            finally:
                client.close()

        gone = self._gave_way()
        before, own, began = self._process.cpu_times(), time.process_time(), time.monotonic()
        told, client = asyncio.run(runs())
        lasted, after = time.monotonic() - began, self._process.cpu_times()
        busy = after.user + after.system - before.user - before.system
        figures = figures_of(told, seconds) | {
            "gave way": self._gave_way() - gone,
            "connections": client.opened,
            "sent again": client.retried,
            "server CPU %": round(100 * busy / lasted),
            "generator CPU %": round(100 * (time.process_time() - own) / lasted),
            "RSS MiB": round(self._process.memory_info().rss / 2**20),
        }
        return told, figures


def figures_of(told: Sequence[Told], seconds: float) -> Figures:
    """Rates a second over the time that counts, and milliseconds."""
    good = [each for each in told if each.status == 200 and each.ended - each.again <= DEADLINE]
    refused = [each for each in told if each.status == 503]
    begin = WARM * seconds
    counted = seconds - begin
    return {
        "offered/s": round(sum(each.due >= begin for each in told) / counted, 1),
        "goodput/s": round(sum(begin <= each.ended < seconds for each in good) / counted, 2),
        "too late": sum(each.status == 200 for each in told) - len(good),
        "refused": len(refused),
        "out of time": sum(each.status == 504 for each in told),
        "other": len(told) - sum(each.status in (200, 503, 504) for each in told),
        **times("answered", [each.ended - each.sent for each in told if each.status == 200]),
        **times("refused", [each.ended - each.sent for each in refused if each.tries == 1]),
        **times("lag", [each.sent - each.due for each in told]),
    }


def times(name: str, took: list[float]) -> Figures:
    """p50 and p99, in milliseconds."""
    took.sort()
    at = [statistics.median(took), took[int(0.99 * (len(took) - 1))]] if took else [None, None]
    told = [None if each is None else round(1000 * each, 1) for each in at]
    return {f"{name} p50 ms": told[0], f"{name} p99 ms": told[1]}


def capacity(bench: Bench, seconds: float) -> list[Figures]:
    """Closed loops: what it does at most, and how fast it says no to those who come back at once."""
    flow, rows = bench.flow("one", 0), list[Figures]()
    for clients in (1, ROWS, 2 * ROWS, 64):
        _, figures = bench.run(lambda client, at_once=clients: closed_loop(client, flow, at_once, seconds), seconds)
        rows.append({"clients": clients} | figures | {"refused/s": round(figures["refused"] / seconds)})
        show(rows[-1])
    return rows


def loads(bench: Bench, most: float, seconds: float) -> list[Figures]:
    """Open loops around what it does at most; the last two with clients that try again, and with as many as it gets."""
    rows: list[Figures] = []
    plans = [(load, 0, seconds) for load in LOADS] + [(10.0, 2, seconds), (50.0, 0, seconds / 2)]
    for load, retries, lasting in plans:
        flows = [bench.flow(name, load * most / 2) for name in ("one", "two")]
        _, figures = bench.run(
            lambda client, flows=flows, lasting=lasting: open_loop(client, flows, lasting), lasting, retries=retries
        )
        rows.append({"load": load, "retries": retries} | figures)
        show(rows[-1])
    return rows


def flood(bench: Bench, most: float, seconds: float) -> list[Figures]:
    """Five tenants at their fair share of the server, alone, and beside one that asks for a hundred times that."""
    share = most / (QUIET + 1)
    quiet = [bench.flow(f"quiet{number}", share, even=True) for number in range(1, QUIET + 1)]
    flooding = bench.flow("flood", FLOOD * share)
    seen: list[list[Told]] = []
    for flows in (quiet, [*quiet, flooding]):
        told, figures = bench.run(lambda client, flows=flows: open_loop(client, flows, seconds), seconds)
        seen.append(told)
        show({"tenants": len(flows)} | figures)
    rows: list[Figures] = []
    for flow in [*quiet, flooding]:
        alone, beside = (figures_of([each for each in told if each.flow == flow.name], seconds) for told in seen)
        row: Figures = {"tenant": flow.name, "offered/s": beside["offered/s"], "alone/s": alone["goodput/s"]}
        row |= {"beside the flood/s": beside["goodput/s"], "refused": beside["refused"]}
        row["share %"] = round(100 * beside["goodput/s"] / alone["goodput/s"]) if alone["goodput/s"] else None
        rows.append(row | {name: beside[name] for name in ("answered p50 ms", "answered p99 ms")})
    return rows


def pictures(seconds: float) -> list[Figures]:
    """One tenant with a picture of 2 Mpx a second, alone, and beside another with 64 of 12 Mpx at once."""
    rows: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), environment=ENVIRONMENT | UNBUSY) as served:
        bench = Bench(served)
        quiet = bench.flow("quiet", 1, shown(1920, 1080), even=True)
        flooding = bench.flow("flood", 0, shown(4032, 3024))

        async def alone(client: Client) -> list[Told]:
            return await open_loop(client, [quiet], seconds)

        async def beside(client: Client) -> list[Told]:
            many = asyncio.create_task(closed_loop(client, flooding, 64, seconds))
            return await alone(client) + await many

        for name, load in (("alone", alone), ("beside a flood of pictures", beside)):
            told, whole = bench.run(load, seconds)
            own = [each for each in told if each.flow == "quiet"]
            rows.append({"a picture a second": name, "answered": sum(each.status == 200 for each in own)})
            rows[-1] |= {"of": len(own)} | times("answered", [each.ended - each.due for each in own])
            rows[-1] |= {"flood answered": sum(each.status == 200 for each in told) - rows[-1]["answered"]}
            rows[-1] |= {each: whole[each] for each in ("server CPU %", "RSS MiB")}
            show(rows[-1])
    return rows


def shown(width: int, height: int) -> list[Figures]:
    """A photograph of nothing, and a question."""
    rng, coarse = Random(width), (width // 16, height // 16)
    made = Image.frombytes("RGB", coarse, rng.randbytes(3 * coarse[0] * coarse[1])).resize((width, height))
    stored = io.BytesIO()
    made.save(stored, "JPEG", quality=85)
    url = "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode("ascii")
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]


def show(row: Figures) -> None:
    """Say what has been found while the rest runs."""
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def table(rows: Sequence[Figures]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join("" if each is None else str(each) for each in row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="an .svg or .png")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    seconds: float = options.seconds
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), environment=ENVIRONMENT) as served:
        bench = Bench(served)
        closed = capacity(bench, seconds / 2)
        most = max(row["goodput/s"] for row in closed)
        found = {"machine": f"{platform.machine()}, {psutil.cpu_count()} cores", "capacity": most, "closed": closed}
        found |= {"open": loads(bench, most, seconds), "flood": flood(bench, most, 1.5 * seconds)}
    found["pictures"] = pictures(seconds)
    print(f"\nat most {most} answers/s\n")
    for name in ("closed", "open", "flood", "pictures"):
        print(table(found[name]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.plot:
        draw_overload(found, options.plot)


if __name__ == "__main__":
    main()
