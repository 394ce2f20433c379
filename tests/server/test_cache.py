"""The result cache as clients see it: what is answered again, in which form, and what it costs."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from qwen3vl_compat.accounts.tables import ledger
from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.messages import Message, Request, Text
from qwen3vl_compat.settings import ModerationSettings, ModeratorSettings, Settings
from tests.moderator import moderating
from tests.server.test_app import House

COST_OF_A_HIT = 3_000 * (6 + 4) + 7_000_000
"""Nano-units: six tokens of prompt and four of answer as cached ones, and the request itself."""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "state")
    made.accounts.prices.set("*", text_in="10", cached_in="3", out="40", reasoning="50", per_request="0.007")
    await made.service.open_books()
    yield made
    await made.service.cache.close()
    await made.service.close_books()
    made.accounts.database.dispose()


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with house.client() as made:
        yield made


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "qwen3-vl", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def google(text: str, **config: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": {"temperature": 0, **config}}


def rows(house: House) -> list[Any]:
    with house.accounts.database.connect() as connection:
        return list(connection.execute(select(ledger).order_by(ledger.c.created_at, ledger.c.id)))


def text_of(answer: httpx.Response) -> str:
    """What an answer says, whatever its wire and form."""
    said = answer.json() if answer.headers["content-type"].startswith("application/json") else None
    if said is not None:
        return said["choices"][0]["message"]["content"] if "choices" in said else _google_text([said])
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    chunks = [json.loads(line) for line in lines]
    if "choices" in chunks[0]:
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    return _google_text(chunks)


def _google_text(chunks: list[Any]) -> str:
    return "".join(part["text"] for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"])


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", chat("good day")),
    "openai stream": ("/v1/chat/completions", chat("good day", stream=True)),
    "google": ("/v1beta/models/qwen3-vl:generateContent", google("good day")),
    "google stream": ("/v1beta/models/qwen3-vl:streamGenerateContent?alt=sse", google("good day")),
}


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
async def test_every_form_serves_every_other(house: House, client: httpx.AsyncClient, first: str, second: str) -> None:
    made = [await client.post(path, json=body) for path, body in (WAYS[first], WAYS[second], WAYS[second])]
    assert [answer.status_code for answer in made] == [200] * 3
    assert [answer.headers["x-cache"] for answer in made] == ["miss", "hit", "hit"]
    assert {text_of(answer) for answer in made} == {"You said: good day"}
    assert len({answer.headers["x-request-id"] for answer in made}) == 3
    for answer, row in zip(made, rows(house), strict=True):
        assert answer.headers["x-request-id"] == row.id
        assert row.state == "final"
        assert row.finish == "stop"
        if row.cache == "hit":
            assert (row.text_in, row.cached_in, row.out) == (0, 6, 4)
            assert row.cost == COST_OF_A_HIT


async def test_a_whole_hit_is_an_answer_of_its_own(client: httpx.AsyncClient) -> None:
    path, body = WAYS["openai"]
    made = [(await client.post(path, json=body)) for _ in range(3)]
    for answer in made:
        assert answer.json()["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    usages = [answer.json()["usage"] for answer in made]
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages] == [0, 6, 6]
    assert len({usage["total_tokens"] for usage in usages}) == 1
    assert made[1].headers["age"] == "0"
    assert {name for name in made[0].headers if name.startswith("x-cost")} == {
        "x-cost-total", "x-cost-currency", "x-cost-reserved",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "seen"),
    [
        (None, ["miss", "hit"]), ("no-cache", ["miss", "miss"]), ("no-store", ["off", "off"]),
        ("max-age=0", ["miss", "miss"]), ("max-age=60", ["miss", "hit"]), ("only-if-cached", ["miss", "hit"]),
    ],
)  # fmt: skip
async def test_the_caller_may_pass_it_by(client: httpx.AsyncClient, header: str | None, seen: list[str]) -> None:
    headers = {"cache-control": header} if header else {}
    path, body = WAYS["openai"]
    assert [(await client.post(path, json=body, headers=headers)).headers["x-cache"] for _ in range(2)] == seen


async def test_directives_may_come_in_several_lines(client: httpx.AsyncClient) -> None:
    path, body = WAYS["openai"]
    headers = [("cache-control", "no-store"), ("cache-control", "max-age=60")]
    for _ in range(2):
        assert (await client.post(path, json=body, headers=headers)).headers["x-cache"] == "off"


async def test_what_was_passed_by_is_still_kept(client: httpx.AsyncClient) -> None:
    path, body = WAYS["openai"]
    await client.post(path, json=body, headers={"cache-control": "no-cache"})
    assert (await client.post(path, json=body)).headers["x-cache"] == "hit"


async def test_an_age_that_is_none_is_refused(client: httpx.AsyncClient) -> None:
    path, body = WAYS["openai"]
    answer = await client.post(path, json=body, headers={"cache-control": "max-age=soon"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Cache-Control"


@pytest.mark.parametrize(
    ("asked", "header", "seen"),
    [
        ({"temperature": 0.7}, None, ["off", "off"]), ({"temperature": 0.7}, "max-age=9", ["miss", "hit"]),
        ({"temperature": 0.7, "top_k": 1}, None, ["miss", "hit"]), ({"temperature": 1e-7}, None, ["miss", "hit"]),
        ({"temperature": 0.7, "seed": 5}, None, ["miss", "hit"]), ({"temperature": None}, None, ["off", "off"]),
    ],
)  # fmt: skip
async def test_what_is_drawn_is_made_anew_unless_the_caller_wants_it(
    client: httpx.AsyncClient, asked: dict[str, Any], header: str | None, seen: list[str]
) -> None:
    headers = {"cache-control": header} if header else {}
    for expected in seen:
        answer = await client.post("/v1/chat/completions", json=chat("hello", **asked), headers=headers)
        assert answer.headers["x-cache"] == expected


async def test_another_tenant_gets_none_of_it(house: House, client: httpx.AsyncClient) -> None:
    house.accounts.keys.add_tenant("other")
    key = house.accounts.keys.create("other")
    path, body = WAYS["openai"]
    await client.post(path, json=body)
    async with house.client(key.secret_text) as stranger:
        assert (await stranger.post(path, json=body)).headers["x-cache"] == "miss"
        assert (await stranger.post(path, json=body)).headers["x-cache"] == "hit"


async def test_another_key_of_the_tenant_shares_it_and_pays_itself(house: House, client: httpx.AsyncClient) -> None:
    key = house.accounts.keys.create("default")
    path, body = WAYS["openai"]
    await client.post(path, json=body)
    async with house.client(key.secret_text) as colleague:
        assert (await colleague.post(path, json=body)).headers["x-cache"] == "hit"
    assert [row.key for row in rows(house)] == [house.key.key.public, key.key.public]


async def test_errors_are_never_kept(client: httpx.AsyncClient) -> None:
    body = chat("hello", max_tokens=5) | {"messages": [{"role": "user", "content": "a " * 40_000}]}
    for _ in range(2):
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 400


async def test_those_who_ask_together_are_answered_by_one_generation(house: House, client: httpx.AsyncClient) -> None:
    path, body = WAYS["openai"]
    stream = WAYS["openai stream"][1]
    made = await asyncio.gather(*(client.post(path, json=each) for each in [body, stream] * 10))
    assert sorted(answer.headers["x-cache"] for answer in made) == ["hit"] * 19 + ["miss"]
    assert {text_of(answer) for answer in made} == {"You said: good day"}
    assert sorted(row.cache for row in rows(house)) == ["hit"] * 19 + ["miss"]
    assert sorted(row.cost for row in rows(house))[:19] == [COST_OF_A_HIT] * 19


async def test_what_nobody_could_look_at_is_not_given_again(tmp_path: Path) -> None:
    """Pictures of a kept answer are looked at by nobody any more, so it is kept only if somebody did."""
    picture = {"url": f"data:image/png;base64,{base64.b64encode(SAMPLE.read_bytes()).decode()}"}
    body = chat("", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": picture}]}])
    with moderating() as moderator:
        service = ModeratorSettings(kind="service", url=moderator.url, stages=("before",), pictures=1)
        terms = ModerationSettings(on_failure="open", moderators=(service,))
        house = House(tmp_path / "state", Settings(moderation=terms))
        await house.service.open_books()
        async with house.client() as client:
            moderator.mode, moderator.against_pictures = "500", True
            unseen = await client.post("/v1/chat/completions", json=body)
            moderator.mode = "well"
            seen = await client.post("/v1/chat/completions", json=body)
        await house.service.close()
        house.accounts.database.dispose()
    assert (unseen.status_code, unseen.headers["x-cache"]) == (200, "miss")
    assert (seen.status_code, seen.json()["error"]["code"]) == (400, "content_policy_violation")
    assert [(row.cache, row.moderation) for row in rows(house)] == [
        ("miss", "service:unavailable"), ("miss", "service:hate"),
    ]  # fmt: skip


async def test_the_time_of_who_asked_first_is_not_the_others(house: House, client: httpx.AsyncClient) -> None:
    """They wait for a row together, and only the first one's time is over."""
    engine, held = house.service.engine, AsyncExitStack()
    asked = Request(id="r", created=0, model="qwen3-vl", messages=(Message("user", (Text("hello"),)),))
    async with held:
        for _ in range(house.service.settings.model.max_rows):
            await anext(await held.enter_async_context(aclosing(engine.generate(asked))))
        path, body = WAYS["openai"]
        first = asyncio.create_task(client.post(path, json=body, headers={"x-server-timeout": "0.5"}))
        for _ in range(40):
            if engine.occupancy.waiting:
                break
            await asyncio.sleep(0.01)
        second = asyncio.create_task(client.post(path, json=body))
        assert (await first).status_code == 504
        await asyncio.sleep(0.2)  # in which the engine would have lost its patience too
    assert ((await second).status_code, (await second).headers["x-cache"]) == (200, "hit")


