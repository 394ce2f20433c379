"""A clock wakes who waits for a step, not before it is over, and nobody who has left."""

import asyncio

from qwen3vl_compat.engines.clock import Clock

SECONDS = 0.02


async def test_a_step_is_reached_by_all_and_never_early() -> None:
    clock = Clock(SECONDS)
    first = clock.steps

    async def wait(steps: int) -> int:
        await clock.reach(first + steps)
        return clock.steps - first

    reached = await asyncio.gather(*(wait(number % 3 + 1) for number in range(60)))
    assert all(steps >= number % 3 + 1 for number, steps in enumerate(reached))


async def test_what_is_over_is_not_waited_for() -> None:
    clock = Clock(SECONDS)
    async with asyncio.timeout(0):
        await clock.reach(clock.steps)
        await clock.reach(clock.steps - 100)


async def test_who_leaves_takes_no_step_from_the_others() -> None:
    clock = Clock(SECONDS)
    leaves, stays = (asyncio.create_task(clock.reach(clock.steps + 2)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await stays
    assert leaves.cancelled()
