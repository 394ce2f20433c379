"""What the way through the policies costs: `python -m benchmarks.gateway [--workers 0 2] [--seconds 8] [--json FILE]`.

wrk drives the server over loopback; Redis, wrk and the server share the machine. Everything is on: API keys, limits of
addresses, keys and tenants, token and money budgets, a list of words that moderates, metrics, a durable row of the
ledger for each answer. 1,000 distinct bodies, each with one of ten keys of ten tenants. The peer is LiteLLM's proxy, if
`python -m benchmarks.peers litellm` has made it: one master key, no database, the same Redis as its cache, as many
processes. The engine is the scripted one; the peer has a backend that answers at once.

After each run the ledger's final rows are counted: what wrk counted, and at most one more for each connection, which
wrk leaves in the middle of an answer.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from sqlalchemy import func, select

from benchmarks.limiter import table
from benchmarks.peers import PEERS
from qwen3vl_compat.accounts.booking import Budget, Entry, Outcome
from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.ledger import Ledger
from qwen3vl_compat.accounts.money import Counts
from qwen3vl_compat.accounts.prices import Prices
from qwen3vl_compat.accounts.tables import ledger
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.events import fold
from qwen3vl_compat.server.app import build_routes, build_service
from qwen3vl_compat.server.exchange import Exchange
from qwen3vl_compat.settings import CacheSettings, LedgerSettings, Quotas, Settings
from qwen3vl_compat.wire import openai_chat
from tests.redis_server import running

Row = dict[str, Any]
BODIES, KEYS = 1000, 10
PATH = "/v1/chat/completions"
TICK = os.sysconf("SC_CLK_TCK")
CONFIG = """
[model]
engine = "scripted"
[limits]
ip = "1000000000/minute"
requests = "1000000000/minute"
tokens = 1000000000000
budget = "900000.00/month"
{redis}
[cache]
{redis}
[ledger]
synchronous = "{synchronous}"
[moderation]
[[moderation.moderators]]
kind = "words"
[moderation.moderators.words]
violence = ["kill them all", "bomb*"]
[log]
level = "warning"
"""
SCRIPT = """
local bodies, keys = {}, {}
for line in io.lines("BODIES") do bodies[#bodies + 1] = line end
for line in io.lines("KEYS") do keys[#keys + 1] = "Bearer " .. line end
local number = 0
local headers = {["content-type"] = "application/json"}
request = function()
  local at = number % #bodies
  headers["authorization"] = keys[at % #keys + 1]
  local body = bodies[at + 1]
  if FRESH then body = body:gsub("NUMBER", STAMP .. number, 1) end
  number = number + 1
  return wrk.format("POST", nil, headers, body)
end
"""


def texts() -> list[str]:
    """Small bodies."""
    return [_chat(f"Say good day for the {number}th time, please.") for number in range(BODIES)]


def pictures() -> list[str]:
    """Bodies with a picture of 64 KB each, of noise, so that all differ and none shrinks."""
    made: list[str] = []
    for number in range(BODIES):
        pixels = np.random.default_rng(number).integers(0, 256, (148, 148, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(held := BytesIO(), "PNG", compress_level=1)
        url = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
        made.append(_chat([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]))
    return made


def _chat(content: object) -> str:
    asked = {"model": "qwen3-vl", "temperature": 0, "messages": [{"role": "user", "content": content}]}
    return json.dumps(asked, separators=(",", ":"))


# ----------------------------------------------------------------------------------------------------------- servers


class Target:
    """A server under load."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], keys: Sequence[str]) -> None:
        self.url, self.process, self.keys = f"http://127.0.0.1:{port}", process, keys

    @property
    def processes(self) -> list[psutil.Process]:
        """It and its children, those that decode pictures aside."""
        found = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return [each for each in found if "media.child" not in " ".join(each.cmdline())]

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self.processes)


@contextmanager
def started(command: list[str], url: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers at `url`, until the end."""
    process = subprocess.Popen(command, **more)
    try:
        for _ in range(1200):
            assert process.poll() is None, f"{command} has ended"
            with suppress(httpx.TransportError):
                if httpx.get(url).status_code == 200:
                    break
            time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for left in psutil.Process().children(recursive=True) if process.poll() is None else ():
            left.kill()


@contextmanager
def ours(folder: Path, redis: str, workers: int, synchronous: str = "NORMAL") -> Iterator[Target]:
    """This project's server, with ten tenants and a key of each."""
    state = folder / "state"
    settings = f'redis = "{redis}"' if redis else ""
    (folder / "qwen3vl.toml").write_text(CONFIG.format(redis=settings, synchronous=synchronous))
    database = open_database(state, LedgerSettings())
    keys, prices = Keys(database), Prices(database)
    keys.ensure_first()
    prices.set("*", text_in="0.40", vision_in="0.60", cached_in="0.10", out="1.20", per_request="0.00001")
    limits = Quotas(requests="1000000000/day", tokens=10**12, budget="900000.00/day")
    secrets = []
    for number in range(KEYS):
        keys.add_tenant(f"tenant{number}")
        secrets.append(keys.create(f"tenant{number}", limits=limits).secret_text)
    database.dispose()
    port = free_port()
    command = [sys.executable, "-m", "qwen3vl_compat", "serve", "--config", str(folder / "qwen3vl.toml")]
    command += ["--port", str(port), "--state-dir", str(state)] + (["--workers", str(workers)] if workers else [])
    with started(command, f"http://127.0.0.1:{port}/readyz", stdout=subprocess.DEVNULL) as process:
        yield Target(port, process, secrets)


@contextmanager
def litellm(folder: Path, redis: str, workers: int) -> Iterator[Target]:
    """LiteLLM's proxy before a backend that answers at once."""
    host, port = re.findall(r"//([^:]+):(\d+)", redis)[0]
    back, front, master = free_port(), free_port(), "sk-a8Kp3xQ9vLm2Zt7Rw5Yc1Nd6"
    (folder / "config.yaml").write_text(
        f"model_list:\n- model_name: qwen3-vl\n  litellm_params:\n    model: openai/qwen3-vl\n"
        f"    api_base: http://127.0.0.1:{back}/v1\n    api_key: none\n"
        f"general_settings:\n  master_key: {master}\n"
        f"litellm_settings:\n  cache: true\n  cache_params:\n    type: redis\n    host: {host}\n    port: {port}\n"
    )
    backend = [
        sys.executable,
        "-m",
        "uvicorn",
        "benchmarks.gateway:instant",
        "--port",
        str(back),
        "--log-level",
        "error",
    ]
    proxy = [str(PEERS / "litellm/bin/litellm"), "--config", str(folder / "config.yaml"), "--port", str(front)]
    proxy += ["--num_workers", str(max(1, workers))]
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        started(backend, f"http://127.0.0.1:{back}/"),
        started(proxy, f"http://127.0.0.1:{front}/health/liveliness", env=env, **quiet) as process,
    ):
        yield Target(front, process, [master])


ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "qwen3-vl",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Good day."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16},
    }
).encode()  # fmt: skip


