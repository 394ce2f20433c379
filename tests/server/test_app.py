"""The application without a socket: its routes, its door, and how a body is read."""

import asyncio
import atexit
import gc
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.engines import Engine
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import ApiError, DeadlineExceeded, Overloaded
from qwen3vl_compat.messages import Caller
from qwen3vl_compat.server.answer import Service, unless_gone
from qwen3vl_compat.server.app import build_app, build_routes, build_service
from qwen3vl_compat.server.body import Disconnected, read_json_body
from qwen3vl_compat.server.door import needs_key
from qwen3vl_compat.server.exchange import Exchange
from qwen3vl_compat.server.lifecycle import Lifecycle
from qwen3vl_compat.settings import ServerSettings, Settings


@cache
def _template() -> Path:
    """The state folder of a new installation: to copy one is several times faster than to make it."""
    made = Path(tempfile.mkdtemp(prefix="house-"))
    atexit.register(shutil.rmtree, made)
    open_database(made / "state").dispose()
    return made / "state"


class House:
    """A server's application with a database of its own, and the keys of its first start."""

    def __init__(self, folder: Path, settings: Settings | None = None, engine: Engine | None = None) -> None:
        settings = settings or Settings()
        if not folder.exists():
            shutil.copytree(_template(), folder)
        self.accounts = open_accounts(open_database(folder), settings)
        first = self.accounts.keys.ensure_first()
        assert first is not None
        self.key, self.admin = first.model, first.admin
        self.service = build_service(settings, engine or ScriptedEngine(settings), self.accounts)

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        """One that sends the model key, another, or with an empty text none."""
        secret = self.key.secret_text if key is None else key
        transport = httpx.ASGITransport(app=build_app(self.service))  # type: ignore[arg-type]
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        return httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "state")
    await made.service.open_books()
    yield made
    await made.service.close_books()
    made.accounts.database.dispose()


@pytest.fixture
def service(house: House) -> Service:
    return house.service


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with house.client() as made:
        yield made


def routes(service: Service) -> list[tuple[str, str]]:
    """Every path with a made-up value for its parameters, and each of its methods."""
    found = []
    for route in build_routes(service).routes:
        path = re.sub(r"\{[^}]+\}", "qwen3-vl:generateContent", route.path)
        found += [(path, method) for method in getattr(route, "methods", ()) if method != "OPTIONS"]
    return found


async def test_every_route_but_the_open_ones_needs_a_key(service: Service, client: httpx.AsyncClient) -> None:
    walked = routes(service)
    assert len(walked) >= 8
    for path, method in walked:
        answer = await client.request(method, path, headers={"authorization": ""})
        assert (answer.status_code in (400, 401, 403)) == (needs_key(path)), path


async def test_every_post_answers_200(service: Service) -> None:
    """google-genai takes no other 2xx for success, and a POST of Litestar's answers 201 by itself."""
    handlers = [handler for route in build_routes(service).routes for handler in getattr(route, "route_handlers", ())]
    posts = [handler for handler in handlers if {"POST", "DELETE"} & set(handler.http_methods)]
    assert posts
    assert all(handler.status_code == 200 for handler in posts)


async def test_metrics_take_an_admin_key_unless_set_open(tmp_path: Path) -> None:
    closed = House(tmp_path / "closed")
    opened = House(tmp_path / "open", Settings(server=ServerSettings(open_metrics=True)))
    for house, key, status in (
        (closed, closed.admin.secret_text, 200), (closed, closed.key.secret_text, 403), (closed, "", 401),
        (opened, "", 200),
    ):  # fmt: skip
        async with house.client(key) as made:
            assert (await made.get("/metrics")).status_code == status


@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/metrics/", "///metrics//", "/admin/x", "//admin/x"])
async def test_what_takes_an_admin_key_takes_no_other_however_it_is_spelt(house: House, path: str) -> None:
    """Litestar routes a path with more slashes like the one without them; so must the door judge it."""
    for key, status in ((house.key, 403), (house.admin, 200 if "metrics" in path else 404)):
        async with house.client(key.secret_text) as made:
            assert (await made.get(f"http://t{path}")).status_code == status


