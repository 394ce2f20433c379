"""This server beside `transformers serve`, same checkpoint, same threads, one run: `python -m benchmarks.engine`.

Streaming clients in a closed loop, 64 new tokens each; text, a fresh 448x448 picture each time, one picture repeated;
1, 8 and 32 at once. Prints tokens per second and the time to the first token, and writes
JSON (`--json`) and a plot (`--plot`). The peer's environment
is made once by `python -m benchmarks.peers transformers`; without it only this server is measured.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from PIL import Image

from benchmarks.checkpoint import write_checkpoint
from benchmarks.peers import PEERS
from benchmarks.plot import draw

ROOT = Path(__file__).parents[1]
TOKENS = 64
Body = dict[str, Any]
Runs = Callable[[bool], list[tuple[int, int]]]


def picture(rng: Random) -> str:
    """A 448x448 photograph of nothing, as a data: URL."""
    coarse = Image.frombytes("RGB", (28, 28), rng.randbytes(28 * 28 * 3)).resize((448, 448), Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    coarse.save(stored, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode("ascii")


def workloads() -> dict[str, Callable[[int], list[Body]]]:
    """Name -> the user's content for the n-th request."""
    rng, kept = Random(1), picture(Random(2))

    def said(number: int) -> Body:
        return {"type": "text", "text": f"Request {number}: tell me what you see and what follows from it."}

    def shown(url: str) -> Body:
        return {"type": "image_url", "image_url": {"url": url}}

    return {
        "text": lambda number: [said(number)],
        "fresh picture": lambda number: [shown(picture(rng)), said(number)],
        "same picture": lambda number: [shown(kept), said(number)],
    }


class Asker:
    """A client that costs the machine next to nothing: one kept-alive connection, answers read line by line."""

    def __init__(self, url: str, key: str, model: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._key, self._model = str(parts.hostname), parts.port or 80, key, model
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, content: list[Body], more: Body) -> tuple[float, list[float]]:
        """Seconds to the first token, and the seconds between tokens; `more` goes into the request."""
        asked = {"model": self._model, "stream": True, "temperature": 0, "max_tokens": TOKENS,
                 "messages": [{"role": "user", "content": content}]}  # fmt: skip
        body = json.dumps(asked | more).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"authorization: Bearer {self._key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._streams = reader, writer = self._streams or await asyncio.open_connection(self._host, self._port)
        began, times = time.perf_counter(), list[float]()
        writer.write(head.encode() + body)
        while (line := await reader.readline()) != b"0\r\n":
            assert line, "the connection ended in the middle of an answer"
            if b'"content":"' in line and b'"content":""' not in line:
                times.append(time.perf_counter())
        await reader.readline()
        assert times, "an answer without text"
        return times[0] - began, [after - before for before, after in pairwise(times)]

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()


async def loop(
    where: tuple[str, str, str],
    content: Callable[[int], list[Body]],
    at_once: int,
    count: int,
    more: Body | None = None,
) -> Body:
    """`count` requests by `at_once` clients to (url, key, model); every answer has TOKENS tokens."""
    numbers = iter(range(count))
    firsts, gaps = list[float](), list[float]()

    async def work() -> None:
        asker = Asker(*where)
        for number in numbers:
            first, between = await asker.ask(content(number + 1000 * at_once), more or {})
            firsts.append(first)
            gaps.extend(between)
        asker.close()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    took = time.perf_counter() - began
    firsts.sort()
    return {
        "tokens/s": round(count * TOKENS / took, 1),
        "first token p50, ms": round(1000 * statistics.median(firsts)),
        "first token p95, ms": round(1000 * firsts[int(0.95 * (len(firsts) - 1))]),
        "between tokens, ms": round(1000 * statistics.median(gaps), 1) if gaps else None,
    }


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started(command: list[str], url: str, path: str, log: Path) -> Iterator[None]:
    """Run a server until its `path` answers 200, and end it afterwards."""
    environment = os.environ | {"OMP_NUM_THREADS": str(psutil.cpu_count()), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment, cwd=ROOT)
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
            try:
                if httpx.get(url + path).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def ours(checkpoint: Path, work: Path, port: int) -> list[str]:
    """The command that starts this server."""
    command = [sys.executable, "-m", "qwen3vl_compat", "serve", "--port", str(port)]
    return [*command, "--state-dir", str(work / "state"), "--model", str(checkpoint)]


