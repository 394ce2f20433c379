"""The short way of requests that come again byte for byte: when it is taken, and that nothing can be told by it."""

import asyncio
import base64
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from qwen3vl_compat.accounts.database import writing
from qwen3vl_compat.accounts.tables import ledger
from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies.limiting import Claim
from qwen3vl_compat.server.app import build_app
from qwen3vl_compat.server.repeats import LARGE
from qwen3vl_compat.settings import LedgerSettings, ModerationSettings, ModeratorSettings, Quotas, Settings
from qwen3vl_compat.wire import anthropic_request, google_request, openai_request
from tests.server.test_app import House

OPENAI = ("/v1/chat/completions", {
    "model": "qwen3-vl", "messages": [{"role": "user", "content": "good day"}], "temperature": 0, "max_tokens": 50,
})  # fmt: skip
GOOGLE = ("/v1beta/models/qwen3-vl:generateContent", {
    "contents": [{"role": "user", "parts": [{"text": "good day"}]}],
    "generationConfig": {"temperature": 0, "maxOutputTokens": 50},
})  # fmt: skip
ANTHROPIC = ("/v1/messages", {
    "model": "qwen3-vl", "messages": [{"role": "user", "content": "good day"}], "temperature": 0, "max_tokens": 50,
})  # fmt: skip
WIRES = {"openai": OPENAI, "google": GOOGLE, "anthropic": ANTHROPIC}
TOKENS = 10
"""Of that prompt and its answer."""
Call = tuple[str, Any]


class Mortal(ScriptedEngine):
    """Can be taken for stopped, and something may happen while it answers."""

    alive = True
    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def generate(self, request: Request) -> Events:
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                yield event
        if self.meanwhile is not None:
            await self.meanwhile()


class Repeating(House):
    """A server's application, in which is counted how often a body is taken apart."""

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        self.engine = Mortal()
        super().__init__(folder, settings, self.engine)
        self.accounts.prices.set("*", text_in="10", cached_in="3", out="40", reasoning="50", per_request="0.007")
        self.app: Any = build_app(self.service)
        self.secret = self.key.secret_text

    async def ask(self, call: Call = OPENAI, key: str | None = None, **headers: str) -> httpx.Response:
        """Ask with the model key, or another; the body goes out as it is if it is bytes, or an iterator of them."""
        path, body = call
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        told = {"authorization": f"Bearer {key or self.secret}", "content-type": "application/json"}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.post(path, content=content, headers=told)

    async def short(self, call: Call = OPENAI, key: str | None = None, **headers: str) -> httpx.Response:
        """Ask; it must be answered without its body having been taken apart."""
        with decodings() as seen:
            answer = await self.ask(call, key, **headers)
        assert not seen
        return answer

    async def long(self, call: Call = OPENAI, key: str | None = None, **headers: str) -> httpx.Response:
        """Ask; its body must have been taken apart."""
        with decodings() as seen:
            answer = await self.ask(call, key, **headers)
        assert len(seen) == 1
        return answer

    async def learnt(self, call: Call = OPENAI) -> httpx.Response:
        """Ask until the short way is known; returns the answer that came by it."""
        assert (await self.long(call)).status_code == 200
        answer = await self.short(call)
        assert (answer.status_code, answer.headers["x-cache"]) == (200, "hit")
        return answer

    def new_key(self, **limits: Any) -> str:
        return self.accounts.keys.create("default", limits=Quotas(**limits)).secret_text

    def rows(self) -> list[Any]:
        with self.accounts.database.connect() as connection:
            return list(connection.execute(select(ledger).order_by(ledger.c.created_at)))


@contextmanager
def decodings() -> Iterator[list[str]]:
    """Which bodies are taken apart meanwhile: told by what Python itself says that it calls."""
    ours = {each.decode_request.__code__ for each in (openai_request, google_request, anthropic_request)}
    seen: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in ours:
            seen.append(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Repeating]:
    async with housed(tmp_path) as made:
        yield made


