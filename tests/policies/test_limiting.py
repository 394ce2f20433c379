"""Limits, counted in memory and in Redis alike: one suite for both."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from qwen3vl_compat.policies.limiting import Claim
from tests.policies.counting import DAY, HOUR, NOON, Counting, Told, claim, left, refused, room


@pytest.fixture(params=["local", "redis"])
async def counting(request: pytest.FixtureRequest) -> AsyncIterator[Counting]:
    counting = Counting(request.getfixturevalue("redis_server") if request.param == "redis" else None)
    yield counting
    await counting.close()


async def test_all_claims_are_noted_or_none(counting: Counting) -> None:
    limiter = counting.limiter()
    fits, does_not = claim("requests", 10), claim("tokens", 100, 101)
    decision = await limiter.admit("a", [fits, does_not])
    assert refused(decision) == "tokens"
    assert left(decision) == [10, 100]
    assert left(await limiter.admit("b", [fits, claim("tokens", 100, 100)])) == [9, 0]


async def test_the_first_claim_that_does_not_fit_is_named(counting: Counting) -> None:
    claims = [claim("requests", 5), claim("tokens_in", 3, 4), claim("tokens_out", 3, 5)]
    decision = await counting.limiter().admit("a", claims)
    assert decision.refused == decision.standings[1]
    assert [standing.claim for standing in decision.standings] == claims


@pytest.mark.parametrize(
    ("period", "now", "reset"),
    [
        (60, NOON, 60.0),
        (60, NOON + 0.001, 59.999),
        (60, NOON + 59.999, 0.001),
        (60, NOON + 60, 60.0),
        (7, NOON + 0.5, 7 - (NOON + 0.5) % 7),
        (HOUR, NOON + 1.25, 3598.75),
        (DAY, NOON, DAY / 2),
        (3 * DAY, NOON, 3 * DAY - NOON % (3 * DAY)),
    ],
)
async def test_windows_begin_at_multiples_of_their_period(
    counting: Counting, period: int, now: float, reset: float
) -> None:
    counting.clock.now = now
    limiter, one = counting.limiter(), claim("requests", 2, period=period)
    decision = await limiter.admit("a", [one])
    assert decision.standings[0].reset == pytest.approx(reset, abs=1e-6)
    assert left(decision) == [1]
    counting.clock.now = now + decision.standings[0].reset - 0.001
    assert left(await limiter.admit("b", [one])) == [0]
    assert refused(await limiter.admit("c", [one])) == "requests"
    counting.clock.now += 0.001
    assert left(await limiter.admit("d", [one])) == [1]


async def test_of_200_at_once_as_many_pass_as_may(counting: Counting) -> None:
    limiters = [counting.limiter()] if not counting.shared else [counting.limiter() for _ in range(2)]
    claims = [claim("requests", 10), claim("tokens", 10**6, 7)]
    asked = [limiters[n % len(limiters)].admit(f"r{n}", claims) for n in range(200)]
    decisions = await asyncio.gather(*asked)
    assert sum(decision.refused is None for decision in decisions) == 10
    assert await room(limiters[0], claims) == [0, 10**6 - 70]


async def test_what_was_not_used_goes_back_once(counting: Counting) -> None:
    limiter, claims = counting.limiter(), [claim("requests", 5), claim("tokens", 100, 80)]
    await limiter.admit("a", claims)
    for _ in range(3):
        await limiter.settle("a", [1, 30])
        assert await room(limiter, claims) == [4, 70]
    await limiter.settle("unknown", [0, 0])
    assert await room(limiter, claims) == [4, 70]


@pytest.mark.parametrize(
    ("used", "remaining"),
    [
        ([0, 0], [5, 100]),
        ([1, 80], [4, 20]),
        ([9, 999], [4, 20]),
        ([-5, -5], [5, 100]),
        ([0], [5, 20]),
        ([], [4, 20]),
        ([1, 9, 7], [4, 91]),
    ],
)
async def test_what_a_settlement_leaves(counting: Counting, used: list[int], remaining: list[int]) -> None:
    """No more than was claimed, no less than nothing; a claim without an amount stays as it is."""
    limiter, claims = counting.limiter(), [claim("requests", 5), claim("tokens", 100, 80)]
    await limiter.admit("a", claims)
    await limiter.settle("a", used)
    assert await room(limiter, claims) == remaining


async def test_nothing_goes_back_to_a_later_window(counting: Counting) -> None:
    limiter = counting.limiter()
    claims = [claim("tokens", 100, 60), claim("pictures", 100, 60, period=DAY)]
    await limiter.admit("a", claims)
    counting.clock.now += 60
    await limiter.admit("b", claims[:1])
    await limiter.settle("a", [0, 10])
    assert await room(limiter, claims) == [40, 90]
    counting.clock.now -= 60
    assert await room(limiter, claims) == [100, 90]


async def test_the_same_name_again_changes_nothing(counting: Counting) -> None:
    limiter, claims = counting.limiter(), [claim("requests", 2), claim("concurrent", 1), claim("tokens", 100, 80)]
    first = await limiter.admit("a", claims)
    again = await limiter.admit("a", claims)
    assert again == first
    assert again.refused is None
    await limiter.settle("a", [1, 0, 80])
    assert await room(limiter, claims) == [1, 1, 20]


async def test_a_name_that_was_refused_may_try_again(counting: Counting) -> None:
    limiter, one = counting.limiter(), claim("tokens", 100, 80)
    await limiter.admit("a", [one])
    assert refused(await limiter.admit("b", [one]))
    await limiter.settle("a", [0])
    assert refused(await limiter.admit("b", [one])) is None


async def test_claims_without_a_name_are_counted_and_not_held(counting: Counting) -> None:
    limiter, claims = counting.limiter(), [claim("requests", 3), claim("concurrent", 1)]
    assert [left(await limiter.admit("", claims)) for _ in range(3)] == [[2, 1], [1, 1], [0, 1]]
    await limiter.settle("", [0, 0])
    assert refused(await limiter.admit("", claims)) == "requests"


async def test_what_was_noted_without_a_name_goes_back_as_after_a_settlement(counting: Counting) -> None:
    """Of the claims of one decision some may stay counted; each decision is given back by itself."""
    limiter, claims = counting.limiter(), [claim("requests", 5), claim("tokens", 100, 40), claim("concurrent", 1)]
    decisions = [await limiter.admit("", claims) for _ in range(2)]
    assert await room(limiter, claims) == [3, 20, 1]
    await limiter.give_back(decisions[0], [1, 0, 0])
    assert await room(limiter, claims) == [3, 60, 1]
    await limiter.give_back(decisions[1], [1, 30, 0])
    assert await room(limiter, claims) == [3, 70, 1]


async def test_of_a_refused_decision_nothing_goes_back(counting: Counting) -> None:
    limiter, claims = counting.limiter(), [claim("requests", 5), claim("tokens", 100, 60)]
    await limiter.admit("", claims)
    decision = await limiter.admit("", claims)
    assert refused(decision) == "tokens"
    await limiter.give_back(decision, [0, 0])
    assert await room(limiter, claims) == [4, 40]


async def test_nothing_without_a_name_goes_back_to_a_later_window(counting: Counting) -> None:
    limiter = counting.limiter()
    claims = [claim("tokens", 100, 60), claim("pictures", 100, 60, period=DAY)]
    decision = await limiter.admit("", claims)
    counting.clock.now += 60
    await limiter.admit("", claims[:1])
    await limiter.give_back(decision, [0, 10])
    assert await room(limiter, claims) == [40, 90]


@pytest.mark.parametrize(
    ("limit", "amount", "fits"),
    [(0, 0, True), (0, 1, False), (5, 6, False), (5, 10**15, False), (5, 5, True), (2**53, 2**53, True)],
)
async def test_edges_of_limits(counting: Counting, limit: int, amount: int, fits: bool) -> None:
    limiter, one = counting.limiter(), claim("tokens", limit, amount)
    decision = await limiter.admit("a", [one])
    assert (decision.refused is None) is fits
    assert left(decision) == [limit - amount if fits else limit]
    assert refused(await limiter.admit("b", [claim("tokens", limit, 0)])) is None


async def test_large_numbers_are_exact(counting: Counting) -> None:
    limiter, most = counting.limiter(), 2**53
    assert left(await limiter.admit("a", [claim("tokens", most, most - 1)])) == [1]
    assert refused(await limiter.admit("b", [claim("tokens", most, 2)]))
    assert left(await limiter.admit("c", [claim("tokens", most, 1)])) == [0]
    await limiter.settle("a", [most - 2])
    assert left(await limiter.admit("d", [claim("tokens", most, 1)])) == [0]


async def test_a_lowered_limit_leaves_nothing_but_refuses_no_claim_of_nothing(counting: Counting) -> None:
    limiter = counting.limiter()
    await limiter.admit("a", [claim("pictures", 10, 8)])
    assert left(await limiter.admit("b", [claim("pictures", 3, 0)])) == [0]
    assert refused(await limiter.admit("c", [claim("pictures", 3, 1)]))


async def test_claims_on_one_counter_are_added_up(counting: Counting) -> None:
    limiter, twice = counting.limiter(), [claim("tokens", 100, 60), claim("tokens", 100, 50)]
    decision = await limiter.admit("a", twice)
    assert decision.refused == decision.standings[1]
    assert left(await limiter.admit("b", [claim("tokens", 100, 60), claim("tokens", 110, 50)])) == [0, 0]
    await limiter.settle("b", [10, 20])
    assert await room(limiter, [claim("tokens", 100)]) == [70]


async def test_counters_of_others_are_others(counting: Counting) -> None:
    limiter = counting.limiter()
    mine = claim("requests", 1)
    others = [claim("requests", 1, scope="tenant:a"), claim("tokens", 1), claim("requests", 1, period=61)]
    for number, each in enumerate([mine, *others]):
        assert refused(await limiter.admit(str(number), [each])) is None


async def test_places_are_taken_and_given_back(counting: Counting) -> None:
    limiter, one = counting.limiter(), claim("concurrent", 2)
    assert [left(await limiter.admit(name, [one])) for name in "ab"] == [[1], [0]]
    decision = await limiter.admit("c", [one])
    assert refused(decision) == "concurrent"
    assert decision.standings[0].reset == 0
    for _ in range(2):
        await limiter.settle("a", [0])
    assert left(await limiter.admit("c", [one])) == [0]
    assert refused(await limiter.admit("d", [one]))


async def test_a_refused_request_takes_no_place(counting: Counting) -> None:
    limiter, gauge = counting.limiter(), claim("concurrent", 1)
    assert refused(await limiter.admit("a", [gauge, claim("tokens", 1, 2)])) == "tokens"
    assert left(await limiter.admit("b", [gauge])) == [0]


class TestSeeds:
    async def test_long_counters_begin_with_what_the_ledger_knows(self, counting: Counting) -> None:
        told = Told(30)
        limiter = counting.limiter(told)
        claims = [claim("requests", 100, period=HOUR), claim("pictures", 40, 4, period=DAY), claim("tokens", 9, 9)]
        assert left(await limiter.admit("a", claims)) == [69, 6, 0]
        assert told.asked == [
            ("key:a:requests:3600", int(NOON * 1000)),
            ("key:a:pictures:86400", int(NOON - DAY / 2) * 1000),
        ]
        assert refused(await limiter.admit("b", claims[:2])) is None
        assert len(told.asked) == 2
        counting.clock.now += HOUR
        assert left(await limiter.admit("c", claims[:1])) == [69]

    async def test_what_the_ledger_knows_may_be_more_than_the_limit(self, counting: Counting) -> None:
        told = Told(50)
        limiter, one = counting.limiter(told), claim("pictures", 40, 1, period=DAY)
        for name in "abc":
            decision = await limiter.admit(name, [one])
            assert (refused(decision), left(decision)) == ("pictures", [0])
        assert len(told.asked) == 1

    async def test_racers_ask_together_and_count_once(self, counting: Counting) -> None:
        told = Told(90)

        async def slow(of: Claim, start: int) -> int:
            await asyncio.sleep(0.05)
            return await told(of, start)

        limiters = [counting.limiter(slow) for _ in range(2 if counting.shared else 1)]
        one = claim("requests", 100, period=HOUR)
        decisions = await asyncio.gather(*(limiters[n % len(limiters)].admit(str(n), [one]) for n in range(50)))
        assert sum(decision.refused is None for decision in decisions) == 10
        assert len(told.asked) <= 5 * len(limiters)  # not by each: who comes just after it was told asks again

    async def test_what_is_held_while_another_asks_is_not_lost(self, counting: Counting) -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow(of: Claim, start: int) -> int:
            asked.set()
            await answer.wait()
            return 5

        async def quick(of: Claim, start: int) -> int:
            return 5

        late = counting.limiter(slow)
        soon = counting.limiter(quick) if counting.shared else late
        one = claim("requests", 100, period=HOUR)
        waiting = asyncio.create_task(late.admit("late", [one]))
        await asked.wait()
        if counting.shared:
            assert left(await soon.admit("soon", [one])) == [94]
        answer.set()
        assert left(await waiting) == [93 if counting.shared else 94]

    async def test_a_window_that_ends_while_the_ledger_is_asked(self, counting: Counting) -> None:
        asked: list[int] = []

        async def turns(of: Claim, start: int) -> int:
            asked.append(start)
            counting.clock.now = max(counting.clock.now, NOON + HOUR)
            return 10 * len(asked)

        limiter = counting.limiter(turns)
        assert left(await limiter.admit("a", [claim("requests", 100, period=HOUR)])) == [79]
        assert asked == [NOON * 1000, (NOON + HOUR) * 1000]

    async def test_a_ledger_that_fails_counts_as_nothing_and_is_told_once(
        self, counting: Counting, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(of: Claim, start: int) -> int:
            raise OSError("no ledger")

        limiter = counting.limiter(broken)
        with caplog.at_level(logging.WARNING):
            for scope in ("key:a", "key:b"):
                assert left(await limiter.admit(scope, [claim("requests", 9, period=HOUR, scope=scope)])) == [8]
        assert len(caplog.records) == 1
        assert "no ledger" in caplog.text

    async def test_a_request_cancelled_while_the_ledger_is_asked_holds_nothing(self, counting: Counting) -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow(of: Claim, start: int) -> int:
            asked.set()
            await answer.wait()
            return 0

        limiter, claims = counting.limiter(slow), [claim("requests", 9, period=HOUR), claim("concurrent", 1)]
        task = asyncio.create_task(limiter.admit("a", claims))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer.set()
        assert left(await limiter.admit("b", claims)) == [8, 0]


@pytest.mark.parametrize("jump", [DAY, -DAY])
async def test_a_clock_that_jumps_by_a_day(counting: Counting, jump: int) -> None:
    """No window is filled twice, what was held goes back to its own, and nobody is shut out for a day."""
    limiter, one = counting.limiter(), claim("tokens", 10, 10)
    await limiter.admit("a", [one])
    counting.clock.now += jump
    decision = await limiter.admit("b", [one])
    assert (refused(decision), decision.standings[0].reset) == (None, 60)
    await limiter.settle("a", [4])
    assert await room(limiter, [one]) == [0]
    counting.clock.now -= jump
    assert await room(limiter, [one]) == [6]
    await limiter.settle("b", [0])
    assert await room(limiter, [one]) == [6]
