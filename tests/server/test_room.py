"""A full engine refuses before anything is decoded or booked, but nothing that needs no engine."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from qwen3vl_compat.accounts.tables import ledger
from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.events import Started
from qwen3vl_compat.messages import Caller, Message, Request, Text
from qwen3vl_compat.settings import ModelSettings, ModerationSettings, ModeratorSettings, Settings
from tests.moderator import moderating
from tests.server.test_app import House

SMALL = Settings(model=ModelSettings(max_rows=4, max_waiting=1))
CHAT = "/v1/chat/completions"
PICTURE = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()},
}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "state", SMALL)
    await made.service.open_books()
    yield made
    await made.service.close()
    made.accounts.database.dispose()


def chat(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"model": "qwen3-vl", "messages": [{"role": "user", "content": list(parts)}]} | more


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


async def fill(house: House, stack: AsyncExitStack) -> None:
    """Take every row and every place, straight from the engine."""
    said = Message("user", (Text("count to 9"),))
    request = Request(id="r", created=0, model="qwen3-vl", messages=(said,), caller=Caller("default", "k"))
    for _ in range(SMALL.model.max_rows):
        events = await stack.enter_async_context(aclosing(house.service.engine.generate(request)))
        assert isinstance(await anext(events), Started)
    waiting = asyncio.ensure_future(anext(house.service.engine.generate(request)))
    stack.callback(waiting.cancel)
    await asyncio.sleep(0)
    assert house.service.engine.occupancy.places("default") == 0


def rows(house: House) -> int:
    with house.accounts.database.connect() as connection:
        return connection.execute(select(func.count()).select_from(ledger)).scalar_one()


@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"stream": True}], ids=["drawn", "cacheable", "streamed"])
async def test_nothing_is_decoded_and_nothing_booked(house: House, more: dict[str, Any]) -> None:
    async with AsyncExitStack() as stack, house.client() as client:
        await fill(house, stack)
        for key in ({}, {"idempotency-key": "k"}):
            answer = await client.post(CHAT, json=chat(PICTURE, text("What is this?"), **more), headers=key)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
            assert answer.json()["error"]["code"] == "server_is_overloaded"
    assert house.service.sandbox._places.free == [None, None], "a decoding child was started"
    assert rows(house) == 0


@pytest.mark.parametrize(
    ("more", "headers", "asked"),
    [({}, {}, 0), ({"temperature": 0}, {"cache-control": "no-cache"}, 0), ({"temperature": 0}, {}, 1)],
    ids=["drawn", "wanted anew", "perhaps kept"],
)
async def test_who_needs_a_place_is_refused_before_moderators_are_asked(
    tmp_path: Path, more: dict[str, Any], headers: dict[str, str], asked: int
) -> None:
    """Only what may be here already is shown to them first."""
    with moderating() as moderator:
        service = ModeratorSettings(kind="service", url=moderator.url, stages=("before",))
        moderation = ModerationSettings(moderators=(service,))
        house = House(tmp_path / "state", Settings(model=SMALL.model, moderation=moderation))
        await house.service.open_books()
        async with AsyncExitStack() as stack, house.client() as client:
            await fill(house, stack)
            answer = await client.post(CHAT, json=chat(text("Hi"), **more), headers=headers)
        await house.service.close()
        house.accounts.database.dispose()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert len(moderator.asked) == asked


async def test_what_was_answered_before_is_answered_again(house: House) -> None:
    """From the cache, and under an Idempotency-Key; the bodies are different, so that nothing is shorter than usual."""
    async with AsyncExitStack() as stack, house.client() as client:
        kept = [(chat(text("cached"), temperature=0), {}), (chat(text("kept")), {"idempotency-key": "k"})]
        before = [(await client.post(CHAT, json=asked, headers=key)).json() for asked, key in kept]
        await fill(house, stack)
        kept[0] = (kept[0][0] | {"user": "another"}, {})
        for (asked, key), first in zip(kept, before, strict=True):
            answer = await client.post(CHAT, json=asked, headers=key)
            assert answer.status_code == 200
            assert answer.json()["choices"] == first["choices"]


async def test_a_wrong_request_hears_of_its_fault_first(house: House) -> None:
    async with AsyncExitStack() as stack, house.client() as client:
        await fill(house, stack)
        assert (await client.post(CHAT, json=chat(text("Hi")) | {"model": "other"})).status_code == 404
        assert (await client.post(CHAT, json=chat(text("Hi")) | {"n": 0})).status_code == 400
