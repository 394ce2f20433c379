"""Anthropic's routes without a socket: which requests are its own, and what the policies say on its wire."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_compat.settings import Quotas
from tests.e2e.test_bad_input import BODIES
from tests.server.test_app import House

BODY: dict[str, Any] = {"model": "qwen3-vl", "max_tokens": 50, "messages": [{"role": "user", "content": "good day"}]}
VERSION = {"anthropic-version": "2023-06-01"}


@pytest.fixture(name="house")
async def a_house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "state")
    await made.service.open_books()
    yield made
    await made.service.close_books()
    made.accounts.database.dispose()


@pytest.fixture(name="client")
async def a_client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with house.client() as made:
        yield made


async def create(client: httpx.AsyncClient, /, **headers: str) -> httpx.Response:
    return await client.post("/v1/messages", json=BODY, headers=headers)


@pytest.mark.parametrize(
    ("method", "path", "headers", "wire"),
    [
        ("POST", "/v1/messages", {}, "anthropic"),
        ("POST", "/v1/messages/count_tokens", {}, "anthropic"),
        ("GET", "/v1/messages/batches", {}, "anthropic"),
        ("GET", "/v1/models", VERSION, "anthropic"),
        ("GET", "/v1/models/none", VERSION, "anthropic"),
        ("GET", "/v1/models", {}, "openai"),
        ("GET", "/v1/models", {"x-goog-api-key": "x"}, "google"),
        ("POST", "/v1/models/m:generateContent", VERSION, "google"),
        ("POST", "/v1/chat/completions", VERSION, "openai"),
        ("POST", "/v1/messagesx", VERSION, "anthropic"),
        ("POST", "/v1/messagesx", {}, "openai"),
    ],
)
async def test_errors_come_in_the_form_of_whose_request_it_is(
    house: House,
    method: str,
    path: str,
    headers: dict[str, str],
    wire: str,
) -> None:
    async with house.client("sk-wrong") as stranger:
        answer = await stranger.request(method, path, headers=headers)
    body = answer.json()
    assert ("type" in body, "code" in body["error"]) == (wire == "anthropic", wire != "anthropic")
    assert ("status" in body["error"]) == (wire == "google")
    assert answer.headers.get("request-id") == (answer.headers["x-request-id"] if wire == "anthropic" else None)


async def test_bodies_that_cannot_be_read(client: httpx.AsyncClient) -> None:
    for name, body, code in BODIES:
        answer = await client.post("/v1/messages", content=body, headers={"content-type": "application/json"})
        error = answer.json()["error"]
        told = (answer.status_code, error["type"], error["details"]["error_code"])
        assert told == (400, "invalid_request_error", code), name


async def test_models_are_listed_in_its_form_to_who_says_its_version(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models", headers=VERSION)).json()
    assert (listed["first_id"], listed["data"][0]["type"], "models" in listed) == ("qwen3-vl", "model", False)
    one = (await client.get("/v1/models/qwen3-vl", headers=VERSION)).json()
    assert (one, one["id"]) == (listed["data"][0], "qwen3-vl")
    assert "models" in (await client.get("/v1/models")).json()


async def test_who_has_no_money_left_must_pay_first(house: House) -> None:
    house.accounts.prices.set("*", text_in="10", out="40", per_request="1")
    poor = house.accounts.keys.create("default", limits=Quotas(budget="0.5/month"))
    async with house.client(poor.secret_text) as made:
        answer = await create(made)
    assert (answer.status_code, answer.json()["error"]["type"]) == (402, "billing_error")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_server_that_stops_is_overloaded(house: House, client: httpx.AsyncClient) -> None:
    house.service.lifecycle.draining = True
    answer = await create(client)
    assert (answer.status_code, answer.json()["error"]["type"]) == (529, "overloaded_error")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_key_for_other_endpoints_makes_no_message(house: House) -> None:
    reader = house.accounts.keys.create("default", endpoints=("models",))
    async with house.client(reader.secret_text) as made:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            answer = await made.post(path, json=BODY)
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
        assert (await made.get("/v1/models", headers=VERSION)).status_code == 200


async def test_what_was_asked_under_a_key_is_answered_once(client: httpx.AsyncClient) -> None:
    first = await create(client, **{"idempotency-key": "k"})
    again = await create(client, **{"idempotency-key": "k"})
    assert (again.content, again.status_code) == (first.content, 200)
    other = await client.post("/v1/messages", json=BODY | {"max_tokens": 3}, headers={"idempotency-key": "k"})
    assert (other.status_code, other.json()["error"]["type"]) == (400, "invalid_request_error")
