"""The moderators that the settings name, and the connections to those that are elsewhere."""

import asyncio
import os
import re
import ssl
from collections.abc import Sequence
from functools import cache

import certifi
import httpcore

from qwen3vl_compat.policies.moderation import Moderator, Note, Unavailable, Verdict, unnoted
from qwen3vl_compat.policies.moderation.service import Service
from qwen3vl_compat.policies.moderation.words import make_words
from qwen3vl_compat.settings import ModerationSettings, ModeratorSettings, SettingsError
from qwen3vl_compat.wire import moderations

MOST_BYTES = 2**20
"""Of an answer."""
CONNECTIONS, IDLE, IDLE_S = 64, 8, 30.0
"""To one service at once, kept for the next questions, and for how long."""
_BROKEN = (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 /_-]{0,59}")


class BadAnswer(Unavailable):
    """What a service answered is no verdict."""


class Questions:
    """Asks one service, over connections that are kept open."""

    def __init__(self, url: str, key: str, model: str) -> None:
        """SettingsError where the URL cannot be asked."""
        try:
            self._url = httpcore.URL(url)
            if not self._url.host:
                raise ValueError
        except ValueError:
            raise SettingsError(f"The moderator's url {url[:200]} cannot be asked.") from None
        self._model = model
        self._headers = [("Content-Type", "application/json"), ("Accept-Encoding", "identity")]
        self._headers += [("Authorization", f"Bearer {key}")] if key else []
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def ask(self, texts: Sequence[str], pictures: Sequence[bytes]) -> Verdict:
        """Its verdict on all of these together; whatever goes wrong is raised."""
        body = moderations.encode_request(self._model, texts, pictures)
        try:
            answer = await self._posted(body)
        except _BROKEN:  # most likely a connection that was closed while nobody used it
            answer = await self._posted(body)
        try:
            results = moderations.decode_answer(answer)
        except ValueError:
            raise BadAnswer("its answer is no verdict in OpenAI's form") from None
        names = dict.fromkeys(name for result in results for name in result.categories if _NAME.fullmatch(name))
        told = {name for result in results for name in result.scores}
        scores = {name: max(result.scores.get(name, 0.0) for result in results) for name in sorted(told)}
        return Verdict(any(result.flagged for result in results), tuple(names), scores)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._pool is not None:
            await self._pool.aclose()

    async def _posted(self, body: bytes) -> bytes:
        pool = self._connections()
        headers = [("Host", _authority(self._url)), *self._headers, ("Content-Length", str(len(body)))]
        try:
            async with pool.stream("POST", self._url, headers=headers, content=body) as response:
                if response.status != 200:  # a redirect too: it would lead the key elsewhere
                    raise BadAnswer(f"it answers with status {response.status}")
                answer = bytearray()
                async for piece in response.aiter_stream():
                    answer += piece
                    if len(answer) > MOST_BYTES:
                        raise BadAnswer(f"its answer is larger than {MOST_BYTES} bytes")
                return bytes(answer)
        except asyncio.CancelledError:
            await _close_forgotten(pool)
            raise

    def _connections(self) -> httpcore.AsyncConnectionPool:
        """Made in the loop that uses them."""
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                _context(), max_connections=CONNECTIONS, max_keepalive_connections=IDLE, keepalive_expiry=IDLE_S
            )
        return self._pool


def make_moderators(settings: ModerationSettings, note: Note = unnoted) -> list[Moderator]:
    """All of them in their order; SettingsError."""
    made: list[Moderator] = [
        make_words(each, note) if each.kind == "words" else _service(each, note) for each in settings.moderators
    ]
    names = [each.name for each in made]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"Two moderators are named '{name}': give each a name of its own.")
    return made


def _service(settings: ModeratorSettings, note: Note) -> Service:
    name, key = settings.name or "service", settings.key
    if not settings.url:
        raise SettingsError(f"The moderator '{name}' needs the url of its service.")
    if settings.key_variable:
        key = os.environ.get(settings.key_variable, "")
        if not key:
            raise SettingsError(f"The moderator '{name}' needs its key in the variable {settings.key_variable}.")
    if key and not (key.isascii() and key.isprintable()):
        raise SettingsError(f"The key of the moderator '{name}' holds characters that no header can.")
    questions = Questions(settings.url, key, settings.model)
    return Service(settings, questions.ask, questions.close, note=note)


async def _close_forgotten(pool: httpcore.AsyncConnectionPool) -> None:
    """Close connections that were opened for a question given up before it was sent: the pool would keep them for ever.

    One that is another's gets closed with them now and then; the pool then opens a new one for it.
    """
    for connection in pool.connections:
        if ", NEW," in connection.info():
            await connection.aclose()


def _authority(url: httpcore.URL) -> str:
    host, usual = url.host.decode(), {b"http": 80, b"https": 443}[url.scheme]
    return host if url.port in (None, usual) else f"{host}:{url.port}"


@cache
def _context() -> ssl.SSLContext:
    """Trusts what the machine trusts, where it trusts anybody, and certifi's authorities."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