@asynccontextmanager
async def housed(folder: Path, settings: Settings | None = None) -> AsyncIterator[Repeating]:
    made = Repeating(folder / "state", settings)
    await made.service.open_books()
    yield made
    await made.service.cache.close()
    await made.service.close_books()
    made.accounts.database.dispose()


def text_of(answer: httpx.Response) -> str:
    body = answer.json()
    if "choices" in body:
        return body["choices"][0]["message"]["content"]
    if "content" in body:
        return body["content"][0]["text"]
    return body["candidates"][0]["content"]["parts"][0]["text"]


def told(answer: httpx.Response) -> dict[str, str]:
    """The head without what is another one's each time."""
    return {
        name: value
        for name, value in answer.headers.items()
        if name not in ("x-request-id", "request-id") and not name.startswith("x-ratelimit-reset")
    }


# ----------------------------------------------------------------------------------------------------- what it answers


@pytest.mark.parametrize("wire", WIRES)
async def test_what_came_before_is_answered_without_being_read(house: Repeating, wire: str) -> None:
    """And as it would be by the long way: the same body but for its id, the same head, the same row."""
    first = await house.long(WIRES[wire])
    short = await house.short(WIRES[wire])
    long = await house.long(WIRES[wire], cache_control="max-age=60")
    assert [answer.headers["x-cache"] for answer in (first, short, long)] == ["miss", "hit", "hit"]
    assert told(short) == told(long)
    assert text_of(first) == text_of(short) == text_of(long) == "You said: good day"
    ids = [answer.headers["x-request-id"] for answer in (first, short, long)]
    assert len(set(ids)) == 3
    assert all(each in answer.text for each, answer in zip(ids, (first, short, long), strict=True))
    same = json.loads(long.text.replace(ids[2], ids[1]))
    assert short.json() | {"created": 0} == same | {"created": 0}
    varying = {"id", "created_at", "started_at", "ended_at"}
    rows = [{key: value for key, value in row._mapping.items() if key not in varying} for row in house.rows()]
    assert rows[1] == rows[2]
    assert (rows[1]["cache"], rows[1]["cached_in"], rows[1]["out"]) == ("hit", 6, 4)


async def test_calls_and_times_in_them_are_told_as_they_were(house: Repeating) -> None:
    """An argument called `created` that is the very second in which the answer was made is no time of ours."""
    for _ in range(5):  # until a second does not end just then
        now = int(time.time())
        arguments = {"created": now, "a": [1, "b"]}
        body: dict[str, Any] = {
            "contents": [{"parts": [{"text": f"call f with {json.dumps(arguments)}"}]}],
            "tools": [{"functionDeclarations": [{"name": "f"}]}],
            "generationConfig": {"temperature": 0},
        }
        await house.long((GOOGLE[0], body))
        if int(time.time()) == now:
            break
    await asyncio.sleep(now + 1.1 - time.time())
    answer = await house.short((GOOGLE[0], body))
    assert answer.json()["candidates"][0]["content"]["parts"][0]["functionCall"]["args"] == arguments


async def test_nothing_is_decoded_of_a_picture_that_was_answered_before(house: Repeating) -> None:
    """The children that decode are gone by then."""
    url = f"data:image/png;base64,{base64.b64encode(SAMPLE.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "good day"}]
    call = (OPENAI[0], {**OPENAI[1], "messages": [{"role": "user", "content": content}]})
    await house.service.sandbox.start()
    first = await house.long(call)
    await house.service.sandbox.close()
    for answer in (await house.short(call), await house.long(call, cache_control="max-age=60")):
        assert (answer.status_code, answer.headers["x-cache"]) == (200, "hit")
        assert text_of(answer) == text_of(first)
    assert [row.pictures for row in house.rows()] == [1, 1, 1]


async def test_fields_without_effect_are_named_each_time(house: Repeating) -> None:
    call = (OPENAI[0], {**OPENAI[1], "user": "me", "wonder": 1})
    assert (await house.learnt(call)).headers["x-ignored-fields"] == "user, wonder"