async def instant(scope: Any, receive: Any, send: Any) -> None:
    """A backend that answers at once."""
    await _reply(scope, receive, send, lambda body: _given(ANSWER))


async def _given(body: bytes) -> bytes:
    return body


ENGINE = ScriptedEngine()


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The scripted engine behind the wire alone: no policy, no framework."""
    await _reply(scope, receive, send, _answered)


async def _answered(body: bytes) -> bytes:
    if not body:
        return b"{}"
    request = openai_chat.decode_request(body, request_id="0" * 24, now=1)
    return openai_chat.encode_completion(request, await fold(ENGINE.generate(request)))


@cache
def _server() -> Any:
    """This server's application, whose chain is the engine alone: no key, no limit, no row, nothing kept."""
    state = Path(tempfile.mkdtemp(dir=Path.cwd() / ".build")) / "state"
    settings = Settings(cache=CacheSettings(memory=0))
    service = build_service(settings, ENGINE, open_accounts(open_database(state), settings))
    service.generate = ENGINE.generate
    return build_routes(service)


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """The same server without policies: its routes, wires and answers."""
    if scope["type"] == "http" and scope["method"] == "POST":
        scope.setdefault("state", {})["exchange"] = Exchange(scope)
        await _server()(scope, receive, send)
    else:
        await instant(scope, receive, send)