async def test_who_may_have_nothing_under_way_gets_nothing_that_is_here(
    house: House, client: httpx.AsyncClient
) -> None:
    path, body = WAYS["openai"]
    await client.post(path, json=body)
    key = house.accounts.keys.create("default", limits={"concurrent": 0})
    async with house.client(key.secret_text) as colleague:
        for headers in ({}, {"cache-control": "max-age=60"}):
            answer = await colleague.post(path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_a_bill_can_be_computed_again_from_the_sums(house: House, client: httpx.AsyncClient) -> None:
    """What was given again is kept apart: its tokens have another price."""
    for _ in range(3):
        await client.post("/v1/chat/completions", json=chat("good day"))
    await client.post("/v1/chat/completions", json=chat("good day", temperature=1))
    answer = await client.get("/v1/usage?group_by=cache")
    parts = {each["cache"]: each for bucket in answer.json()["data"] for each in bucket["results"]}
    assert {name: each["requests"] for name, each in parts.items()} == {"hit": 2, "miss": 1, "off": 1}
    for name, each in parts.items():
        prices = (0, 3, 3, 3) if name == "hit" else (10, 0, 3, 40)
        tokens = ("input_text_tokens", "input_vision_tokens", "input_cached_tokens", "output_tokens")
        millionths = sum(price * each[kind] for price, kind in zip(prices, tokens, strict=True))
        assert Decimal(each["cost"]) == Decimal(millionths) / 10**6 + Decimal("0.007") * each["requests"]
    assert Decimal(parts["hit"]["cost"]) == 2 * Decimal(COST_OF_A_HIT) / 10**9