def new_key(work: Path) -> str:
    """A key for this server."""
    command = [sys.executable, "-m", "qwen3vl_compat", "keys", "create", "--state-dir", str(work / "state")]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def wait_until_compiled(url: str) -> None:
    """The decode step is compiled behind the running server, the first time; a server that cannot says so."""
    while "qwen3vl_compiling 1" in httpx.get(url + "/metrics").text:
        time.sleep(1)


def theirs(checkpoint: Path, port: int) -> list[str]:
    """The command that starts the peer."""
    program = str(PEERS / "transformers" / "bin" / "transformers")
    return [program, "serve", str(checkpoint), "--device", "cpu", "--dtype", "bfloat16", "--continuous-batching",
            "--port", str(port)]  # fmt: skip


def measure(name: str, checkpoint: Path, work: Path, runs: Runs) -> tuple[dict[str, Body], list[str]]:
    """One server, started, warmed and measured."""
    port, own = free_port(), name == "qwen3vl-compat"
    url = f"http://127.0.0.1:{port}"
    command = ours(checkpoint, work, port) if own else theirs(checkpoint, port)
    os.environ |= {"QWEN3VL_MODEL__DTYPE": "bfloat16", "QWEN3VL_SERVER__OPEN_METRICS": "true"}
    log, figures = work / f"{name}.log", dict[str, Body]()
    with started(command, url, "/readyz" if own else "/health", log):
        key = new_key(work) if own else "none"
        if own:
            wait_until_compiled(url)
        where = (url, key, "qwen3-vl" if own else str(checkpoint))
        for kind, content in workloads().items():
            asyncio.run(loop(where, content, 1, 1))
            for at_once, count in runs(own):
                figures[f"{kind}, {at_once} at once"] = asyncio.run(loop(where, content, at_once, count))
    return figures, command


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / ".build" / "benchmark")
    parser.add_argument("--rounds", type=int, default=3, help="the order of the two is turned round each time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="an .svg or .png")
    options = parser.parse_args()
    checkpoint = options.work / "checkpoint"
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint)

    def runs(own: bool) -> list[tuple[int, int]]:
        # The peer answers one request after another, so 8 at once say all that 32 would, in a quarter of the time.
        return [(1, 6), (8, 32), (32, 96)] if own else [(1, 6), (8, 16)]

    names = ["qwen3vl-compat"] + (["transformers serve"] if (PEERS / "transformers").exists() else [])
    rounds: list[dict[str, dict[str, Body]]] = []
    commands: dict[str, list[str]] = {}
    for number in range(options.rounds):
        found = dict[str, dict[str, Body]]()
        for name in names if number % 2 == 0 else names[::-1]:
            found[name], commands[name] = measure(name, checkpoint, options.work, runs)
        rounds.append(found)
    print(f"{platform.machine()}, {psutil.cpu_count()} cores; medians of {options.rounds} rounds\n")
    columns = ["tokens/s", "first token p50, ms", "first token p95, ms", "between tokens, ms"]
    print(f"| workload | server | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for workload in rounds[0][names[0]]:
        for name in names:
            each = [found[name][workload] for found in rounds if workload in found[name]]
            if each:
                values = [str(statistics.median(one[column] for one in each)) for column in columns]
                print(f"| {workload} | {name} | {' | '.join(values)} |")
    if options.json:
        options.json.write_text(json.dumps({"commands": commands, "rounds": rounds}, indent=2))
    if options.plot:
        draw(rounds, options.plot)


if __name__ == "__main__":
    main()
