"""Browsers: pages of the origins that an operator names may call, and others are told nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from qwen3vl_compat.settings import ServerSettings, Settings, SettingsError, load_settings
from tests.server.test_app import House

PAGE = "https://app.example.org"
CHAT = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "hello"}]}
ASKING = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


async def client_of(folder: Path, origins: tuple[str, ...]) -> AsyncIterator[httpx.AsyncClient]:
    house = House(folder / "state", Settings(server=ServerSettings(cors_origins=origins)))
    await house.service.open_books()
    async with house.client() as made:
        yield made
    await house.service.cache.close()
    await house.service.close_books()
    house.accounts.database.dispose()


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async for client in client_of(tmp_path, (PAGE,)):
        yield client


@pytest.fixture
async def everyone(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async for client in client_of(tmp_path, ("*",)):
        yield client


@pytest.fixture
async def nobody(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async for client in client_of(tmp_path / "nobody", ()):
        yield client


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1beta/models/qwen3-vl:generateContent", "/v1/models"])
async def test_a_browser_may_ask_before_it_sends_a_key(one: httpx.AsyncClient, path: str) -> None:
    answer = await one.options(path, headers={"authorization": "", "origin": PAGE, **ASKING})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == ASKING["access-control-request-headers"]
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers


async def test_answers_and_refusals_can_be_read_by_the_page(one: httpx.AsyncClient) -> None:
    for body, key, status in ((CHAT, None, 200), (CHAT | {"stream": True}, None, 200), (CHAT, "Bearer sk-wrong", 401)):
        headers = {"origin": PAGE} | ({"authorization": key} if key else {})
        answer = await one.post("/v1/chat/completions", json=body, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
        assert answer.headers["access-control-expose-headers"] == "*"
    repeated = [
        await one.post("/v1/chat/completions", json=CHAT | {"seed": 1}, headers={"origin": PAGE}) for _ in "abc"
    ]
    assert [each.headers["x-cache"] for each in repeated] == ["miss", "hit", "hit"]
    assert all(each.headers["access-control-allow-origin"] == PAGE for each in repeated)


async def test_pages_of_other_origins_are_told_nothing(one: httpx.AsyncClient, nobody: httpx.AsyncClient) -> None:
    for client, origin in ((one, "https://evil.example.org"), (one, PAGE + ".evil"), (one, "null"), (nobody, PAGE)):
        asked = await client.options("/v1/models", headers={"authorization": "", "origin": origin, **ASKING})
        assert asked.status_code == 401
        answer = await client.get("/v1/models", headers={"origin": origin})
        assert answer.status_code == 200
        assert not [name for name in (*asked.headers, *answer.headers) if name.startswith("access-control")]


async def test_all_may_be_let_in(everyone: httpx.AsyncClient) -> None:
    answer = await everyone.get("/v1/models", headers={"origin": "https://anywhere.example.org"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in (await everyone.get("/v1/models")).headers


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "ftp://x", ""])
def test_an_origin_that_is_none_ends_the_start(origin: str) -> None:
    with pytest.raises(SettingsError, match="cors_origins"):
        load_settings(flags={"server.cors_origins": [origin]})
