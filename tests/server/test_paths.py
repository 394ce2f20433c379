"""A path at which there is nothing is answered with what was meant, in the form that its client reads."""

from pathlib import Path

import pytest

from qwen3vl_compat.server.paths import nothing_at
from tests.server.test_app import House

ROUTES = ("/v1/messages", "/v1/chat/completions", "/v1/models/{rest:path}", "/v1beta/models/{rest:path}",
          "/v1/files/{name:str}")  # fmt: skip


@pytest.mark.parametrize(
    ("path", "meant", "advice"),
    [
        ("/messages", "/v1/messages", "Add /v1 to"),
        ("/v1/v1/messages", "/v1/messages", "Leave /v1 out of"),
        ("/v1/messages/v1/messages", "/v1/messages", "Leave /v1/messages out of"),
        ("/v1/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent", "Leave /v1 out of"),
        ("/v1beta/v1beta/models/m", "/v1beta/models/m", "Leave /v1beta out of"),
        ("/v1/chat/completions/chat/completions", "/v1/chat/completions", "Leave /chat/completions out of"),
        ("/chat/completions", "/v1/chat/completions", "Add /v1 to"),
        ("/files/a", "/v1/files/a", "Add /v1 to"),
    ],
)
def test_what_was_meant(path: str, meant: str, advice: str) -> None:
    told = f"There is nothing at this path; did you mean {meant}? {advice} the client's base URL."
    assert nothing_at(path, ROUTES) == told


@pytest.mark.parametrize("path", ["/", "/nothing", "/v1/v1/nothing", "/files/a/b", "/v1/v1/messages\n", "/files/é"])
def test_nothing_was_meant(path: str) -> None:
    assert nothing_at(path, ROUTES) == "There is nothing at this path."


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "state")


async def test_it_is_said_in_the_form_that_the_client_reads(house: House) -> None:
    key = house.key.secret_text
    async with house.client("") as client:
        plain = await client.post("/v1/v1/chat/completions", json={}, headers={"authorization": f"Bearer {key}"})
        assert (plain.status_code, plain.json()["error"]["code"]) == (404, "not_found")
        theirs = {"anthropic-version": "2023-06-01", "x-api-key": key}
        anthropic = await client.post("/v1/v1/messages", json={}, headers=theirs)
        assert (anthropic.status_code, anthropic.json()["type"]) == (404, "error")
        for headers, query in (({"x-goog-api-key": key}, ""), ({}, f"?key={key}")):
            google = await client.post(f"/v1/v1beta/models/m:generateContent{query}", json={}, headers=headers)
            assert (google.status_code, google.json()["error"]["status"]) == (404, "NOT_FOUND")
            assert "did you mean /v1beta/models/m:generateContent?" in google.json()["error"]["message"]


async def test_admins_paths_take_no_key_from_the_query(house: House) -> None:
    async with house.client("") as client:
        answer = await client.get(f"/admin/nothing?key={house.admin.secret_text}")
    assert "No API key was given" in answer.json()["error"]["message"]
