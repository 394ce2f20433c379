"""What is Redis' own: several processes, leases, keys that end by themselves, and values that are nothing of ours."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from qwen3vl_compat.policies.limiting import HELD_S
from qwen3vl_compat.policies.limiting.shared import PREFIX, RedisLimiter, Settlement
from tests.policies.counting import DAY, HOUR, NOON, PATIENCE, Counting, Told, claim, left, refused, room
from tests.redis_server import RedisServer

GAUGE = claim("concurrent", 1)


@pytest.fixture
async def counting(redis_server: RedisServer) -> AsyncIterator[Counting]:
    counting = Counting(redis_server)
    yield counting
    await counting.close()


@pytest.mark.parametrize("processes", [2, 4])
def test_of_200_in_several_processes_as_many_pass_as_may(redis_server: RedisServer, processes: int) -> None:
    redis_server.command("FLUSHALL")
    each = 200 // processes
    with ExitStack() as running:
        racers = [
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.policies.racer", redis_server.url, str(number * each), str(each)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(processes)
        ]
        assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * processes
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("\n")
            racer.stdin.flush()
        outcomes = [racer.communicate()[0] for racer in racers]
    assert sum(map(int, outcomes)) == 10


async def test_a_decision_and_a_settlement_are_one_call_each(counting: Counting, redis_server: RedisServer) -> None:
    limiter = counting.limiter()
    await limiter.start()
    redis_server.command("CONFIG", "RESETSTAT")
    claims = [claim("requests", 9), claim("tokens", 99, 9), claim("pictures", 9, period=DAY), GAUGE]
    await limiter.admit("a", claims)
    await limiter.settle("a", [1, 2, 3, 0])
    stats = redis_server.command("INFO", "commandstats")
    assert isinstance(stats, dict)
    assert stats["cmdstat_evalsha"]["calls"] == 2
    assert not {"cmdstat_eval", "cmdstat_script|load"} & stats.keys()


async def test_redis_own_clock_is_used(redis_server: RedisServer) -> None:
    redis_server.command("FLUSHALL")
    limiter = RedisLimiter(redis_server.url, wait=PATIENCE)
    decision = await limiter.admit("a", [claim("requests", 9, period=DAY)])
    told = redis_server.command("TIME")
    assert isinstance(told, list | tuple)
    later = (int(told[0]) + int(told[1]) / 10**6 + decision.standings[0].reset) % DAY
    assert min(later, DAY - later) < PATIENCE
    await limiter.close()


async def test_all_keys_end_by_themselves_and_lie_on_one_node(counting: Counting, redis_server: RedisServer) -> None:
    limiter = counting.limiter(Told(3))
    await limiter.start()
    await limiter.admit("a", [claim("requests", 9, period=HOUR), claim("tokens", 9), GAUGE])
    await limiter.admit("b", [claim("tokens", 9)])
    await limiter.settle("b", [0])
    await limiter.deliver(Settlement("c", (GAUGE.counter,), None))
    await limiter.renew()
    keys = redis_server.command("KEYS", "*")
    assert isinstance(keys, list)
    assert len(keys) == 6
    assert all(key.startswith("qwen3vl:{limits}:") for key in keys)
    lives = [redis_server.command("TTL", key) for key in keys]
    assert all(isinstance(life, int) and 0 < life <= HOUR + HELD_S for life in lives), dict(
        zip(keys, lives, strict=True)
    )


class TestPlaces:
    async def test_the_place_of_a_killed_process_comes_free_and_its_hold_stays(self, counting: Counting) -> None:
        killed, other = counting.limiter(), counting.limiter()
        claims = [claim("pictures", 9, 4, period=DAY), GAUGE]
        await killed.admit("a", claims)
        counting.clock.now += HELD_S - 0.001
        assert await room(other, claims) == [5, 0]
        counting.clock.now += 0.001
        assert await room(other, claims) == [5, 1]
        assert refused(await other.admit("b", claims)) is None
        assert await room(other, claims) == [1, 0]

    async def test_a_place_that_is_renewed_stays(self, counting: Counting) -> None:
        holding, other = counting.limiter(), counting.limiter()
        await holding.admit("a", [GAUGE])
        for _ in range(10):
            counting.clock.now += HELD_S - 1
            await holding.renew()
            assert refused(await other.admit("b", [GAUGE]))
        await holding.settle("a", [0])
        await holding.renew()
        assert refused(await other.admit("b", [GAUGE])) is None

    async def test_renewal_takes_again_what_a_flush_lost(self, counting: Counting, redis_server: RedisServer) -> None:
        holding, other = counting.limiter(), counting.limiter()
        await holding.admit("a", [GAUGE])
        redis_server.command("FLUSHALL")
        await holding.renew()
        assert refused(await other.admit("b", [GAUGE]))
        await holding.settle("a", [0])
        assert refused(await other.admit("b", [GAUGE])) is None

    @pytest.mark.parametrize("jump", [DAY, -DAY])
    async def test_after_a_jump_of_the_clock_places_count_once_renewed(self, counting: Counting, jump: int) -> None:
        holding, killed = counting.limiter(), counting.limiter()
        two = claim("concurrent", 2)
        await holding.admit("a", [two])
        await killed.admit("b", [two])
        counting.clock.now += jump
        await holding.renew()
        assert await room(holding, [two]) == [1]


class TestLost:
    async def test_what_a_hold_gives_back_never_goes_to_a_counter_begun_anew(
        self, counting: Counting, redis_server: RedisServer
    ) -> None:
        limiter, one = counting.limiter(), claim("tokens", 100, 60)
        await limiter.admit("a", [one])
        redis_server.command("DEL", f"{PREFIX}{one.counter}:{int(NOON) * 1000}")
        await limiter.admit("b", [one])
        await limiter.settle("a", [0])
        assert await room(limiter, [one]) == [40]

    async def test_a_decision_that_comes_after_it_was_given_up_is_nothing(self, counting: Counting) -> None:
        limiter, claims = counting.limiter(), [claim("tokens", 100, 60), GAUGE]
        await limiter.deliver(Settlement("a", (GAUGE.counter,), None))
        await limiter.admit("a", claims)
        assert await room(limiter, claims) == [100, 1]

    async def test_what_is_given_up_goes_back(self, counting: Counting) -> None:
        limiter, claims = counting.limiter(), [claim("tokens", 100, 60), GAUGE]
        await limiter.admit("a", claims)
        for _ in range(2):
            await limiter.deliver(Settlement("a", (GAUGE.counter,), None))
            assert await room(limiter, claims) == [100, 1]

    async def test_a_flush_begins_anew_but_for_what_the_ledger_knows(
        self, counting: Counting, redis_server: RedisServer
    ) -> None:
        told = Told(0)
        limiter = counting.limiter(told)
        claims = [claim("pictures", 100, 60, period=DAY), claim("tokens", 100, 60)]
        await limiter.admit("a", claims)
        told.used = 60
        redis_server.command("FLUSHALL")
        assert await room(limiter, claims) == [40, 100]
        await limiter.settle("a", [0, 0])
        assert await room(limiter, claims) == [40, 100]

    async def test_scripts_that_redis_forgot_are_sent_again(
        self, counting: Counting, redis_server: RedisServer
    ) -> None:
        limiter, claims = counting.limiter(), [claim("tokens", 100, 60), GAUGE]
        await limiter.start()
        for name in "ab":
            redis_server.command("SCRIPT", "FLUSH")
            assert left(await limiter.admit(name, claims)) == [40, 0]
            redis_server.command("SCRIPT", "FLUSH")
            await limiter.renew()
            redis_server.command("SCRIPT", "FLUSH")
            await limiter.settle(name, [0, 0])
            assert await room(limiter, claims) == [100, 1]

    @pytest.mark.parametrize(
        "junk",
        [
            ("LPUSH", "x"),
            ("SET", "x"),
            ("SET", "-5 1"),
            ("SET", ""),
            ("HSET", "x", "y"),
            ("SADD", "x"),
            ("ZADD", "1", "x"),
        ],
    )
    async def test_a_key_with_something_else_in_it_counts_as_lost(
        self, counting: Counting, redis_server: RedisServer, junk: tuple[str, ...]
    ) -> None:
        limiter, claims = counting.limiter(Told(5)), [claim("tokens", 100, 60), claim("pictures", 9, period=DAY), GAUGE]
        await limiter.admit("a", claims)
        keys = redis_server.command("KEYS", "*")
        assert isinstance(keys, list)
        verb, *values = junk
        for key in keys:
            redis_server.command("DEL", key)
            redis_server.command(verb, key, *values)
        await limiter.settle("a", [0, 0, 0])
        decision = await limiter.admit("b", claims)
        assert decision.refused is None
        await limiter.settle("b", [0, 0, 0])
        assert (await room(limiter, claims))[:2] == [100, 4]
        await limiter.renew()


async def test_a_cancelled_caller_leaves_the_connection_whole(counting: Counting, redis_server: RedisServer) -> None:
    limiter, one = counting.limiter(), claim("requests", 10**6)
    await limiter.start()
    before = redis_server.command("INFO", "stats")
    for number in range(20):
        tasks = [asyncio.create_task(limiter.admit(f"{number}/{n}", [one])) for n in range(20)]
        for _ in range(number % 5):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(isinstance(outcome, Exception) for outcome in done)
    after = redis_server.command("INFO", "stats")
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert after["total_connections_received"] == before["total_connections_received"] + 1
