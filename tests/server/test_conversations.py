"""What is kept of responses and what is not, and the bounds of what a request may refer to."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.responses import NoSuchResponse, Responses
from qwen3vl_compat.accounts.tenants import Tenants
from qwen3vl_compat.errors import InvalidRequest, NotFound
from qwen3vl_compat.events import Finish, First, Started, TextDelta, Usage
from qwen3vl_compat.messages import Media, Text
from qwen3vl_compat.server import conversations as module
from qwen3vl_compat.server.conversations import Conversations
from qwen3vl_compat.settings import ResponseSettings, ServerSettings, Settings
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_responses import Answering, decode_request
from qwen3vl_compat.wire.openai_responses_request import Asked

USAGE = Usage(prompt_text=1, completion=1)
Make = Callable[..., Conversations]


def image(size: int) -> Json:
    return {"type": "input_image", "image_url": f"data:image/png;base64,{base64.b64encode(b'x' * size).decode()}"}


def user(*parts: Json) -> Json:
    return {"role": "user", "content": list(parts)}


def asked(number: int, **fields: Any) -> Asked:
    body = {"model": "m", "input": "Hello", **fields}
    return decode_request(json.dumps(body).encode(), request_id=f"{number:024x}", now=1)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(tmp_path)
    Tenants(engine).create("acme")
    yield engine
    engine.dispose()


@pytest.fixture
def make(database: Engine) -> Make:
    def made(most: int = 10**6, **settings: Any) -> Conversations:
        kept = ResponseSettings(**settings)
        return Conversations(Responses(database, kept), Settings(server=ServerSettings(max_body=most), responses=kept))

    return made


async def answered(conversations: Conversations, number: int, **fields: Any) -> Json:
    """The response to a request, kept if it is to be."""
    whole = await conversations.complete("acme", asked(number, **fields), large=False)
    answering = Answering(whole)
    for event in (Started(USAGE), TextDelta(0, "Hi", 1), Finish(0, "stop", USAGE)):
        answering.push(event)
    await conversations.keep("acme", whole, answering.response)
    return answering.response


async def test_a_response_is_kept_as_it_was_answered(make: Make) -> None:
    conversations = make()
    response = await answered(conversations, 1)
    assert response["store"] is True
    assert json.loads(await conversations.get("acme", response["id"])) == response


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {"store": False}),
        ({"enabled": False}, {}),
        ({"max_bytes": 1000}, {"input": [user(image(400))]}),
        ({"max_bytes": 1000}, {"instructions": "x" * 600}),
        ({"max_bytes": 1000}, {"user": "x" * 600}),
    ],
)
async def test_what_is_not_kept_says_so(make: Make, settings: Any, fields: Any) -> None:
    conversations = make(**settings)
    response = await answered(conversations, 1, **fields)
    assert response["store"] is False
    with pytest.raises(NotFound):
        await conversations.get("acme", response["id"])
    whole = await conversations.complete("acme", asked(2, **fields), large=False)
    assert ("store" in whole.request.ignored) is (fields.get("store") is not False)


async def test_what_is_large_enough_is_kept(make: Make) -> None:
    assert (await answered(make(max_bytes=1000), 1))["store"] is True


async def test_a_response_that_could_not_be_kept_says_so(make: Make, database: Engine) -> None:
    conversations = make()
    with database.begin() as connection:
        connection.execute(text("DROP TABLE response_uses"))
        connection.execute(text("DROP TABLE responses"))
    assert (await answered(conversations, 1))["store"] is False


async def test_a_conversation_is_no_larger_than_a_request(make: Make) -> None:
    conversations = make(most=5000)
    first = await answered(conversations, 1, input=[user(image(1200))])
    second = await answered(conversations, 2, input=[user(image(1200))], previous_response_id=first["id"])
    with pytest.raises(InvalidRequest) as refusal:
        await conversations.complete("acme", asked(3, previous_response_id=second["id"]), large=False)
    assert (refusal.value.param, refusal.value.code) == ("previous_response_id", "conversation_too_large")
    assert "at most 5,000 are accepted" in refusal.value.message


async def test_what_is_referred_to_is_no_larger_than_a_request(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    conversations = make(most=3000)
    response = await answered(conversations, 1, input=[user(image(600))])
    page = module.Page(10, None, "asc", images=False)
    (item,) = json.loads(await conversations.items("acme", response["id"], page))["data"]
    reference = {"type": "item_reference", "id": item["id"]}
    await conversations.complete("acme", asked(2, input=[reference] * 2), large=False)
    with pytest.raises(InvalidRequest, match=r"^input: the items referred to have more than the 3,000 bytes"):
        await conversations.complete("acme", asked(2, input=[reference] * 4), large=False)
    made = [await answered(conversations, number, input=[user(image(600))]) for number in range(10, 20)]
    many = [{"type": "item_reference", "id": f"msg_{each['id'].removeprefix('resp_')}_i0"} for each in made]
    loaded = list[int]()
    read = Responses.media

    def counted(self: Responses, tenant: str, names: set[str]) -> Any:
        loaded.append(len(names))
        return read(self, tenant, names)

    monkeypatch.setattr(Responses, "media", counted)
    with pytest.raises(InvalidRequest, match=r"^input: the items referred to have more than the 3,000 bytes"):
        await conversations.complete("acme", asked(30, input=many), large=False)
    assert loaded == [1] * 4  # and no more of them: a few ids must not fill the memory
    monkeypatch.setattr(module, "MOST_REFERRED", 1)
    other = await answered(conversations, 3)
    both = [reference, {"type": "item_reference", "id": other["output"][0]["id"]}]
    with pytest.raises(InvalidRequest, match=r"^input: refers to items of more than 1 responses"):
        await conversations.complete("acme", asked(4, input=both), large=False)


async def test_what_is_to_be_kept_lies_in_memory_once(make: Make) -> None:
    parts = [image(1200), {"type": "input_text", "text": "x"}]
    whole = await make().complete("acme", asked(1, input=[user(*parts)]), large=True)
    (medium, _) = whole.request.messages[0].parts
    assert isinstance(medium, Media)
    (content,) = whole.media.values()
    assert content is medium.source
    assert "base64" not in str(whole.items)
    assert (await make().complete("acme", asked(1, input=[user(*parts)], store=False), large=True)).items == ()


async def test_items_of_an_answer_given_again_have_the_first_ones_ids(make: Make) -> None:
    conversations = make()
    whole = await conversations.complete("acme", asked(2), large=False)
    answering = Answering(whole)
    first = f"{1:024x}"
    for event in (Started(USAGE, replays=First(first, 1)), TextDelta(0, "Hi", 1), Finish(0, "stop", USAGE)):
        answering.push(event)
    await conversations.keep("acme", whole, answering.response)
    page = module.Page(10, None, "asc", images=False)
    (item,) = json.loads(await conversations.items("acme", f"resp_{first}", page))["data"]
    assert item["id"] == f"msg_{first}_i0"
    reference = {"type": "item_reference", "id": item["id"]}
    again = await conversations.complete("acme", asked(3, input=[reference]), large=False)
    assert again.request.messages[0].parts == (Text("Hello"),)


async def test_what_is_no_id_is_not_looked_for(make: Make, database: Engine) -> None:
    """Some databases fail on what another takes for any name."""
    conversations = make()
    with database.begin() as connection:
        connection.execute(text("DROP TABLE response_uses"))
        connection.execute(text("DROP TABLE responses"))
    page = module.Page(10, None, "asc", images=False)
    for name in ("resp_\0", "", "resp_" + "x" * 24, f"resp_{1:024x}\n"):
        for call in (conversations.get("acme", name), conversations.delete("acme", name),
                     conversations.items("acme", name, page)):  # fmt: skip
            with pytest.raises(NotFound):
                await call


async def test_answers_are_part_of_the_conversation(make: Make) -> None:
    conversations = make()
    first = await answered(conversations, 1)
    whole = await conversations.complete("acme", asked(2, input="More", previous_response_id=first["id"]), large=False)
    turns = [(message.role, getattr(message.parts[0], "text", None)) for message in whole.request.messages]
    assert turns == [("user", "Hello"), ("assistant", "Hi"), ("user", "More")]


async def test_what_is_over_is_removed_from_the_start(make: Make, database: Engine) -> None:
    conversations = make()
    response = await answered(conversations, 1)
    with database.begin() as connection:
        connection.execute(text("UPDATE responses SET expires_at = 1"))
    await conversations.start()
    try:
        async with asyncio.timeout(30):
            while True:
                with database.connect() as connection:
                    if not connection.execute(text("SELECT id FROM responses")).all():
                        break
                await asyncio.sleep(0.01)
    finally:
        await conversations.close()
    with pytest.raises(NoSuchResponse):
        Responses(database, ResponseSettings()).get("acme", response["id"])
