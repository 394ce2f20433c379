"""Answers kept in Redis, which fails in every way it can: nobody hears an error, or anything that is not the answer."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from sqlalchemy import select

from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.tables import ledger
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies.caching.shared import AGAIN_S
from qwen3vl_compat.policies.limiting.shared import PREFIX
from qwen3vl_compat.server.app import build_app, build_service
from qwen3vl_compat.settings import CacheSettings, LimitSettings, Quotas, Settings
from tests.policies.proxy import Mode, Proxy
from tests.redis_server import RedisServer

WAIT = 0.25
"""Seconds for Redis, more than by default: the machine may be busy."""
HIT_COST, PRICE = (6 + 4) * 3_000 + 7_000_000, {"text_in": "10", "cached_in": "3", "out": "40", "per_request": "0.007"}
WORDS = ("good day", "well well", "one two", "over there")
Redises = Callable[[str, str], tuple[str, str]]
PLACES: dict[str, Redises] = {
    "alone": lambda url, other: (url, ""),
    "with the limits": lambda url, other: (url, url),
    "beside the limits": lambda url, other: (url, other),
}
"""Where answers are kept and limits counted, of a Redis that fails and one that does not."""


class Counted(ScriptedEngine):
    """Notes for whom it has made something."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._pause = 0
        self.made: list[str] = []

    async def generate(self, request: Request) -> Events:
        self.made.append(request.id)
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                yield event


