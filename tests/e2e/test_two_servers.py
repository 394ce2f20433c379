"""Two server processes on one database and one Redis: limits and budgets hold for both together."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_compat.cli import main
from tests.redis_server import RedisServer, running
from tests.serving import Served, serving

SCRIPTED = {"QWEN3VL_MODEL__ENGINE": "scripted"}
PROMPT = 7
"""Tokens of `count to 999` for the scripted engine: three words and a message's frame."""


class Pair:
    """Two servers, and the command line on their accounts."""

    def __init__(self, servers: list[Served], capsys: pytest.CaptureFixture[str]) -> None:
        self.servers, self._capsys = servers, capsys

    def command(self, *words: str) -> str:
        main([*words, "--state-dir", str(self.servers[0].state)])
        return self._capsys.readouterr().out.strip()

    async def race(self, key: str, number: int, body: Any) -> list[httpx.Response]:
        """So many requests at once, shared out over both."""
        limits = httpx.Limits(max_connections=number)
        async with httpx.AsyncClient(timeout=60, limits=limits, headers={"authorization": f"Bearer {key}"}) as client:
            urls = [self.servers[each % 2].url + "/v1/chat/completions" for each in range(number)]
            return await asyncio.gather(*(client.post(url, json=body) for url in urls))


@pytest.fixture(scope="module")
def mortal_redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, mortal_redis: RedisServer) -> Iterator[list[Served]]:
    folder, environment = tmp_path_factory.mktemp("two"), SCRIPTED | {"QWEN3VL_LIMITS__REDIS": mortal_redis.url}
    with ExitStack() as stack:
        yield [stack.enter_context(serving(folder, environment=environment)) for _ in range(2)]


@pytest.fixture
def pair(two: list[Served], capsys: pytest.CaptureFixture[str]) -> Pair:
    """The same servers for all; each test has a key of its own."""
    return Pair(two, capsys)


def asking(most: int = 20) -> Any:
    return {"model": "qwen3-vl", "messages": [{"role": "user", "content": "count to 999"}], "max_tokens": most}


def codes(answers: list[httpx.Response]) -> dict[str, int]:
    found: dict[str, int] = {}
    for answer in answers:
        name = str(answer.status_code) if answer.status_code == 200 else answer.json()["error"]["code"]
        found[name] = found.get(name, 0) + 1
    return found


async def test_200_racers_on_a_budget_for_10_let_10_through(pair: Pair) -> None:
    """The scripted engine makes exactly max_tokens, so what is reserved is what is spent."""
    pair.command("prices", "set", "*", "--text-in", "1", "--out", "2")
    one = PROMPT * 1000 + 20 * 2000
    pair.command("tenants", "create", "acme")
    key = pair.command("keys", "create", "--tenant", "acme", "--budget", f"{10 * one / 1e9:.9f}/month")
    answers = await pair.race(key, 200, asking())
    assert codes(answers) == {"200": 10, "insufficient_quota": 190}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    passed = next(answer for answer in answers if answer.status_code == 200)
    assert passed.headers["x-cost-total"] == f"{one / 1e9:.9f}".rstrip("0")
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as client:
        usage = (await client.get(pair.servers[1].url + "/v1/usage")).json()
    results = [result for bucket in usage["data"] for result in bucket["results"]]
    assert sum(result["requests"] for result in results) == 10
    assert sum(result["output_tokens"] for result in results) == 200


async def test_requests_and_tokens_of_both_count_together(pair: Pair) -> None:
    key = pair.command("keys", "create", "--requests", "30/day")
    assert codes(await pair.race(key, 100, asking(1))) == {"200": 30, "rate_limit_exceeded": 70}
    key = pair.command("keys", "create", "--tpm-out", "200")
    await asyncio.sleep(max(0, 10 - 60 + time.time() % 60))  # a minute that ends in the middle would begin anew
    assert codes(await pair.race(key, 50, asking(20))) == {"200": 10, "rate_limit_exceeded": 40}


async def test_redis_goes_and_comes_back_and_no_request_fails(pair: Pair, mortal_redis: RedisServer) -> None:
    pair.command("prices", "set", "*", "--text-in", "1", "--out", "2")
    key = pair.command("keys", "create", "--requests", "1000/day", "--concurrent", "50", "--budget", "1/day")
    assert codes(await pair.race(key, 20, asking(1))) == {"200": 20}
    mortal_redis.kill()
    assert codes(await pair.race(key, 40, asking(1))) == {"200": 40}
    mortal_redis.start()
    for _ in range(400):
        logs = [served.log() for served in pair.servers]
        if all("Redis is back" in log for log in logs):
            break
        await asyncio.sleep(0.1)
    assert codes(await pair.race(key, 40, asking(1))) == {"200": 40}
    for served in pair.servers:
        lines = [line for line in served.log().splitlines() if "limiting" in line]
        assert len(lines) == 2, lines


async def test_a_revoked_key_is_dead_in_both_within_5_seconds(pair: Pair) -> None:
    key = pair.command("keys", "create")
    assert codes(await pair.race(key, 2, asking(1))) == {"200": 2}
    pair.command("keys", "revoke", key)
    end = time.monotonic() + 5.5
    while codes(await pair.race(key, 2, asking(1))) != {"invalid_api_key": 2}:
        assert time.monotonic() < end
        await asyncio.sleep(0.2)


async def test_four_processes_on_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Redis: budgets are exact, and every answer of every process has its row."""
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(tmp_path, environment=SCRIPTED)) for _ in range(4)]
        four = Pair(servers, capsys)
        four.command("prices", "set", "*", "--text-in", "1", "--out", "2")
        one = PROMPT * 1000 + 20 * 2000
        key = four.command("keys", "create", "--budget", f"{50 * one / 1e9:.9f}/month")
        async with httpx.AsyncClient(timeout=60, headers={"authorization": f"Bearer {key}"}) as client:
            urls = [servers[each % 4].url + "/v1/chat/completions" for each in range(200)]
            answers = await asyncio.gather(*(client.post(url, json=asking()) for url in urls))
        assert codes(answers) == {"200": 50, "insufficient_quota": 150}
        table = four.command("usage", "--format", "jsonl")
        assert '"requests":50' in table.replace(" ", "")
