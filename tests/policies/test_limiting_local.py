"""What is the process's own: its share of limits, and what it counts for others."""

import pytest

from qwen3vl_compat.policies.limiting.local import SWEPT, LocalLimiter
from tests.policies.counting import DAY, HOUR, NOON, Clock, Told, claim, left, refused, room


@pytest.mark.parametrize(
    ("limit", "processes", "share"), [(10, 1, 10), (10, 3, 3), (10, 10, 1), (10, 11, 1), (0, 3, 0), (10, 0, 10)]
)
async def test_a_process_has_its_share(limit: int, processes: int, share: int) -> None:
    limiter = LocalLimiter(None, Clock(), lambda: processes)
    for one in (claim("requests", limit), claim("concurrent", limit)):
        passed = [await limiter.admit(f"{one.kind}{n}", [one]) for n in range(20)]
        assert sum(decision.refused is None for decision in passed) == share
        assert left(passed[0]) == [max(0, share - 1)]


@pytest.mark.parametrize(("told", "passes"), [(0, 25), (40, 15), (98, 1), (99, 1), (100, 0), (150, 0)])
async def test_of_what_the_ledger_left_it_has_its_share(told: int, passes: int) -> None:
    limiter, one = LocalLimiter(Told(told), Clock(), lambda: 4), claim("pictures", 100, period=DAY)
    decisions = [await limiter.admit(str(n), [one]) for n in range(100)]
    assert sum(decision.refused is None for decision in decisions) == passes


async def test_a_share_follows_the_number_of_processes() -> None:
    processes = [4]
    limiter, one = LocalLimiter(None, Clock(), lambda: processes[0]), claim("requests", 8)
    assert [refused(await limiter.admit(name, [one])) for name in "abc"] == [None, None, "requests"]
    processes[0] = 2
    assert left(await limiter.admit("d", [one])) == [1]


async def test_windows_that_are_over_are_forgotten() -> None:
    clock = Clock()
    limiter = LocalLimiter(Told(5), clock)
    long = claim("pictures", 100, 7, period=DAY)
    await limiter.admit("long", [long])
    for number in range(3 * SWEPT):
        clock.now += 1
        await limiter.admit(
            "", [claim("requests", 5, period=1, scope=f"ip:{number}"), claim("requests", 9, 0, period=HOUR)]
        )
        assert len(limiter._counts) <= SWEPT + 1
    assert await room(limiter, [long]) == [88]


async def test_adopted_requests_have_their_places_and_nothing_else() -> None:
    limiter, claims = LocalLimiter(None, Clock()), [claim("tokens", 10, 9), claim("concurrent", 2)]
    await limiter.admit("a", claims)
    for name in "abc":
        limiter.adopt(name, claims)
    assert await room(limiter, claims) == [1, 0]
    assert refused(await limiter.admit("d", claims[1:])) == "concurrent"
    for name in "bc":
        await limiter.settle(name, [0, 0])
    assert await room(limiter, claims) == [1, 1]


async def test_what_the_ledger_can_tell_is_forgotten_when_asked_and_said_where_it_changed() -> None:
    told = Told(5)
    limiter = LocalLimiter(told, Clock())
    changed, only_told, short = (
        claim("pictures", 9, 3, period=DAY),
        claim("requests", 9, 0, period=HOUR),
        claim("tokens", 9, 4),
    )
    await limiter.admit("a", [changed, only_told, short])
    assert limiter.forget() == [(changed.counter, int(NOON - DAY / 2) * 1000)]
    assert limiter.forget() == []
    told.used = 8
    assert await room(limiter, [changed, only_told, short]) == [1, 1, 5]
    await limiter.settle("a", [0, 0, 0])
    assert await room(limiter, [changed, only_told, short]) == [1, 1, 9]