async def test_an_age_is_told(house: Repeating) -> None:
    assert (await house.learnt()).headers["age"] == "0"


async def test_what_was_not_answered_is_not_remembered(house: Repeating) -> None:
    wrong = (OPENAI[0], {**OPENAI[1], "temperature": 3})
    for _ in range(2):
        assert (await house.long(wrong)).status_code == 400
    drawn = (OPENAI[0], {**OPENAI[1], "temperature": 1})
    for _ in range(2):
        assert (await house.long(drawn)).headers["x-cache"] == "off"


async def test_a_stream_is_never_answered_whole(house: Repeating) -> None:
    stream = (OPENAI[0], {**OPENAI[1], "stream": True})
    await house.learnt()
    for _ in range(3):
        answer = await house.long(stream)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-cache"] == "hit"


# -------------------------------------------------------------------------------------------- what goes the long way


OTHERWISE: dict[str, tuple[Call, dict[str, str]]] = {
    "another query": ((f"{OPENAI[0]}?a=1", OPENAI[1]), {}),
    "another content type": (OPENAI, {"content_type": "application/json; charset=utf-8"}),
    "Idempotency-Key": (OPENAI, {"idempotency_key": "one"}),
    "Cache-Control": (OPENAI, {"cache_control": "max-age=60"}),
    "X-Server-Timeout": (OPENAI, {"x_server_timeout": "5"}),
    "the same in other bytes": ((OPENAI[0], json.dumps(OPENAI[1]).encode() + b" "), {}),
    "another path for it": ((GOOGLE[0].replace("v1beta", "v1"), GOOGLE[1]), {}),
}


async def test_what_is_not_the_same_to_the_byte_goes_the_long_way(house: Repeating) -> None:
    for call in WIRES.values():
        await house.long(call)
        await house.ask(call)
    for way, (call, headers) in OTHERWISE.items():
        answer = await house.long(call, **headers)
        assert (answer.status_code, answer.headers["x-cache"], text_of(answer)) == (200, "hit", "You said: good day"), (
            way
        )


async def test_a_body_without_an_announced_length_goes_the_long_way(house: Repeating) -> None:
    await house.learnt()

    async def pieces() -> AsyncIterator[bytes]:
        body = json.dumps(OPENAI[1]).encode()
        for at in range(0, len(body), 10):
            yield body[at : at + 10]

    assert (await house.long((OPENAI[0], pieces()))).headers["x-cache"] == "hit"


async def test_a_large_body_goes_the_long_way(house: Repeating) -> None:
    """It is still found, by what it says."""
    for size, way in ((LARGE, house.short), (LARGE + 1, house.ask)):
        body = json.dumps(OPENAI[1]).encode().ljust(size)
        await house.ask((OPENAI[0], body))
        answer = await way((OPENAI[0], body))
        assert (answer.headers["x-cache"], text_of(answer)) == ("hit", "You said: good day")
    assert body not in (await house.ask((OPENAI[0], body))).content


async def test_another_body_of_the_same_length_is_another_request(house: Repeating) -> None:
    await house.learnt()
    other = json.dumps(OPENAI[1]).replace("good day", "bad days").encode()
    answer = await house.long((OPENAI[0], other))
    assert (answer.headers["x-cache"], text_of(answer)) == ("miss", "You said: bad days")
    assert text_of(await house.short((OPENAI[0], other))) == "You said: bad days"
    assert text_of(await house.short()) == "You said: good day"


