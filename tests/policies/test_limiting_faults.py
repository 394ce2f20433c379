"""Redis goes and comes back, in every way it can: nobody hears an error, and limits are kept as promised."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from qwen3vl_compat.policies.limiting import Limiter, Seed, make_limiter
from qwen3vl_compat.policies.limiting.fallback import RENEW_S, FallbackLimiter
from qwen3vl_compat.policies.limiting.line import AT_ONCE, Line, Lost, Patience
from qwen3vl_compat.policies.limiting.local import LocalLimiter
from qwen3vl_compat.policies.limiting.shared import PREFIX, RedisLimiter
from qwen3vl_compat.settings import LimitSettings, SettingsError
from tests.policies.counting import AGES, PATIENCE, Told, left, refused
from tests.policies.counting import claim as claim_of
from tests.policies.proxy import Mode, Proxy
from tests.redis_server import RedisServer, running

WAIT = 0.25
"""Seconds for Redis, more than by default: the machine may be busy."""
SLOWEST = 20 * WAIT
"""Well below what a client waits by default, and far above what a busy machine needs."""
SOON = 30.0
"""Seconds after which something does not happen any more."""
claim = partial(claim_of, period=AGES)
GAUGE = claim("concurrent", 2)


@asynccontextmanager
async def counting(
    url: str, seed: Seed | None = None, share: int = 1, wait: float = WAIT
) -> AsyncIterator[FallbackLimiter]:
    limiter = FallbackLimiter(RedisLimiter(url, seed, wait=wait), LocalLimiter(seed, share=lambda: share))
    await limiter.start()
    try:
        yield limiter
    finally:
        await limiter.close()


@pytest.fixture
async def proxy(own_redis: RedisServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(own_redis.port)
    await proxy.set("pass")
    yield proxy
    await proxy.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged: `lost`, `back`, or the text of anything else."""
    caplog.set_level(logging.INFO)

    def said() -> list[str]:
        texts = [record.getMessage() for record in caplog.records if record.name.startswith("qwen3vl_compat")]
        return [text[9:13] if text.startswith("Redis is ") else text for text in texts]

    return said


