"""What a decision of the limiter costs, and a Redis that is lost: `python -m benchmarks.limiter [--json FILE]`.

A request is admitted with four claims (two counters, a gauge, one counter that the ledger knows) and settled. Client
and redis-server share the machine. For the second table the connection to Redis fails while 50 requests a second come.
"""

import argparse
import asyncio
import json
import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from qwen3vl_compat.policies.limiting import Claim, Limiter, make_limiter
from qwen3vl_compat.settings import LimitSettings
from tests.policies.counting import DAY, claim
from tests.policies.proxy import Mode, Proxy
from tests.redis_server import RedisServer, running

AT_ONCE = (1, 64, 200)
FAULTS: tuple[Mode, ...] = ("refuse", "reset", "hole", "slow")


def claims(key: int) -> list[Claim]:
    """One request's, of one of 50 keys."""
    scope = f"key:{key % 50}"
    return [
        claim("requests", 10**9, scope=scope),
        claim("tokens", 10**9, 500, scope=scope),
        claim("pictures", 10**9, 2, period=DAY, scope=scope),
        claim("concurrent", 1000, scope=scope),
    ]


async def nothing_known(of: Claim, start: int) -> int:
    """A ledger without rows."""
    return 0


def limiter_at(url: str) -> Limiter:
    return make_limiter(LimitSettings(redis=url), nothing_known, lambda: 1)


def milliseconds(times: Sequence[float], share: float) -> float:
    return round(1000 * float(np.quantile(times, share)), 3)


async def rate(url: str, at_once: int, seconds: float) -> dict[str, object]:
    """So many clients, each of whom admits and settles one request after the other."""
    limiter, admits, settles = limiter_at(url), list[float](), list[float]()
    await limiter.start()
    began = time.perf_counter()

    async def client(number: int) -> None:
        turn = 0
        while time.perf_counter() - began < seconds:
            name, turn = f"{number}/{turn}", turn + 1
            started = time.perf_counter()
            decision = await limiter.admit(name, claims(number))
            admitted = time.perf_counter()
            assert decision.refused is None
            await limiter.settle(name, [1, 300, 2, 0])
            admits.append(admitted - started)
            settles.append(time.perf_counter() - admitted)

    await asyncio.gather(*(client(number) for number in range(at_once)))
    took = time.perf_counter() - began
    await limiter.close()
    return {
        "counted in": "Redis" if url else "memory",
        "at once": at_once,
        "admitted and settled a second": round(len(admits) / took),
        "admit p50 / p99 ms": f"{milliseconds(admits, 0.5)} / {milliseconds(admits, 0.99)}",
        "settle p50 / p99 ms": f"{milliseconds(settles, 0.5)} / {milliseconds(settles, 0.99)}",
    }


async def lost(server: RedisServer, fault: Mode) -> dict[str, object]:
    """The longest of 25 requests before the fault, of those around it, and of 25 once Redis is known to be lost."""
    proxy = Proxy(server.port)
    await proxy.set("pass")
    limiter = limiter_at(proxy.url)
    await limiter.start()

    async def longest(name: str) -> float:
        async def timed(number: int) -> float:
            await asyncio.sleep(number / 50)
            started = time.perf_counter()
            await limiter.admit(f"{name}{number}", claims(number))
            return time.perf_counter() - started

        return milliseconds(await asyncio.gather(*map(timed, range(25))), 1)

    before = await longest("before")
    await proxy.set(fault)
    during, after = await longest("during"), await longest("after")
    await proxy.set("pass")
    began = time.perf_counter()
    while limiter._lost:  # noqa: ASYNC110 - it has no event for that
        await asyncio.sleep(0.01)
    back = time.perf_counter() - began
    await limiter.close()
    await proxy.close()
    return {"fault": fault, "before ms": before, "first ms": during, "later ms": after, "back after s": round(back, 2)}


async def measured(seconds: float) -> dict[str, list[dict[str, object]]]:
    with running() as server:
        return {
            "rates": [await rate(url, at_once, seconds) for url in ("", server.url) for at_once in AT_ONCE],
            "losses": [await lost(server, fault) for fault in FAULTS],
        }


def table(rows: list[dict[str, object]]) -> str:
    """In Markdown."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.disable()
    found = asyncio.run(measured(options.seconds))
    print(f"{platform.machine()}, {psutil.cpu_count()} cores; {options.seconds:g} s each")
    for rows in found.values():
        print("\n" + table(rows))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