class Server:
    """One server process's application, on a database that others may share."""

    def __init__(self, folder: Path, cache: str, limits: str = "", engine: Counted | None = None) -> None:
        settings = Settings(
            cache=CacheSettings(redis=cache, redis_wait=WAIT), limits=LimitSettings(redis=limits, redis_wait=WAIT)
        )
        self.accounts = open_accounts(open_database(folder), settings)
        self.accounts.keys.ensure_first()
        self.engine = engine or Counted()
        self.service = build_service(settings, self.engine, self.accounts)
        self.app: Any = build_app(self.service)
        self.seen: list[httpx.Response] = []

    async def ask(self, words: str, key: str, *, google: bool = False, stream: bool = False) -> httpx.Response:
        """Ask; it must be answered, with what these words are answered with, whatever becomes of Redis."""
        path = "/v1/chat/completions"
        body: Any = {
            "model": "qwen3-vl", "messages": [{"role": "user", "content": words}], "temperature": 0, "stream": stream,
        }  # fmt: skip
        if google:
            path = f"/v1beta/models/qwen3-vl:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}"
            body = {"contents": [{"parts": [{"text": words}]}], "generationConfig": {"temperature": 0}}
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            answer = await client.post(path, json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        assert text_of(answer) == f"You said: {words}"
        assert answer.headers["x-cache"] in ("hit", "miss")
        self.seen.append(answer)
        return answer

    async def kept(self, key: str, *words: str) -> None:
        """Ask, and wait until it is kept."""
        for each in words:
            await self.ask(each, key)
        if self.service.cache._landing:
            await asyncio.wait(self.service.cache._landing)

    async def storm(self, key: str, number: int = 24) -> list[str]:
        """Many at once, of every form; returns what the cache is said to have had to do with each."""
        forms = [(google, stream) for google in (False, True) for stream in (False, True)]
        asked = zip(islice(cycle(WORDS), number), islice(cycle([*forms, forms[0]]), number), strict=True)
        answers = [self.ask(words, key, google=google, stream=stream) for words, (google, stream) in asked]
        return [answer.headers["x-cache"] for answer in await asyncio.gather(*answers)]

    async def close(self) -> None:
        await self.service.cache.close()
        await self.service.close_books()
        self.accounts.database.dispose()


def text_of(answer: httpx.Response) -> str:
    """What an answer says, whatever its wire and form."""
    if answer.headers["content-type"].startswith("application/json"):
        bodies = [answer.json()]
    else:
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ") and line[6:] != "[DONE]"]
        bodies = [json.loads(line) for line in lines]
    said = ""
    for body in bodies:
        for choice in body.get("choices", ()):
            said += (choice.get("message") or choice["delta"]).get("content") or ""
        for candidate in body.get("candidates", ()):
            said += "".join(part["text"] for part in candidate["content"]["parts"])
    return said


class Place:
    """A Redis behind a proxy, another one, and what is made to use them; all of it is checked and closed at the end."""

    def __init__(self, folder: Path, own: RedisServer, other: RedisServer, proxy: Proxy, stack: AsyncExitStack) -> None:
        self.folder, self.redis, self.other, self.proxy, self._stack = folder, own, other, proxy, stack
        self.servers: list[Server] = []

    async def server(self, place: str, folder: str = "state", engine: Counted | None = None) -> tuple[Server, str]:
        """A server, and a key of its with limits that nobody reaches."""
        made = Server(self.folder / folder, *PLACES[place](self.proxy.url, self.other.url), engine=engine)
        await made.service.open_books()
        self._stack.push_async_callback(made.close)
        self.servers.append(made)
        made.accounts.prices.set("*", **PRICE)
        limits = {"requests": "100000/day", "tokens": 10**9}
        made.accounts.keys._usual = made.accounts.usual
        key = made.accounts.keys.create("default")
        made.accounts.tenants.change("default", limits=limits)
        return made, key.secret_text

    def check_rows(self) -> None:
        """Each answer has one row, which says what its head said; who is said to have missed, and nobody else, has had
        something made for it.
        """
        with self.servers[0].accounts.database.connect() as connection:
            rows = {row.id: row for row in connection.execute(select(ledger))}
        seen = [answer for server in self.servers for answer in server.seen]
        assert len(seen) == len(rows)
        for answer in seen:
            row = rows[answer.headers["x-request-id"]]
            assert (row.state, row.finish, row.cache) == ("final", "stop", answer.headers["x-cache"])
            assert row.text_in + row.cached_in == 6
            assert row.out == 4
            assert row.cost == (HIT_COST if row.cache == "hit" else 6 * 10_000 + 4 * 40_000 + 7_000_000)
        made = [each for server in self.servers for each in server.engine.made]
        assert sorted(made) == sorted(row.id for row in rows.values() if row.cache == "miss")


@pytest.fixture
async def place(tmp_path: Path, own_redis: RedisServer, redis_server: RedisServer) -> AsyncIterator[Place]:
    redis_server.command("FLUSHALL")
    proxy = Proxy(own_redis.port)
    await proxy.set("pass")
    async with AsyncExitStack() as stack:
        made = Place(tmp_path, own_redis, redis_server, proxy, stack)
        yield made
    await proxy.close()


async def back(server: Server, key: str) -> None:
    """Ask until what is asked is kept again."""
    for _ in range(200):
        for words in WORDS:
            await server.ask(words, key)
        if await server.storm(key, 8) == ["hit"] * 8:
            return
        await asyncio.sleep(AGAIN_S / 5)
    raise AssertionError("answers are not kept again")


@pytest.mark.parametrize("where", PLACES)
async def test_what_is_kept_is_told_again_to_all(place: Place, where: str) -> None:
    server, key = await place.server(where)
    await server.kept(key, *WORDS)
    assert await server.storm(key) == ["hit"] * 24
    assert await server.storm(key) == ["hit"] * 24
    keys = place.redis.command("KEYS", f"{PREFIX}answer:*")
    assert isinstance(keys, list)
    assert len(keys) == len(WORDS)
    for each in keys:
        left = place.redis.command("PTTL", each)
        assert isinstance(left, int)
        assert 0 < left <= 3_600_000
    place.check_rows()


async def faulty(place: Place, where: str, mode: Mode) -> None:
    """Redis fails while requests are under way, and comes back."""
    server, key = await place.server(where)
    await server.storm(key)
    storm = asyncio.create_task(server.storm(key, 60))
    await asyncio.sleep(0)
    await place.proxy.set(mode)
    await storm
    assert set(await server.storm(key, 12)) <= {"hit", "miss"}
    await place.proxy.set("pass")
    await back(server, key)
    place.check_rows()


@pytest.mark.parametrize("mode", ["refuse", "hole", "slow", "garbage"])
async def test_a_fault_on_the_way(place: Place, mode: Mode) -> None:
    await faulty(place, "with the limits", mode)


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("mode", ["refuse", "reset", "hole", "slow", "garbage"])
async def test_every_fault_on_the_way_wherever_limits_are_counted(place: Place, where: str, mode: Mode) -> None:
    await faulty(place, where, mode)


async def test_redis_is_killed_and_comes_back_empty(place: Place) -> None:
    server, key = await place.server("with the limits")
    await server.storm(key)
    storm = asyncio.create_task(server.storm(key, 60))
    await asyncio.sleep(0.01)
    place.redis.kill()
    await storm
    await server.storm(key, 12)
    place.redis.start()
    await back(server, key)
    place.check_rows()


async def test_redis_is_emptied_again_and_again(place: Place) -> None:
    server, key = await place.server("with the limits")
    for _ in range(3):
        await server.storm(key)
        await server.kept(key)
        place.redis.command("FLUSHALL")
        assert "miss" in await server.storm(key)
    place.check_rows()


POISONS: dict[str, Callable[[Sequence[bytes], int], bytes | None]] = {
    "noise": lambda values, at: os.urandom(200),
    "nothing": lambda values, at: b"",
    "cut off": lambda values, at: values[at][: len(values[at]) // 2],
    "another's": lambda values, at: values[at - 1],
    "another's behind its own seal": lambda values, at: values[at][:16] + values[at - 1][16:],
    "its seal and a changed end": lambda values, at: values[at][:-1] + bytes([values[at][-1] ^ 1]),
    "a list": lambda values, at: None,
}


@pytest.mark.parametrize("where", ["alone", "with the limits"])
async def test_a_poisoned_value_is_a_miss(place: Place, where: str) -> None:
    """By the short way and the long one; and the answer that is made then takes its place."""
    server, key = await place.server(where)
    await server.kept(key, *WORDS)
    await server.storm(key)
    await server.kept(key)  # in all forms
    with redis.Redis(port=place.redis.port) as client:
        names = sorted(client.keys(f"{PREFIX}answer:*"))
        for poison in POISONS.values():
            values = [client.get(name) for name in names]
            for at, name in enumerate(names):
                value = poison(values, at)
                client.delete(name)
                if value is None:
                    client.rpush(name, b"a", b"b")
                else:
                    client.set(name, value)
            told = [(await server.ask(words, key)).headers["x-cache"] for words in WORDS]
            assert told == ["miss"] * len(WORDS)
            await back(server, key)  # what lay there as a list was an error for a moment
            await server.kept(key)
    place.check_rows()


@pytest.mark.parametrize("where", ["alone", "with the limits"])
async def test_a_redis_that_takes_no_more(place: Place, where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Full, or a copy that is only to be read: what it has is told, what is new is made each time. It is said once."""
    server, key = await place.server(where)
    await server.kept(key, WORDS[0])
    for spoil, mend in (
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    ):
        place.redis.command(*spoil)
        new = f"{spoil[0].lower()} now"
        told = [(await server.ask(words, key)).headers["x-cache"] for words in (WORDS[0], new, WORDS[0], new)]
        assert told == ["hit", "miss", "hit", "miss"]
        said = [record for record in caplog.records if "answers cannot be kept" in record.getMessage()]
        assert len(said) == 1
        caplog.clear()
        place.redis.command(*mend)
        await back(server, key)
        await server.kept(key)
    place.check_rows()


async def test_servers_on_one_database_answer_with_what_another_was_asked(place: Place) -> None:
    one, key = await place.server("with the limits")
    other, _ = await place.server("with the limits")
    await one.kept(key, *WORDS)
    assert await other.storm(key) == ["hit"] * 24
    assert await other.storm(key) == ["hit"] * 24
    place.check_rows()


@pytest.mark.parametrize("where", ["alone", "with the limits"])
async def test_who_is_refused_money_takes_no_tokens(place: Place, where: str) -> None:
    server, key = await place.server(where)
    await server.kept(key, WORDS[0])
    await server.ask(WORDS[0], key)
    poor = server.accounts.keys.create("default", limits=Quotas(tokens=100, budget="0.007/day")).secret_text
    for _ in range(3):
        with pytest.raises(AssertionError, match="insufficient_quota"):
            await server.ask(WORDS[0], poor)
    server.accounts.keys.change(poor.split("-")[1], limits=Quotas(tokens=100))
    answer = await server.ask(WORDS[0], poor)
    assert (answer.headers["x-cache"], answer.headers["x-ratelimit-remaining-tokens"]) == ("hit", "90")
    place.check_rows()


async def test_two_installations_on_one_redis_have_nothing_of_each_other(place: Place) -> None:
    """Not even where all values of the one are put under the names of the other."""
    one, key = await place.server("alone")
    other, others_key = await place.server("alone", folder="other")
    await one.kept(key, WORDS[0])
    await other.kept(others_key, WORDS[0])
    assert [each.seen[0].headers["x-cache"] for each in (one, other)] == ["miss", "miss"]
    with redis.Redis(port=place.redis.port) as client:
        first, second = client.keys(f"{PREFIX}answer:*")
        ours, theirs = client.get(first), client.get(second)
        client.mset({first: theirs, second: ours})
    assert (await one.ask(WORDS[0], key)).headers["x-cache"] == "miss"
    assert (await other.ask(WORDS[0], others_key)).headers["x-cache"] == "miss"


async def test_another_model_behind_the_same_name_answers_for_itself(place: Place) -> None:
    """The same installation after its model was changed: what the old one said is in Redis still."""
    old, key = await place.server("alone")
    await old.kept(key, WORDS[0])
    script = [(r"(?s)(.*)", r"I say: \1")]
    new, _ = await place.server("alone", engine=Counted(script=script))
    with pytest.raises(AssertionError, match="I say: good day"):
        await new.ask(WORDS[0], key)
    assert len(new.engine.made) == 1
    assert (await old.ask(WORDS[0], key)).headers["x-cache"] == "hit"
