"""`/v1/moderations` without a socket: what is asked and answered, what is refused, and who may ask."""

import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.settings import ModerationSettings, ModeratorSettings, Settings
from qwen3vl_compat.wire.moderations import CATEGORIES, MOST_INPUTS, decode_answer, encode_request
from tests.server.test_app import House

pytestmark = pytest.mark.asyncio(loop_scope="module")
WORDS = ModeratorSettings(kind="words", words={"violence": ("murder",), "house/rule": ("apple",)})
PICTURE = f"data:image/png;base64,{base64.b64encode(SAMPLE.read_bytes()).decode()}"
SHOWN = {"type": "image_url", "image_url": {"url": PICTURE}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    settings = Settings(moderation=ModerationSettings(moderators=(WORDS,)))
    made = House(tmp_path_factory.mktemp("house"), settings)
    await made.service.open_books()
    await made.service.sandbox.start()
    yield made
    await made.service.sandbox.close()
    await made.service.close_books()
    made.accounts.database.dispose()


async def ask(house: House, body: Any, key: str | None = None) -> httpx.Response:
    async with house.client(key) as client:
        return await client.post("/v1/moderations", json=body)


@pytest.mark.parametrize(
    ("asked", "flagged"),
    [
        ("all is well", [[]]),
        ("a Murder", [["violence"]]),
        (["fine", "an apple", "murder and apple"], [[], ["house/rule"], ["violence", "house/rule"]]),
        ([{"type": "text", "text": "mur"}, {"type": "text", "text": "der"}], [["violence"]]),
        ([{"type": "text", "text": "apple"}, SHOWN], [["house/rule"]]),
        ([SHOWN], [[]]),
    ],
)
async def test_each_text_or_all_parts_together_get_a_result(house: House, asked: Any, flagged: list[list[str]]) -> None:
    answer = await ask(house, {"input": asked, "model": "any-model"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert re.fullmatch(r"modr-[0-9a-f]{24}", body["id"])
    assert body["model"] == "any-model"
    assert [result["flagged"] for result in body["results"]] == [bool(each) for each in flagged]
    for result, names in zip(body["results"], flagged, strict=True):
        assert [name for name, found in result["categories"].items() if found] == names
        assert set(CATEGORIES) <= set(result["categories"]) == set(result["category_scores"])
        assert all(score == float(name in names) for name, score in result["category_scores"].items())
        kinds = result["category_applied_input_types"]
        assert set(kinds) == set(result["categories"])
        assert kinds["sexual"] == []
        assert kinds["violence"] == ([] if asked == [SHOWN] else ["text"])  # lists of words see no pictures


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": {"type": "text"}}, "input"),
        ({"input": ["x"] * (MOST_INPUTS + 1)}, "input"),
        ({"input": ["x", ""]}, "input[1]"),
        ({"input": ["x", 5]}, "input[1]"),
        ({"input": ["x", {"type": "text", "text": "y"}]}, "input[1]"),
        ({"input": [{"type": "text", "text": "y"}, "x"]}, "input[1]"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"type": "text"}]}, "input[0].text"),
        ({"input": [{"type": "video_url"}]}, "input[0].type"),
        ({"input": [{"type": "image_url"}]}, "input[0].image_url"),
        ({"input": [{"type": "image_url", "image_url": {}}]}, "input[0].image_url.url"),
        ({"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input[0].image_url.url"),
        (
            {"input": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
            "input[0].image_url.url",
        ),
        ({"input": [SHOWN] * 101}, "input[100].image_url.url"),
        ({"input": "x", "model": 5}, "model"),
        ({"input": "x", "model": ""}, "model"),
        ({"input": "x", "model": "x" * 201}, "model"),
    ],
)
async def test_bad_input_is_refused_and_named(house: House, body: Any, param: str) -> None:
    answer = await ask(house, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]


async def test_unknown_fields_are_named(house: House) -> None:
    answer = await ask(house, {"input": "x", "store": True})
    assert (answer.status_code, answer.headers["x-ignored-fields"]) == (200, "store")


async def test_it_is_an_endpoint_of_its_own(house: House) -> None:
    keys = house.accounts.keys
    for endpoints, status in ((["moderations"], 200), (["generate"], 403)):
        key = keys.create("default", endpoints=endpoints).secret_text
        assert (await ask(house, {"input": "x"}, key)).status_code == status


async def test_prometheus_is_told_of_verdicts_by_moderator(house: House) -> None:
    async def told() -> dict[str, float]:
        async with house.client(house.admin.secret_text) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        found = (line.rpartition(" ") for line in lines if line.startswith("qwen3vl_moderation"))
        return {name: float(value) for name, _, value in found}

    before = await told()
    await ask(house, {"input": ["fine", "murder", "well"]})
    passed, flagged = (
        f'qwen3vl_moderation_verdicts_total{{moderator="words",verdict="{verdict}"}}'
        for verdict in ("passed", "flagged")
    )
    after = await told()
    assert {name: after[name] - before.get(name, 0) for name in after} == {passed: 2, flagged: 1}


async def test_a_tenants_own_terms_hold(house: House) -> None:
    house.accounts.tenants.create("free", moderation={"off": ["words"]})
    key = house.accounts.keys.create("free").secret_text
    answer = await ask(house, {"input": "murder"}, key)
    assert [result["flagged"] for result in answer.json()["results"]] == [False]


async def test_where_nobody_looks_nothing_is_flagged(tmp_path: Path) -> None:
    house = House(tmp_path / "state")
    answer = await ask(house, {"input": ["murder", "x"]})
    assert [result["flagged"] for result in answer.json()["results"]] == [False, False]
    assert list(answer.json()["results"][0]["categories"]) == list(CATEGORIES)
    house.accounts.database.dispose()


async def test_what_one_half_sends_the_other_reads() -> None:
    asked = json.loads(encode_request("m", ["a", "b"], []))
    assert asked == {"model": "m", "input": ["a", "b"]}
    asked = json.loads(encode_request("m", ["a"], [b"\xff\xd8"]))
    assert [part["type"] for part in asked["input"]] == ["text", "image_url"]
    assert asked["input"][1]["image_url"]["url"] == "data:image/jpeg;base64,/9g="


@pytest.mark.parametrize(
    "body", [b"", b"x", b"{}", b'{"results": []}', b'{"results": [{}]}', b'{"results": [{"flagged": "yes"}]}', b"[1]",
             b'{"results": [{"flagged": true, "categories": {"a": 1}}]}'],
)  # fmt: skip
async def test_what_is_no_verdict_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_answer(body)
