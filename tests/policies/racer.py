"""One racing process: `racer.py URL FIRST COUNT` admits COUNT requests at once on a limit of 10, when told to.

It prints `ready` once it is connected, and then how many passed.
"""

import asyncio
import sys

from qwen3vl_compat.policies.limiting.shared import RedisLimiter
from tests.policies.counting import AGES, PATIENCE, claim


async def main(url: str, first: int, count: int) -> None:
    limiter = RedisLimiter(url, wait=PATIENCE)
    await limiter.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    claims = [claim("requests", 10, period=AGES), claim("tokens", 10**6, 7, period=AGES)]
    asked = [limiter.admit(f"r{number}", claims) for number in range(first, first + count)]
    print(sum(decision.refused is None for decision in await asyncio.gather(*asked)), flush=True)
    await limiter.close()


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