async def test_a_key_in_the_query_is_not_part_of_the_request(house: Repeating) -> None:
    await house.learnt(GOOGLE)
    keys = [house.new_key() for _ in range(2)]
    transport = httpx.ASGITransport(app=house.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        for key, status in ((keys[0], 200), (keys[1], 200), ("sk-wrong", 400)):
            with decodings() as seen:
                headers = {"content-type": "application/json"}
                content = json.dumps(GOOGLE[1]).encode()
                answer = await client.post(f"{GOOGLE[0]}?key={key}", content=content, headers=headers)
            assert (answer.status_code, seen) == (status, [])
    assert [row.key for row in house.rows()[2:]] == [key.split("-")[1] for key in keys]


# ------------------------------------------------------------------------------------------- what is asked every time


async def test_the_key_and_its_tenant_are_asked_every_time(house: Repeating) -> None:
    await house.learnt()
    accounts, number = house.accounts, len(house.rows())
    key = accounts.keys.create("default")
    assert (await house.short(key=key.secret_text)).status_code == 200
    accounts.keys.change(key.key.public, models=["another"])
    assert (await house.long(key=key.secret_text)).status_code == 404
    accounts.keys.change(key.key.public, models=["qwen3-vl"], endpoints=["files"])
    assert (await house.short(key=key.secret_text)).status_code == 403
    accounts.keys.change(key.key.public, endpoints=["generate"])
    assert (await house.short(key=key.secret_text)).status_code == 200
    accounts.keys.revoke(key.key.public)
    assert (await house.short(key=key.secret_text)).status_code == 401
    assert len(house.rows()) == number + 2
    accounts.tenants.change("default", status="suspended")
    accounts.keys._recent.forget(house.key.key.public)
    assert (await house.short()).status_code == 403
    assert len(house.rows()) == number + 2


async def test_a_server_that_stops_or_has_lost_its_engine_refuses(house: Repeating) -> None:
    await house.learnt()
    house.engine.alive = False
    assert (await house.long()).status_code == 503
    house.engine.alive = True
    assert (await house.short()).status_code == 200
    house.service.lifecycle.draining = True
    assert (await house.long()).status_code == 503


async def test_a_new_price_is_a_new_cost(house: Repeating) -> None:
    before = await house.learnt()
    house.accounts.prices.set("*", text_in="10", cached_in="6", out="40", per_request="0.008")
    after = await house.short()
    assert (before.headers["x-cost-total"], after.headers["x-cost-total"]) == ("0.00703", "0.00806")
    assert [row.cost for row in house.rows()[-2:]] == [7_030_000, 8_060_000]


async def test_other_limits_on_media_send_it_the_long_way_once(house: Repeating) -> None:
    await house.learnt()
    house.accounts.tenants.change("default", media={"max_images": 3})
    house.accounts.media._recent.forget("default")
    assert (await house.long()).headers["x-cache"] == "hit"
    assert (await house.short()).headers["x-cache"] == "hit"


async def test_an_answer_that_is_kept_no_more_is_made_again(house: Repeating) -> None:
    await house.learnt()
    shelf = house.service.cache.shelf
    assert shelf is not None
    for name in list(shelf.store._values):  # type: ignore[attr-defined]
        shelf.store._drop(name)  # type: ignore[attr-defined]
    assert (await house.long()).headers["x-cache"] == "miss"
    assert (await house.short()).headers["x-cache"] == "hit"


@pytest.mark.parametrize("change", ["cut", "flipped", "another's", "older"])
async def test_what_is_found_there_and_is_not_the_answer_is_not_told(house: Repeating, change: str) -> None:
    await house.learnt()
    await house.long((OPENAI[0], {**OPENAI[1], "messages": [{"role": "user", "content": "bad days"}]}))
    shelf = house.service.cache.shelf
    assert shelf is not None
    values = shelf.store._values  # type: ignore[attr-defined]
    (name, (value, until)), (_, (other, _)) = values.items()
    changed = {
        "cut": value[:-1],
        "flipped": value[:-1] + bytes([value[-1] ^ 1]),
        "another's": other,
        "older": b"\0" * 16 + value[16:],
    }
    values[name] = changed[change], until
    answer = await house.long()
    assert (answer.status_code, answer.headers["x-cache"], text_of(answer)) == (200, "miss", "You said: good day")
    assert (await house.short()).headers["x-cache"] == "hit"


WORDS = ModerationSettings(
    moderators=(
        ModeratorSettings(kind="words", name="asked", words={"a": ["bad"]}, stages=("before",)),
        ModeratorSettings(kind="words", name="said", words={"b": ["said"]}, stages=("after",)),
    )
)


@pytest.mark.parametrize(("off", "status", "finish"), [("asked", 200, "content_filter"), ("said", 400, "")])
async def test_other_moderators_look_again(tmp_path: Path, off: str, status: int, finish: str) -> None:
    """What passed while nobody looked does not pass the short way either once somebody does."""
    call = (OPENAI[0], {**OPENAI[1], "messages": [{"role": "user", "content": "bad"}]})
    async with housed(tmp_path, Settings(moderation=WORDS)) as house:
        house.accounts.tenants.change("default", moderation={"off": ["asked", "said"]})
        for _ in range(3):
            assert text_of(await house.ask(call)) == "You said: bad"
        await house.short(call)
        house.accounts.tenants.change("default", moderation={"off": [off]})
        house.accounts.keys._recent.forget(house.key.key.public)
        for _ in range(2):
            answer = await house.long(call)
            assert answer.status_code == status
            if status == 200:  # whose pictures nobody had looked at, so that it is none of theirs
                assert answer.headers["x-cache"] == "miss"
                assert answer.json()["choices"][0]["finish_reason"] == finish
        house.accounts.tenants.change("default", moderation={"off": ["asked", "said"]})
        for _ in range(2):
            await house.ask(call)
        assert text_of(await house.short(call)) == "You said: bad"


async def test_moderators_that_came_while_it_was_answered_have_looked_at_nothing(tmp_path: Path) -> None:
    call = (OPENAI[0], {**OPENAI[1], "messages": [{"role": "user", "content": "bad"}]})
    async with housed(tmp_path, Settings(moderation=WORDS)) as house:
        house.accounts.tenants.change("default", moderation={"off": ["asked", "said"]})
        await house.service.accounts.moderation("default")  # so that these terms are remembered

        async def changed() -> None:
            house.accounts.tenants.change("default", moderation={"off": ["said"]})
            await house.service.accounts.moderation("default")

        house.engine.meanwhile = changed
        assert (await house.long(call)).status_code == 200
        assert (await house.long(call)).status_code == 400


# ------------------------------------------------------------------------------------------------ limits and budgets


async def both(house: Repeating, call: Call, **limits: Any) -> tuple[list[httpx.Response], list[httpx.Response]]:
    """What two keys with the same limits are told five times, the one by the short and the other by the long way."""
    keys = [house.new_key(**limits) for _ in range(2)]
    short = [await house.short(call, keys[0]) for _ in range(5)]
    long = [await house.ask(call, keys[1], cache_control="max-age=60") for _ in range(5)]
    return short, long


@pytest.mark.parametrize(
    ("wire", "limits", "statuses"),
    [
        ("openai", {"requests": "3/year"}, [200, 200, 200, 429, 429]),
        ("google", {"requests": "2/year"}, [200, 200, 429, 429, 429]),
        ("openai", {"tokens": 2 * TOKENS, "requests": "9/year"}, [200, 200, 429, 429, 429]),
        ("google", {"tokens_in": 15, "requests": "3/year"}, [200, 200, 429, 429, 429]),
        ("openai", {"tokens_out": 3}, [429] * 5),
        ("google", {"budget": "0.015/day", "requests": "9/year"}, [200, 200, 429, 429, 429]),
        ("openai", {"budget": "1/month", "tokens": 10_000}, [200] * 5),
    ],
)
async def test_limits_hold_and_are_told_as_by_the_long_way(
    house: Repeating, wire: str, limits: dict[str, Any], statuses: list[int]
) -> None:
    """Head and body: also of those refused, which count as requests all the same."""
    call = WIRES[wire]
    await house.learnt(call)
    number = len(house.rows())
    short, long = await both(house, call, **limits)
    assert [answer.status_code for answer in short] == [answer.status_code for answer in long] == statuses
    for one, other in zip(short, long, strict=True):
        ours, theirs = told(one), told(other)
        if one.status_code == 429 and limits.get("requests") in ("2/year", "3/year"):  # there the body was not read
            theirs.pop("connection", None)
        assert ours.pop("retry-after", "") in ("", *[str(wait) for wait in range(61)])
        ours.pop("retry-after-ms", None)
        theirs.pop("retry-after", None)
        theirs.pop("retry-after-ms", None)
        if one.status_code == 200:
            assert ours == theirs
        else:
            assert {**ours, "content-length": ""} == {**theirs, "content-length": ""}
            assert _refusal(one) == _refusal(other)
    assert len(house.rows()) - number == 2 * statuses.count(200)


def _refusal(answer: httpx.Response) -> Any:
    """A refusal without the seconds that are left."""
    error = json.loads(re.sub(r"begins anew in \d+ seconds", "begins anew", answer.text))["error"]
    for detail in error.get("details", ()):
        detail.pop("retryDelay", None)
    return error


THINKING = (GOOGLE[0], {
    "contents": GOOGLE[1]["contents"],
    "generationConfig": {"temperature": 0, "maxOutputTokens": 50, "thinkingConfig": {"includeThoughts": True}},
})  # fmt: skip
FORMS: dict[str, tuple[Call, Call]] = {
    "openai's for google": (OPENAI, GOOGLE),
    "google's for openai": (GOOGLE, OPENAI),
    "google's with thoughts": (GOOGLE, THINKING),
}


@pytest.mark.parametrize("forms", FORMS)
async def test_an_answer_that_was_kept_in_another_form_is_kept_in_this_one_too(house: Repeating, forms: str) -> None:
    """From the second time on; what is kept ends when it would have ended, and the first form is there still."""
    first, other = FORMS[forms]
    cache = house.service.cache
    assert cache.shelf is not None
    values = cache.shelf.store._values  # type: ignore[attr-defined]
    await house.learnt(first)
    ((name, (_, until)),) = values.items()
    found = await cache.look(name)
    long = await house.long(other)
    await asyncio.gather(*cache._landing)
    short = await house.short(other)
    assert told(long) == told(short)
    assert told(short)["x-cache"] == "hit"
    same = json.loads(long.text.replace(long.headers["x-request-id"], short.headers["x-request-id"]))
    assert short.json() | {"created": 0} == same | {"created": 0}
    await house.ask(first)
    await house.short(first)
    again = await cache.look(name)
    assert found is not None
    assert again is not None
    assert len(again[1].bodies) == 2
    assert again[1].made_at == found[1].made_at
    assert values[name][1] == pytest.approx(until, abs=1)


@pytest.mark.parametrize("wire", WIRES)
async def test_an_answer_that_was_kept_for_the_other_wire_counts_once(house: Repeating, wire: str) -> None:
    other = WIRES["google" if wire == "openai" else "openai"]
    await house.learnt(other)
    key = house.new_key(tokens=100 * TOKENS)
    left = [(await house.ask(WIRES[wire], key)).headers["x-ratelimit-remaining-tokens"] for _ in range(4)]
    assert left == ["990", "980", "970", "960"]


async def test_who_is_refused_tokens_is_counted_and_takes_none(house: Repeating) -> None:
    await house.learnt()
    key = house.new_key(requests="9/year", tokens=TOKENS + 5)
    answers = [await house.short(key=key) for _ in range(3)]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["8", "7", "6"]
    assert [answer.headers["x-ratelimit-remaining-tokens"] for answer in answers] == ["5", "5", "5"]


WAYS: dict[str, dict[str, str]] = {"short": {}, "long": {"cache_control": "max-age=60"}}


def room(answer: httpx.Response) -> tuple[str, str]:
    """What is left of the requests and tokens."""
    return answer.headers["x-ratelimit-remaining-requests"], answer.headers["x-ratelimit-remaining-tokens"]


@pytest.mark.parametrize("way", WAYS)
async def test_who_is_refused_money_is_counted_and_takes_no_tokens(house: Repeating, way: str) -> None:
    await house.learnt()
    key = house.new_key(requests="9/year", tokens=100 * TOKENS, budget="0.007/day")
    refused = [await house.ask(key=key, **WAYS[way]) for _ in range(3)]
    assert {answer.status_code for answer in refused} == {429}
    assert [room(answer) for answer in refused] == [("8", "990"), ("7", "990"), ("6", "990")]
    house.accounts.keys.change(key.split("-")[1], limits=Quotas(requests="9/year", tokens=100 * TOKENS))
    assert room(await house.ask(key=key, **WAYS[way])) == ("5", "990")


@pytest.mark.parametrize("way", WAYS)
async def test_who_cannot_be_booked_takes_no_tokens(tmp_path: Path, way: str) -> None:
    async with housed(tmp_path, Settings(ledger=LedgerSettings(wait=0.2))) as house:
        await house.learnt()
        key = house.new_key(requests="9/year", tokens=100 * TOKENS)
        assert room(await house.ask(key=key, **WAYS[way])) == ("8", "990")
        with writing(house.accounts.database).begin():  # another process's turn
            answer = await house.ask(key=key, **WAYS[way])
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
        assert room(await house.ask(key=key, **WAYS[way])) == ("6", "980")


async def test_who_is_refused_what_is_there_no_more_takes_no_tokens_twice(house: Repeating) -> None:
    """What bears its seal and is not what it bears is made again: only that counts."""
    await house.learnt()
    key = house.new_key(tokens=100 * TOKENS)
    shelf = house.service.cache.shelf
    assert shelf is not None
    values = shelf.store._values  # type: ignore[attr-defined]
    ((name, (value, until)),) = values.items()
    values[name] = value[:-1] + bytes([value[-1] ^ 1]), until
    answer = await house.long(key=key)
    assert (answer.headers["x-cache"], answer.headers["x-ratelimit-remaining-tokens"]) == ("miss", "990")


async def test_what_is_under_way_does_not_hold_it_up(house: Repeating) -> None:
    """It takes no place among those at once, as no engine has to do with it."""
    await house.learnt()
    key = house.new_key(concurrent=1)
    place = Claim(scope=f"key:{key.split('-')[1]}", kind="concurrent", period=0, limit=1, amount=1)
    assert (await house.service.limiter.admit("another", [place])).refused is None
    assert (await house.service.limiter.admit("one more", [place])).refused is not None
    assert (await house.short(key=key)).status_code == 200
    assert (await house.long(key=key, cache_control="max-age=60")).status_code == 200


@pytest.mark.parametrize("sent", [b"", b'{"model"'])
async def test_who_hangs_up_in_its_body_has_made_a_request(house: Repeating, sent: bytes) -> None:
    await house.learnt()
    key = house.new_key(requests="2/year")
    scope: Any = {
        "type": "http", "method": "POST", "path": OPENAI[0], "query_string": b"", "client": ("127.0.0.1", 1),
        "headers": [
            (b"host", b"t"), (b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json"),
            (b"content-length", b"100"),
        ],
    }  # fmt: skip
    coming: list[Any] = [{"type": "http.disconnect"}, {"type": "http.request", "body": sent, "more_body": True}]

    async def receive() -> Any:
        return coming.pop()

    async def send(message: Any) -> None:
        raise AssertionError("there is nobody to be told anything")

    await house.app(scope, receive, send)
    assert (await house.short(key=key)).headers["x-ratelimit-remaining-requests"] == "0"
    assert (await house.ask(key=key)).status_code == 429


async def test_the_sums_know_of_it(house: Repeating) -> None:
    for _ in range(3):
        await house.ask()
    async with house.client(house.admin.secret_text) as admin:
        usage = (await admin.get("/admin/usage")).json()
    (result,) = [result for bucket in usage["data"] for result in bucket["results"]]
    assert (result["requests"], result["input_cached_tokens"], result["output_tokens"]) == (3, 12, 12)
    assert sum(row.cost for row in house.rows()) == round(float(result["cost"]) * 1e9)
