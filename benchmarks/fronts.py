"""What front processes cost and bring, with the scripted engine: `python -m benchmarks.fronts`.

The client shares the machine's cores with the server. `wrk` is needed for the rate of small requests.
"""

import argparse
import http.client
import json
import platform
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.serving import Served, serving

WORKERS = (0, 1, 2)
WARM = 30
"""Requests before the first that counts."""
STREAMS = 16
PAUSE = 0.02
"""Seconds a token of the streams."""
WRK = """
wrk.method = "POST"
wrk.body = [[%s]]
wrk.headers["authorization"] = "Bearer %s"
wrk.headers["content-type"] = "application/json"
"""
TINY = json.dumps({"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})


def head(served: Served) -> dict[str, str]:
    return {"authorization": f"Bearer {served.key}", "content-type": "application/json"}


def connected(served: Served) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)


def latencies(servers: Sequence[Served], count: int) -> list[dict[str, object]]:
    """Milliseconds of tiny requests on one connection to each server, in turn, so that a busy time is nobody's."""
    connections = [connected(served) for served in servers]
    took: list[list[float]] = [[] for _ in servers]
    for number in range(count + WARM):
        for served, connection, times in zip(servers, connections, took, strict=True):
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", TINY, head(served))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            if number >= WARM:
                times.append((time.perf_counter() - began) * 1000)
    for connection in connections:
        connection.close()
    return [
        {"p50 ms": round(statistics.median(times), 2), "p90 ms": round(statistics.quantiles(times, n=10)[8], 2)}
        for times in took
    ]


def rate(served: Served, seconds: float) -> dict[str, object]:
    """Tiny requests a second over 16 connections, and how many of these each front has."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK % (TINY, served.key))
        script.flush()
        fronts, engine = processes(served)
        every = {*fronts, engine}
        before = used(every)
        command = ["wrk", "-t1", "-c16", f"-d{seconds:g}", "-s", script.name, served.url + "/v1/chat/completions"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            time.sleep(seconds / 2)
            shares = [len(established(each)) for each in fronts]
            told = running.communicate()[0]
    found = re.search(r"(\d+) requests in ([\d.]+)s", told)
    assert found is not None
    assert "Non-2xx" not in told, told
    spent = (used(every) - before) / int(found[1])
    return {
        "requests/s": round(int(found[1]) / float(found[2])),
        "connections": " + ".join(map(str, shares)),
        "CPU ms/request": round(spent * 1000, 2),
    }


def established(process: psutil.Process) -> list[object]:
    return [each for each in process.net_connections() if each.status == "ESTABLISHED"]


def processes(served: Served) -> tuple[list[psutil.Process], psutil.Process]:
    """Those that take requests, and the one with the engine."""
    engine = psutil.Process(served.process.pid)
    fronts = [each for each in engine.children() if "qwen3vl_compat.server.front" in each.cmdline()]
    return fronts or [engine], engine


def used(processes: Iterable[psutil.Process]) -> float:
    return sum(each.cpu_times().user + each.cpu_times().system for each in processes)


def streams(served: Served, words: int) -> dict[str, object]:
    """Processor time of each streamed token, microseconds."""

    def one() -> None:
        connection = connected(served)
        body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": f"count to {words}"}], "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), head(served))
        answer = connection.getresponse()
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()

    fronts, engine = processes(served)
    before = used(fronts), used([engine])
    threads = [threading.Thread(target=one) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tokens = STREAMS * words
    front, own = ((now - then) / tokens * 1e6 for now, then in zip((used(fronts), used([engine])), before, strict=True))
    alone = fronts == [engine]
    return {"CPU us/token": round(own if alone else front + own), "of it the engine's process": round(own)}


@contextmanager
def all_of(folder: Path, pause: float) -> Iterator[list[Served]]:
    """A server for each number of workers."""
    environment = {
        "QWEN3VL_MODEL__ENGINE": "scripted",
        "QWEN3VL_MODEL__PAUSE": str(pause),
        "QWEN3VL_CACHE__MEMORY": "0",
        "QWEN3VL_LOG__LEVEL": "warning",
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                serving(folder / f"{pause}-{workers}", "--workers", str(workers), environment=environment)
            )
            for workers in WORKERS
        ]


def measured(folder: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    def in_turn(measure: Callable[[Served], dict[str, object]], servers: Sequence[Served]) -> list[dict[str, object]]:
        found = [[measure(served) for served in servers] for _ in range(options.rounds)]
        return [medians(rows) for rows in zip(*found, strict=True)]

    with all_of(folder, 0) as servers:
        first = latencies(servers, options.requests)
        second = in_turn(lambda served: rate(served, options.seconds), servers)
    with all_of(folder, PAUSE) as servers:
        third = in_turn(lambda served: streams(served, options.words), servers)
    return [
        {"workers": workers} | one | two | three
        for workers, one, two, three in zip(WORKERS, first, second, third, strict=True)
    ]


def medians(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """Of the numbers of several rounds; of what is none, the last."""
    numbers = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: values[-1] if isinstance(values[0], str) else statistics.median(values)  # type: ignore[type-var]
        for name, values in numbers.items()
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each server in turn; medians are told")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--words", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), options)
    print(f"{platform.machine()}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}; {STREAMS} streams")
    print("\n| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
