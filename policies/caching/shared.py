"""Values kept in Redis, for several processes. While it is lost nothing is there, and nobody waits for it."""

import asyncio
import logging

from qwen3vl_compat.policies.caching import key_of
from qwen3vl_compat.policies.limiting.line import Line, Lost, Patience, ResponseError
from qwen3vl_compat.policies.limiting.shared import PREFIX
from qwen3vl_compat.settings import CacheSettings

log = logging.getLogger(__name__)

AGAIN_S = 0.5
"""Between two tries of a lost Redis."""


class RedisStore:
    """One key for each value."""

    def __init__(self, settings: CacheSettings) -> None:
        """Raises ValueError for a URL that is none."""
        self._line, self._wait = Line(settings.redis), settings.redis_wait
        self._lost, self._refused = False, False
        self._again_at = 0.0

    async def get(self, name: str) -> bytes | None:
        value = await self._call("GET", PREFIX + key_of(name))
        return value if isinstance(value, bytes) else None

    async def put(self, name: str, value: bytes, life: float) -> None:
        if await self._call("SET", PREFIX + key_of(name), value, "PX", max(1, int(life * 1000))) is not None:
            self._refused = False

    async def close(self) -> None:
        await self._line.close()

    async def _call(self, *words: str | bytes | int) -> object:
        now = asyncio.get_running_loop().time()
        if self._lost:
            if now < self._again_at:
                return None
            self._again_at = now + AGAIN_S  # one tries, the others go on without
        try:
            answer = await self._line.call(Patience(self._wait), *words)
        except ResponseError as refusal:  # no memory, a key of another kind
            self._say(str(refusal))
            self._refused = True
            return None
        except Lost as failure:
            self._say(str(failure))
            self._lost, self._again_at = True, asyncio.get_running_loop().time() + AGAIN_S
            return None
        if self._lost:
            self._lost = False
            log.warning("Redis is back: answers are kept in it again")
        return answer

    def _say(self, why: str) -> None:
        """Once, until it works again."""
        if not (self._lost or self._refused):
            log.warning("answers cannot be kept in Redis now (%s)", why)