async def until(true: Callable[[], bool]) -> float:
    """Wait for something; seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < SOON
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def lost(limiter: Limiter, said: Callable[[], list[str]]) -> None:
    """Ask until Redis is found to be lost; every answer is one."""
    end = time.monotonic() + SOON
    while said()[-1:] != ["lost"]:
        assert refused(await limiter.admit("", [claim("requests", 10**6, scope="ip:x")])) is None
        assert time.monotonic() < end


@pytest.mark.parametrize("mode", ["refuse", "reset", "hole", "slow", "garbage"])
async def test_a_fault_on_the_way(proxy: Proxy, mode: Mode, said: Callable[[], list[str]]) -> None:
    one = claim("requests", 100)
    async with counting(proxy.url, share=4) as limiter:
        await limiter.admit("before", [one, GAUGE])
        await proxy.set(mode)
        began = time.monotonic()
        decisions = await asyncio.gather(*(limiter.admit(f"a{n}", [one]) for n in range(60)))
        assert time.monotonic() - began < SLOWEST
        assert sum(decision.refused is None for decision in decisions) == 25
        accepted = proxy.accepted
        began = time.monotonic()
        for number in range(100):
            assert refused(await limiter.admit(f"b{number}", [one])) == "requests"
        assert time.monotonic() - began < 100 * WAIT / 2
        assert proxy.accepted - accepted <= 10
        await limiter.settle("before", [1, 0])
        await limiter.settle("a0", [0])
        assert said() == ["lost"]
        await proxy.set("pass")
        assert await until(lambda: said() == ["lost", "back"]) < 5
        assert left(await limiter.admit("after", [one, GAUGE]))[0] in range(37, 99)
        await until(lambda: not limiter._owed)
        assert left(await limiter.admit("again", [one, GAUGE])) == [97, 0]
    assert said() == ["lost", "back"]


async def test_those_who_wait_for_their_turn_wait_no_longer_than_the_others(proxy: Proxy) -> None:
    line = Line(proxy.url)
    await proxy.set("hole")
    calls = [line.call(Patience(WAIT), "PING") for _ in range(3 * AT_ONCE)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, Lost) for outcome in outcomes)
    assert proxy.accepted == 1
    await proxy.set("pass")
    assert await line.call(Patience(PATIENCE), "PING") == b"PONG"
    await line.close()


async def test_a_server_that_is_killed_and_starts_again_empty(
    own_redis: RedisServer, said: Callable[[], list[str]]
) -> None:
    told, one = Told(), claim("pictures", 100, 10)
    async with counting(own_redis.url, told) as limiter:
        await limiter.admit("a", [one, GAUGE])
        told.used = 10
        own_redis.kill()
        assert left(await limiter.admit("b", [one, GAUGE])) == [80, 0]
        told.used = 20
        assert refused(await limiter.admit("c", [GAUGE])) == "concurrent"
        own_redis.start()
        assert await until(lambda: said() == ["lost", "back"]) < 5
        assert await until(lambda: own_redis.command("ZCARD", PREFIX + GAUGE.counter) == 2) < RENEW_S / 2
        decision = await limiter.admit("d", [one, GAUGE])
        assert (refused(decision), left(decision)) == ("concurrent", [80, 0])
        for name in "ab":
            await limiter.settle(name, [10, 0])
        assert left(await limiter.admit("e", [one, GAUGE])) == [70, 1]


async def test_what_was_admitted_without_redis_is_known_there_afterwards(
    proxy: Proxy, said: Callable[[], list[str]]
) -> None:
    """For counters that the ledger knows: Redis kept its own through the fault, and they are begun anew."""
    told, one = Told(), claim("pictures", 100, 10)
    async with counting(proxy.url, told) as limiter:
        for outage in range(3):
            used = 30 * outage
            assert left(await limiter.admit(f"a{outage}", [one])) == [100 - used - 10]
            told.used += 10
            await proxy.set("refuse")
            for number in (1, 2):
                assert left(await limiter.admit(f"b{outage}/{number}", [one])) == [100 - used - 10 - 10 * number]
                told.used += 10
            await proxy.set("pass")
            await until(lambda: said()[-1] == "back")
        assert left(await limiter.admit("last", [one])) == [0]
        assert refused(await limiter.admit("none", [one])) == "pictures"


async def test_what_has_no_name_is_given_back_where_it_was_counted(proxy: Proxy, said: Callable[[], list[str]]) -> None:
    one = claim("tokens", 100, 30)
    async with counting(proxy.url) as limiter:
        there = [await limiter.admit("", [one]) for _ in range(2)]
        await limiter.give_back(there[0], [0])
        assert left(await limiter.admit("", [claim("tokens", 100, 0)])) == [70]
        await proxy.set("refuse")
        here = await limiter.admit("", [one])
        assert (said(), left(here)) == (["lost"], [70])
        for decision in (here, there[1]):
            await limiter.give_back(decision, [0])
        assert left(await limiter.admit("", [claim("tokens", 100, 0)])) == [100]
        await proxy.set("pass")
        await until(lambda: said() == ["lost", "back"])
        assert left(await limiter.admit("", [claim("tokens", 100, 0)])) == [70], "Redis could not be told"


async def test_places_do_not_leak_when_redis_comes_and_goes(
    proxy: Proxy, own_redis: RedisServer, said: Callable[[], list[str]]
) -> None:
    ten = claim("concurrent", 10)
    async with counting(proxy.url) as limiter:
        for turn in range(3):
            names = [f"{turn}/{number}" for number in range(10)]
            for name in names[:5]:
                await limiter.admit(name, [ten])
            await proxy.set("reset")
            await lost(limiter, said)
            for name in names[5:]:
                await limiter.admit(name, [ten])
            assert refused(await limiter.admit("more", [ten])) == "concurrent"
            for name in (names[0], names[5]):
                await limiter.settle(name, [0])
            await proxy.set("pass")
            await until(lambda: said()[-1] == "back")
            await until(lambda: own_redis.command("ZCARD", PREFIX + ten.counter) == 8)
            await until(lambda: not limiter._owed)
            for name in names:
                await limiter.settle(name, [0])
            assert own_redis.command("ZCARD", PREFIX + ten.counter) == 0
        assert not limiter._held
        assert not limiter._local._holds
        assert not limiter._local._places
        assert not limiter._shared._places


async def test_the_same_name_again_changes_nothing_wherever_it_was_counted(proxy: Proxy) -> None:
    claims = [claim("tokens", 100, 30), GAUGE]
    async with counting(proxy.url) as limiter:
        there = await limiter.admit("a", claims)
        await proxy.set("refuse")
        here = await limiter.admit("b", claims)
        assert await limiter.admit("a", claims) == there
        assert await limiter.admit("b", claims) == here
        assert left(here) == [70, 0]
        await proxy.set("pass")
        await until(lambda: not limiter._lost and not limiter._owed)
        assert await limiter.admit("b", claims) == here
        await limiter.settle("b", [30, 0])
        assert left(await limiter.admit("c", claims)) == [40, 0]


async def test_places_lost_by_a_flush_are_taken_again(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3vl_compat.policies.limiting.fallback.RENEW_S", 0.1)
    async with counting(own_redis.url, wait=PATIENCE) as limiter:
        await limiter.admit("a", [GAUGE])
        for _ in range(2):
            own_redis.command("FLUSHALL")
            await until(lambda: own_redis.command("ZCARD", PREFIX + GAUGE.counter) == 1)
        await limiter.settle("a", [0])
        assert left(await limiter.admit("b", [GAUGE])) == [1]


async def test_the_outcome_of_a_slow_decision_does_not_count(proxy: Proxy, own_redis: RedisServer) -> None:
    """It was given up, decided here instead, and takes effect in Redis afterwards, before or after it hears of that."""
    claims = [claim("tokens", 100, 60), GAUGE]
    async with counting(proxy.url) as limiter:
        own_redis.process.suspend()
        assert left(await limiter.admit("a", claims)) == [40, 1]
        own_redis.process.resume()
        await until(lambda: not limiter._lost and not limiter._owed)
        assert left(await limiter.admit("b", claims))[0] == 40
        await limiter.settle("a", [60, 0])
        await until(lambda: own_redis.command("ZCARD", PREFIX + GAUGE.counter) == 1)


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_decision_holds_nothing(own_redis: RedisServer, turns: int) -> None:
    claims = [claim("tokens", 10**6, 60), claim("concurrent", 100)]
    async with counting(own_redis.url, wait=PATIENCE) as limiter:
        tasks = [asyncio.create_task(limiter.admit(f"a{number}", claims)) for number in range(20)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            if not isinstance(outcome, asyncio.CancelledError):
                await limiter.settle(f"a{number}", [0, 0])
        await until(lambda: not limiter._owed)
        assert left(await limiter.admit("b", claims)) == [10**6 - 60, 99]


async def test_a_cancelled_settlement_is_made_later(own_redis: RedisServer) -> None:
    """Some are cancelled while they wait for their turn: Redis hears of them only afterwards."""
    claims, names = [claim("tokens", 10**6, 60), claim("concurrent", 1000)], [f"a{n}" for n in range(100)]
    async with counting(own_redis.url, wait=PATIENCE) as limiter:
        await asyncio.gather(*(limiter.admit(name, claims) for name in names))
        tasks = [asyncio.create_task(limiter.settle(name, [10, 0])) for name in names]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: own_redis.command("ZCARD", PREFIX + claims[1].counter) == 0)
        assert left(await limiter.admit("b", claims)) == [10**6 - 1060, 999]


async def test_200_at_once_on_a_healthy_redis(own_redis: RedisServer, said: Callable[[], list[str]]) -> None:
    async with counting(own_redis.url, wait=PATIENCE) as limiter:
        for turn in range(5):
            asked = [limiter.admit(f"{turn}/{number}", [claim("requests", 10**6)]) for number in range(200)]
            assert all(decision.refused is None for decision in await asyncio.gather(*asked))
        stats = own_redis.command("INFO", "clients")
        assert isinstance(stats, dict)
        assert stats["connected_clients"] == 2  # ours and the one that asks
    assert said() == []


async def test_a_loop_that_was_busy_is_no_fault_of_redis(own_redis: RedisServer, said: Callable[[], list[str]]) -> None:
    async with counting(own_redis.url) as limiter:
        for number in range(3):
            asked = asyncio.create_task(limiter.admit(str(number), [GAUGE]))
            for _ in range(number + 1):
                await asyncio.sleep(0)
            time.sleep(2 * WAIT)  # noqa: ASYNC251 - the point of it
            await asked
    assert said() == []


async def test_more_owed_than_is_kept_drops_the_oldest(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr("qwen3vl_compat.policies.limiting.fallback.OWED", 3)
    one = claim("tokens", 100, 10)
    async with counting(own_redis.url) as limiter:
        for name in "abcde":
            await limiter.admit(name, [one])
        own_redis.process.suspend()
        for name in "abcde":
            await limiter.settle(name, [0])
        own_redis.process.resume()
        await until(lambda: not limiter._lost and not limiter._owed)
        assert left(await limiter.admit("f", [one]))[0] in (70, 80)


class TestRedisRefuses:
    async def test_without_memory(self, own_redis: RedisServer, said: Callable[[], list[str]]) -> None:
        one = claim("requests", 1000)
        async with counting(own_redis.url, share=2) as limiter:
            own_redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
            own_redis.command("CONFIG", "SET", "maxmemory", "1mb")
            await lost(limiter, said)
            assert left(await limiter.admit("a", [one])) == [499]
            own_redis.command("CONFIG", "SET", "maxmemory", "0")
            assert await until(lambda: said() == ["lost", "back"]) < 5
            assert left(await limiter.admit("b", [one])) == [999]

    async def test_as_a_replica(self, own_redis: RedisServer, said: Callable[[], list[str]]) -> None:
        with running() as primary:
            async with counting(own_redis.url) as limiter:
                own_redis.command("REPLICAOF", "127.0.0.1", primary.port)
                await lost(limiter, said)
                own_redis.command("REPLICAOF", "NO", "ONE")
                assert await until(lambda: said() == ["lost", "back"]) < 5

    async def test_a_password(self, own_redis: RedisServer, said: Callable[[], list[str]]) -> None:
        own_redis.command("CONFIG", "SET", "requirepass", "secret")
        async with counting(own_redis.url) as limiter:
            assert said() == ["lost"]
            assert refused(await limiter.admit("a", [GAUGE])) is None
        async with counting(own_redis.url.replace("//", "//:secret@")) as limiter:
            assert refused(await limiter.admit("a", [GAUGE])) is None
        assert said() == ["lost"]

    async def test_nothing_is_lost_by_a_flush_or_by_forgotten_scripts(
        self, own_redis: RedisServer, said: Callable[[], list[str]]
    ) -> None:
        told, claims = Told(), [claim("pictures", 10, 4), claim_of("tokens", 10, 4), GAUGE]
        async with counting(own_redis.url, told, wait=PATIENCE) as limiter:
            await limiter.admit("a", claims)
            told.used = 4
            own_redis.command("FLUSHALL")
            own_redis.command("SCRIPT", "FLUSH")
            assert left(await limiter.admit("b", claims))[0] == 2
            await limiter.settle("a", [0, 0, 0])
            await limiter.settle("b", [4, 4, 0])
        assert said() == []

    async def test_a_key_of_another_type_is_replaced(
        self, own_redis: RedisServer, said: Callable[[], list[str]]
    ) -> None:
        async with counting(own_redis.url, wait=PATIENCE) as limiter:
            own_redis.command("LPUSH", PREFIX + GAUGE.counter, "x")
            assert left(await limiter.admit("a", [GAUGE])) == [1]
        assert said() == []


async def test_no_redis_at_the_start(own_redis: RedisServer, said: Callable[[], list[str]]) -> None:
    own_redis.kill()
    async with counting(own_redis.url) as limiter:
        assert said() == ["lost"]
        assert left(await limiter.admit("a", [GAUGE])) == [1]
        own_redis.start()
        assert await until(lambda: said() == ["lost", "back"]) < 5
        assert left(await limiter.admit("b", [GAUGE])) in ([1], [0])


MISSING = "limits.redis needs the package redis: install qwen3vl-compat[redis]."
PROBE = """
import sys
sys.modules["redis"] = None
from qwen3vl_compat.policies.limiting import make_limiter
from qwen3vl_compat.settings import LimitSettings
try:
    print(type(make_limiter(LimitSettings(redis=sys.argv[1]), None, lambda: 1)).__name__)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