async def _reply(scope: Any, receive: Any, send: Any, answer: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    said = await answer(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def uvicorn(name: str, port: int) -> list[str]:
    """The command that serves one of the two."""
    return [sys.executable, "-m", "uvicorn", f"benchmarks.gateway:{name}", "--port", str(port), "--log-level", "error"]


def free_port() -> int:
    """A port nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -------------------------------------------------------------------------------------------------------------- load


def wrk(target: Target, folder: Path, bodies: Sequence[str], connections: int, seconds: float, fresh: str = "") -> Row:
    """Drive a server; latencies in milliseconds. With `fresh` each body is another one."""
    (folder / "bodies").write_text("\n".join(bodies))
    (folder / "keys").write_text("\n".join(target.keys))
    script = SCRIPT.replace("BODIES", str(folder / "bodies")).replace("KEYS", str(folder / "keys"))
    script = script.replace("FRESH", "true" if fresh else "false").replace("STAMP", f'"{fresh}"')
    (folder / "load.lua").write_text(script)
    before = target.cpu()
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", "--latency"]
    told = subprocess.run(
        [*command, "-s", str(folder / "load.lua"), target.url + PATH], capture_output=True, text=True, check=True
    ).stdout
    count = int(_found(r"(\d+) requests in", told))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", told)
    return {
        "connections": connections,
        "requests/s": round(float(_found(r"Requests/sec:\s+([\d.]+)", told))),
        "p50 ms": _milliseconds(_found(r"\n +50% +(\S+)", told)),
        "p99 ms": _milliseconds(_found(r"\n +99% +(\S+)", told)),
        "CPU us/request": round(1e6 * (target.cpu() - before) / max(1, count)),
        "count": count,
        "errors": next(filter(None, bad.groups())) if bad else 0,
    }


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, text
    return found[1]


def _milliseconds(text: str) -> float:
    number, unit = re.findall(r"([\d.]+)(\w+)", text)[0]
    return round(float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit], 2)


def warm(target: Target, bodies: Sequence[str], times: int) -> None:
    """Ask for each body, so that its answer is kept, and each process has seen it."""
    headers = [{"authorization": f"Bearer {key}", "content-type": "application/json"} for key in target.keys]

    async def all_of() -> None:
        turns = asyncio.Semaphore(8)

        async def one(number: int, body: str) -> None:
            async with turns, httpx.AsyncClient(timeout=60) as client:  # a connection each, spread over the processes
                answer = await client.post(target.url + PATH, content=body, headers=headers[number % len(headers)])
                assert answer.status_code == 200, answer.text

        for _ in range(times):
            await asyncio.gather(*(one(number, body) for number, body in enumerate(bodies)))

    asyncio.run(all_of())


def final_rows(folder: Path) -> int:
    """Rows that are final."""
    database = open_database(folder / "state", LedgerSettings())
    with database.connect() as connection:
        count = connection.execute(select(func.count()).where(ledger.c.state == "final")).scalar_one()
    database.dispose()
    return count


# ------------------------------------------------------------------------------------------------------------- rounds


def cached(name: str, redis: str, workers: int, seconds: float) -> list[Row]:
    """Answers from Redis, of a server of that name."""
    rows: list[Row] = []
    with folder_of() as folder, (ours if name == "qwen3vl-compat" else litellm)(folder, redis, workers) as target:
        for kind, bodies in (("small text", texts()), ("64 KB picture", pictures())):
            warm(target, bodies, 2 * max(1, workers) if name == "qwen3vl-compat" else 1)
            for connections in (1, 16):
                before = final_rows(folder) if name == "qwen3vl-compat" else 0
                found = wrk(target, folder, bodies, connections, seconds)
                time.sleep(0.5)
                more = final_rows(folder) - before - found["count"] if name == "qwen3vl-compat" else ""
                rows.append(
                    {"server": name, "processes": len(target.processes), "cached": kind}
                    | found
                    | {"rows - answers": more}
                )
                print(rows[-1], flush=True, file=sys.stderr)
    return rows


def missed(redis: str, seconds: float) -> list[Row]:
    """Answers that are computed, at one connection: through all policies, and by the same server without any."""
    bodies = [_chat("Say good day for the NUMBERth time, please.")] * 10
    rows: list[Row] = []
    for name, what in (("bare", "the engine behind the wire alone"), ("plain", "the same server without policies")):
        port = free_port()
        with folder_of() as folder, started(uvicorn(name, port), f"http://127.0.0.1:{port}/") as process:
            target = Target(port, process, ["none"])
            wrk(target, folder, bodies, 1, 1, "w")
            rows.append({"miss": what} | wrk(target, folder, bodies, 1, seconds, "a") | {"commits ms": 0.0})
    for counted, where in (("in process", ""), ("in Redis", redis)):
        for synchronous in ("NORMAL", "FULL"):
            with folder_of() as folder, ours(folder, where, 0, synchronous) as target:
                wrk(target, folder, bodies, 1, 1, "w")
                found = wrk(target, folder, bodies, 1, seconds, "b")
                told = {"miss": f"all policies, {counted}, {synchronous}"} | found
                rows.append(told | {"commits ms": commits(folder, synchronous)})
                print(rows[-1], flush=True, file=sys.stderr)
    for row in rows:
        row["added p50 ms"] = round(row["p50 ms"] - rows[1]["p50 ms"], 2)
    return rows


def commits(folder: Path, synchronous: Any) -> float:
    """Median milliseconds that a row's two commits take by themselves."""
    database = open_database(folder / "state", LedgerSettings(synchronous=synchronous))
    book, took = Ledger(database), list[float]()

    async def measure() -> None:
        await book.start()
        for number in range(300):
            entry = Entry(
                id=f"commit{number}", tenant="tenant0", key="K" * 12, model="qwen3-vl", wire="openai", stream=False,
                created_at=book.now_ms(), reserved_out=9, reserved=9, price=None,
            )  # fmt: skip
            outcome = Outcome(state="final", finish="stop", ended_at=book.now_ms(), counts=Counts(out=9))
            began = time.perf_counter()
            await book.open(entry, [Budget(scope="tenant:tenant0", period="month", limit=10**15)])
            await book.settle(entry, outcome)
            took.append(1000 * (time.perf_counter() - began))
        await book.close()

    asyncio.run(measure())
    database.dispose()
    return round(statistics.median(took), 2)


@contextmanager
def folder_of() -> Iterator[Path]:
    """A folder on the disk that the project is on."""
    with tempfile.TemporaryDirectory(dir=Path.cwd() / ".build") as folder:
        yield Path(folder)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--workers", type=int, nargs="*", default=[0], help="numbers of front processes; 0: in one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    assert shutil.which("wrk"), "wrk is needed: Debian's package"
    found: dict[str, list[Row]] = {"cached": []}
    with running() as server:
        for workers in options.workers:
            found["cached"] += cached("qwen3vl-compat", server.url, workers, options.seconds)
            if (PEERS / "litellm").exists():
                found["cached"] += cached("LiteLLM", server.url, workers, options.seconds)
        found["missed"] = missed(server.url, options.seconds)
    where = f"{platform.machine()}, {psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"\n{where}; {BODIES} bodies, {KEYS} keys")
    for rows in found.values():
        print("\n" + table(rows))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