async def test_a_wrong_method_names_the_right_ones(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/chat/completions")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]


async def test_both_families_read_one_model_list(client: httpx.AsyncClient) -> None:
    for version in ("v1", "v1beta"):
        listed = (await client.get(f"/{version}/models")).json()
        assert listed["data"][0]["id"] == "qwen3-vl"
        assert listed["models"][0]["name"] == "models/qwen3-vl"
        one = (await client.get(f"/{version}/models/models%2Fqwen3-vl")).json()
        assert (one["id"], one["name"]) == ("qwen3-vl", "models/qwen3-vl")


# ----------------------------------------------------------------------------------------------------- the body


def exchange(**headers: str) -> Exchange:
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    encoded = [(name.encode(), value.encode()) for name, value in sent.items()]
    scope: Any = {"path": "/v1/x", "method": "POST", "headers": encoded, "query_string": b""}
    return Exchange(scope)


def coming(*pieces: bytes | float) -> Any:
    """A client that sends these pieces, waiting where a number stands, and then hangs up."""
    waiting = list(pieces)

    async def receive() -> Any:
        if waiting and isinstance(waiting[0], float):
            await asyncio.sleep(float(waiting.pop(0)))
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    return receive


LIMITS = ServerSettings(max_body=10, body_idle=0.1, body_total=0.25)


async def test_a_body_is_put_together() -> None:
    assert await read_json_body(exchange(), coming(b"{", b"", b"}"), LIMITS) == b"{}"


@pytest.mark.parametrize(
    ("headers", "pieces", "status"),
    [
        ({"content_length": "11"}, (), 413),
        ({"content_length": "9" * 400}, (), 413),
        ({}, (b"123456", b"78901", b""), 413),
        ({}, (b"{", 0.5, b"}"), 408),
        ({}, (b"1", 0.09, b"2", 0.09, b"3", 0.09, b"4", 0.09, b"5"), 408),
        ({"content_type": "text/json"}, (b"{}",), 415),
        ({"content_type": ""}, (b"{}",), 415),
        ({"content_encoding": "br"}, (b"{}",), 415),
    ],
)
async def test_a_body_that_is_too_much_or_too_slow(
    headers: dict[str, str], pieces: tuple[bytes | float, ...], status: int
) -> None:
    with pytest.raises(ApiError) as refused:
        await read_json_body(exchange(**headers), coming(*pieces), LIMITS)
    assert refused.value.status == status


async def test_a_client_that_leaves_while_it_sends() -> None:
    def half() -> Any:
        sent = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return sent.pop(0)

        return receive

    with pytest.raises(Disconnected):
        await read_json_body(exchange(), half(), LIMITS)


async def test_the_request_says_who_calls(house: House) -> None:
    callers = []
    inner = house.service.generate

    def generate(request: Any) -> Any:
        callers.append((request.caller, request.wire))
        return inner(request)

    house.service.generate = generate
    chat = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hi"}]}
    async with house.client() as made:
        assert (await made.post("/v1/chat/completions", json=chat)).status_code == 200
        native = {"contents": [{"parts": [{"text": "Hi"}]}]}
        assert (await made.post("/v1beta/models/qwen3-vl:generateContent", json=native)).status_code == 200
    caller = Caller("default", house.key.key.public)
    assert callers == [(caller, "openai"), (caller, "google")]


async def test_a_deadline_holds_though_events_are_always_ready() -> None:
    async def ready() -> AsyncIterator[int]:
        for number in range(10**9):
            yield number

    lifecycle = Lifecycle()
    with pytest.raises(DeadlineExceeded):
        async for _ in lifecycle.until(ready(), asyncio.get_running_loop().time() + 0.05):  # type: ignore[arg-type]
            pass
    lifecycle.draining = True
    lifecycle.cut()
    with pytest.raises(Overloaded):
        async for _ in lifecycle.until(ready(), asyncio.get_running_loop().time() + 60):  # type: ignore[arg-type]
            pass


async def test_what_takes_its_time_to_end_does_not_keep_the_server_from_stopping() -> None:
    """Its deadline is over, or it was cut off before; and closing its row takes a while."""
    lifecycle, ending, ended = Lifecycle(), asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        try:
            await asyncio.sleep(60)
            yield 0
        finally:
            ending.set()
            await ended.wait()

    async def read(seconds: float) -> None:
        async for _ in lifecycle.until(slow(), asyncio.get_running_loop().time() + seconds):  # type: ignore[arg-type]
            pass

    late, cut_off = asyncio.create_task(read(0.01)), asyncio.create_task(read(60))
    await ending.wait()
    lifecycle.cut()
    await asyncio.sleep(0.01)
    lifecycle.cut()
    ended.set()
    results = await asyncio.gather(late, cut_off, return_exceptions=True)
    assert [type(result) for result in results] == [Overloaded, Overloaded]


async def test_what_fails_when_its_client_has_gone_is_nobodys_surprise() -> None:
    """Closing a row may fail too; the loop would tell the log of an error that nobody has seen."""
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    async def failing() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise Overloaded("The server cannot book this answer now.")

    with pytest.raises(Disconnected):
        await unless_gone(failing(), coming())
    gc.collect()
    assert told == []