class TestMaking:
    def settings(self, redis: str = "") -> LimitSettings:
        return LimitSettings(redis=redis)

    async def test_without_a_url_it_counts_here(self) -> None:
        limiter = make_limiter(self.settings(), None, lambda: 3)
        assert left(await limiter.admit("a", [claim("requests", 9)])) == [2]

    async def test_with_one_it_counts_there(self, own_redis: RedisServer) -> None:
        limiter = make_limiter(self.settings(own_redis.url), None, lambda: 3)
        await limiter.start()
        assert left(await limiter.admit("a", [claim("requests", 9)])) == [8]
        await limiter.close()
        assert own_redis.command("KEYS", "*hold:a") == [f"{PREFIX}hold:a"]

    def test_a_url_that_is_none(self) -> None:
        with pytest.raises(SettingsError, match=r"limits\.redis cannot be used: .+\."):
            make_limiter(self.settings("redis://host:port"), None, lambda: 1)

    @pytest.mark.parametrize(
        ("url", "says"), [("redis://localhost", f"SettingsError: {MISSING}"), ("", "LocalLimiter")]
    )
    def test_without_the_package(self, url: str, says: str) -> None:
        out = subprocess.run([sys.executable, "-c", PROBE, url], capture_output=True, text=True, check=False)
        assert (out.stdout.strip(), out.stderr) == (says, "")
