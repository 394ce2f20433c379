"""Other names of models: what they lead to, what answers call them, and what they do not let in."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from qwen3vl_compat.accounts.tables import ledger
from qwen3vl_compat.messages import ModelInfo
from qwen3vl_compat.server.names import Names
from qwen3vl_compat.settings import ModelSettings, Settings, SettingsError, load_settings
from tests.server.test_app import House

MODELS = tuple(ModelInfo(id=name, created=0, context=9, max_output=9) for name in ("qwen3-vl", "other"))
ALIASES = {"gpt-4o": "qwen3-vl", "gpt-*": "other", "gpt-5*": "qwen3-vl", "gemini-*": "qwen3-vl"}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("qwen3-vl", "qwen3-vl"), ("other", "other"), ("gpt-4o", "qwen3-vl"), ("gpt-4o-mini", "other"),
        ("gpt-5.5", "qwen3-vl"), ("gemini-3-pro", "qwen3-vl"), ("gpt", None), ("Gpt-4o", None), ("", None),
        ("gpt-5" + "x" * 196, None),
    ],
)  # fmt: skip
def test_a_name_leads_to_a_model(asked: str, found: str | None) -> None:
    model = Names(MODELS, ALIASES).find(asked)
    assert (model and model.id) == found


@pytest.mark.parametrize("aliases", [{"a": "nobody"}, {"other": "qwen3-vl"}, {"*": "other"}, {"a*b": "other"}])
def test_a_name_that_leads_nowhere_ends_the_start(aliases: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"model\.aliases: '"):
        Names(MODELS, aliases)


def test_they_are_set_in_a_table(tmp_path: Path) -> None:
    (file := tmp_path / "qwen3vl.toml").write_text('[model.aliases]\n"gpt-4o" = "qwen3-vl"\n')
    assert load_settings(file).model.aliases == {"gpt-4o": "qwen3-vl"}


@pytest.fixture
async def house(tmp_path: Path) -> Any:
    aliases = {"gpt-4o": "qwen3-vl", "gemini-*": "qwen3-vl"}
    made = House(tmp_path / "state", Settings(model=ModelSettings(engine="scripted", aliases=aliases)))
    await made.service.open_books()
    yield made
    await made.service.cache.close()
    await made.service.close_books()
    made.accounts.database.dispose()


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "temperature": 0, "messages": [{"role": "user", "content": "good day"}]}


GOOGLE = {"contents": [{"parts": [{"text": "good day"}]}], "generationConfig": {"temperature": 0}}


async def test_answers_call_it_as_the_client_does_and_the_books_do_not(house: House) -> None:
    """Made, repeated, and given again for another name: the tokens are those of one model."""
    async with house.client() as client:
        for model, seen in (("qwen3-vl", "miss"), ("gpt-4o", "hit"), ("gpt-4o", "hit"), ("gemini-3", "hit")):
            answer = await client.post("/v1/chat/completions", json=chat(model))
            assert (answer.status_code, answer.json()["model"], answer.headers["x-cache"]) == (200, model, seen)
        stream = await client.post("/v1/chat/completions", json=chat("gpt-4o") | {"stream": True})
        assert '"model":"gpt-4o"' in stream.text
        assert '"model":"qwen3-vl"' not in stream.text
        answer = await client.post("/v1beta/models/gemini-3-pro:generateContent", json=GOOGLE)
        assert answer.json()["modelVersion"] == "gemini-3-pro"
    with house.accounts.database.connect() as connection:
        assert set(connection.execute(select(ledger.c.model)).scalars()) == {"qwen3-vl"}


async def test_whole_names_are_listed_and_all_are_found(house: House) -> None:
    async with house.client() as client:
        listed = (await client.get("/v1/models")).json()
        assert [each["id"] for each in listed["data"]] == ["qwen3-vl", "gpt-4o"]
        assert [each["name"] for each in listed["models"]] == ["models/qwen3-vl", "models/gpt-4o"]
        for name in ("gpt-4o", "gemini-3", "models/gemini-3"):
            found = (await client.get(f"/v1beta/models/{name}")).json()
            assert (found["id"], found["name"]) == (
                name.removeprefix("models/"),
                f"models/{name.removeprefix('models/')}",
            )
        missed = await client.get("/v1/models/gpt-5")
        told = "The model 'gpt-5' does not exist or you have no access to it; there are qwen3-vl, gpt-4o."
        assert (missed.status_code, missed.json()["error"]["message"]) == (404, told)


async def test_of_many_names_some_are_told(tmp_path: Path) -> None:
    house = House(tmp_path / "state", Settings(model=ModelSettings(aliases={f"a{n}": "qwen3-vl" for n in range(5)})))
    async with house.client() as client:
        missed = await client.get("/v1/models/none")
    assert missed.json()["error"]["message"].endswith("; there are qwen3-vl, a0, a1, a2, a3, ...")
    house.accounts.database.dispose()


async def test_a_key_that_is_not_for_the_model_is_not_for_its_other_names(house: House) -> None:
    secret = house.accounts.keys.create("default", models=["elsewhere"]).secret_text
    async with house.client(secret) as client:
        assert (await client.get("/v1/models")).json()["data"] == []
        answer: httpx.Response = await client.post("/v1/chat/completions", json=chat("gpt-4o"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert answer.json()["error"]["message"].endswith("; this key is for no model that is served.")


async def test_the_third_wire_calls_it_so_too(house: House) -> None:
    body = {"model": "gpt-4o", "max_tokens": 9, "messages": [{"role": "user", "content": "good day"}]}
    async with house.client() as client:
        answers = [await client.post("/v1/messages", json=body | {"temperature": 0}) for _ in range(2)]
    assert [(each.json()["model"], each.headers["x-cache"]) for each in answers] == [
        ("gpt-4o", "miss"),
        ("gpt-4o", "hit"),
    ]
