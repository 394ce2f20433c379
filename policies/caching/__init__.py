"""Answers that are kept, and where: sealed under the name of what was asked, so that no other is taken for one.

A name is a keyed digest of all that an answer depends on; a seal is one of the name and the value. The key is the
installation's own. So a value that was cut off, changed, moved or written by anybody else is none of ours.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
from msgspec import Raw, Struct

from qwen3vl_compat.events import Event, Usage
from qwen3vl_compat.settings import CacheSettings, SettingsError

SEAL = 16
"""Bytes in front of a value."""


class Answer(Struct, frozen=True, array_like=True, kw_only=True):
    """A whole answer that was given once, and is to be given again."""

    made_at: int
    """Milliseconds since 1970."""
    usage: Usage
    pictures: int
    finish: str
    text: str
    """All that it says: thoughts, words and the arguments of calls."""
    events: Raw
    """As MessagePack, for any wire and any form."""
    id: str
    """Of the request that it was made for, as it stands in `bodies`; `created` is that one's too."""
    created: int
    bodies: dict[str, bytes]
    """As it goes out whole, by its form (`naming.form_of`)."""

    def replay(self) -> tuple[Event, ...]:
        """Its events."""
        return msgspec.msgpack.decode(self.events, type=tuple[Event, ...])

    def body(self, form: str, request: str, created: int) -> bytes:
        """The whole answer as it goes out to another request, by its id.

        Ids are random, so that no text holds one. `created` is told on OpenAI's wire alone, and before all text.
        """
        body = self.bodies[form].replace(self.id.encode(), request.encode())
        if not form.startswith("openai"):
            return body
        return body.replace(b'"created":%d,' % self.created, b'"created":%d,' % created, 1)


class Store(Protocol):
    """Keeps values by name for a while. None of these raises: what cannot be had is not there."""

    async def get(self, name: str) -> bytes | None:
        """The value, if it is there still."""
        ...

    async def put(self, name: str, value: bytes, life: float) -> None:
        """Keep a value for so many seconds."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class Shelf:
    """A store, and the installation's key to it."""

    def __init__(
        self, store: Store, secret: bytes, settings: CacheSettings, clock: Callable[[], float] = time.time
    ) -> None:
        self.store = store
        self._secret, self._settings, self._clock = hashlib.sha256(b"cache" + secret).digest(), settings, clock

    def name(self, material: bytes) -> str:
        """The name of what was asked, 64 hexadecimal digits."""
        return hashlib.blake2b(material, key=self._secret, digest_size=32).hexdigest()

    def seal(self, name: str, answer: Answer) -> bytes:
        """The answer as it is kept."""
        value = msgspec.msgpack.encode(answer)
        return self._mark(name, value) + value

    def open(self, name: str, value: bytes, max_age: float | None = None) -> Answer | None:
        """What was sealed under this name, unless it is too old; None for anything else."""
        body = memoryview(value)[SEAL:]
        if not hmac.compare_digest(value[:SEAL], self._mark(name, body)):
            return None
        try:
            answer = msgspec.msgpack.decode(body, type=Answer)
        except msgspec.MsgspecError:
            return None  # sealed by another version of this program
        age = self.age(answer)
        return None if age > min(self._settings.life, self._settings.life if max_age is None else max_age) else answer

    def age(self, answer: Answer) -> float:
        """Seconds since it was made."""
        return max(0.0, self._clock() - answer.made_at / 1000)

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return int(self._clock() * 1000)

    async def find(self, name: str, max_age: float | None = None) -> Answer | None:
        """The answer of that name."""
        value = await self.store.get(name)
        return None if value is None else self.open(name, value, max_age)

    async def keep(self, name: str, answer: Answer) -> None:
        """Put an answer there for what is left of its life, unless it is too large."""
        value, left = self.seal(name, answer), self._settings.life - self.age(answer)
        if len(value) <= self._settings.max_bytes and left > 0:
            await self.store.put(name, value, left)

    def _mark(self, name: str, value: bytes | memoryview) -> bytes:
        mark = hashlib.blake2b(name.encode(), key=self._secret, digest_size=SEAL)
        mark.update(value)
        return mark.digest()


def key_of(name: str) -> str:
    """The key of a value in Redis, behind the limits' prefix: a script that looks for one decides about limits too."""
    return f"answer:{name}"


def make_store(settings: CacheSettings) -> Store | None:
    """Where answers are kept, if they are; raises SettingsError."""
    from qwen3vl_compat.policies.caching.memory import MemoryStore

    if settings.redis:
        try:
            from qwen3vl_compat.policies.caching.shared import RedisStore
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "redis":
                raise
            raise SettingsError("cache.redis needs the package redis: install qwen3vl-compat[redis].") from None
        try:
            return RedisStore(settings)
        except ValueError as error:
            raise SettingsError(f"cache.redis cannot be used: {error}.") from None
    return MemoryStore(int(settings.memory * 2**20)) if settings.memory else None
