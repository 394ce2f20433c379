"""Who may come in: addresses and their limits, requests of keys and tenants, callers without a key, a lost database."""

import asyncio
import base64
import socket
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from sqlalchemy import event

from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.cli import main
from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.server.app import build_app, build_routes, build_service
from qwen3vl_compat.server.door import needs_key
from qwen3vl_compat.server.files import make_files
from qwen3vl_compat.server.guard import Guard
from qwen3vl_compat.settings import (
    LedgerSettings,
    LimitSettings,
    ModelSettings,
    Quotas,
    ServerSettings,
    Settings,
    SettingsError,
)
from tests.serving import Served, serving

PEER = "203.0.113.9"
CHAT: Any = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hi"}]}
PICTURE = {"type": "image_url",
           "image_url": {"url": "data:image/png;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()}}  # fmt: skip
NATIVE: Any = {"contents": [{"parts": [{"text": "Hi"}]}]}
FORM = {"files": {"file": ("a.txt", b"hello", "text/plain")}, "data": {"purpose": "user_data"}}
START = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start",
         "x-goog-upload-header-content-length": "5"}  # fmt: skip

Call = tuple[str, str, dict[str, Any]]
CALLS: tuple[Call, ...] = (
    ("POST", "/v1/chat/completions", {"json": CHAT}),
    ("POST", "/v1/chat/completions", {"json": CHAT | {"stream": True}}),
    ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"idempotency-key": "a"}}),
    ("POST", "/v1/chat/completions", {"json": CHAT | {"messages": [{"role": "user", "content": [PICTURE]}]}}),
    ("POST", "/v1beta/models/qwen3-vl:generateContent", {"json": NATIVE}),
    ("POST", "/v1beta/models/qwen3-vl:streamGenerateContent", {"json": NATIVE}),
    ("POST", "/v1beta/models/qwen3-vl:streamGenerateContent?alt=sse", {"json": NATIVE}),
    ("GET", "/v1/files", {}),
    ("GET", "/v1beta/files", {}),
    ("GET", "/v1/files/file-" + "0" * 24, {}),
    ("DELETE", "/v1/files/file-" + "0" * 24, {}),
    ("POST", "/v1/files", FORM),
    ("POST", "/upload/v1beta/files", {"headers": START}),
    ("GET", "/v1/usage", {}),
    ("GET", "/v1/usage/export", {}),
    ("GET", "/v1/limits", {}),
)
"""What a model key can ask that reads or writes the database, whatever is remembered of the key."""
ANSWERED = sum("files" not in path for method, path, _ in CALLS if method == "POST")
"""So many of them have a row in the ledger."""
UNTOUCHED: tuple[Call, ...] = (
    ("GET", "/v1/models", {}),
    ("GET", "/v1/models/qwen3-vl", {}),
    ("POST", "/v1beta/models/qwen3-vl:countTokens", {"json": NATIVE}),
)
"""And what does not."""


class House:
    """A server's application, and the keys of its first start."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = replace(settings, server=replace(settings.server, state_dir=str(folder)))
        self.database = open_database(folder)
        self.accounts = open_accounts(self.database, self.settings)
        first = self.accounts.keys.ensure_first()
        assert first is not None
        self.key, self.admin = first.model.secret_text, first.admin.secret_text
        files = make_files(self.settings, self.database)
        self.service = build_service(self.settings, ScriptedEngine(self.settings), self.accounts, files=files)
        self.app: Any = build_app(self.service)

    async def ask(self, call: Call, key: str | None = None, peer: str = PEER) -> httpx.Response:
        """From an address, with the model key, another, or with an empty text none."""
        method, path, more = call
        transport = httpx.ASGITransport(self.app, client=(peer, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
            secret = self.key if key is None else key
            headers = ({"authorization": f"Bearer {secret}"} if secret else {}) | more.get("headers", {})
            return await client.request(method, path, **more | {"headers": headers})

    async def get(self, path: str, key: str | None = None, peer: str = PEER, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask(("GET", path, {"headers": named}), key, peer)


@asynccontextmanager
async def housing(folder: Path, **tables: Any) -> AsyncIterator[House]:
    made = House(folder / "state", Settings(**tables))
    await made.service.open_books()
    try:
        yield made
    finally:
        await made.service.close()
        made.database.dispose()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with housing(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One whose books are never opened, for guards of other settings."""
    made = House(tmp_path_factory.mktemp("idle"), Settings())
    yield made
    made.database.dispose()


def keyed_routes(house: House) -> Iterator[Call]:
    """Every path that needs a key, with a made-up value for its parameters, and each of its methods."""
    for route in build_routes(house.service).routes:
        path = "/".join("qwen3-vl:generateContent" if part[:1] == "{" else part for part in route.path.split("/"))
        for method in sorted(getattr(route, "methods", ())):
            if needs_key(path) and method != "OPTIONS":
                yield method, path, {}


# ----------------------------------------------------------------------------------------------------------- addresses

LIMIT = LimitSettings(ip="3/year")
"""So long that no test meets the end of a window."""


async def test_requests_of_an_address_count_with_any_key_or_none(tmp_path: Path) -> None:
    async with housing(tmp_path, limits=LIMIT) as house:
        wrong = house.key[:-1] + ("a" if house.key[-1] != "a" else "b")
        answers = [await house.get("/v1/models", key) for key in (house.key, wrong, "", house.key, wrong, "")]
        assert [answer.status_code for answer in answers] == [200, 401, 401, 429, 429, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == list("210000")
        refused = answers[3]
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert "limit of this address is reached: 3 requests" in refused.json()["error"]["message"]
        assert refused.headers["x-should-retry"] == "false"
        native = await house.ask(("POST", "/v1beta/models/qwen3-vl:generateContent", {"json": NATIVE}))
        assert (native.status_code, native.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert (await house.get("/v1/models", peer="203.0.113.10")).status_code == 200
        assert (await house.get("/livez")).status_code == 200


async def test_keys_cannot_be_guessed_on(tmp_path: Path) -> None:
    """However many are tried, of one address only so many are looked at; an admin key's door is the same."""
    async with housing(tmp_path, limits=LIMIT) as house:
        made_up = (f"sk-{number:012d}-{'x' * 43}" for number in range(10))
        found = [(await house.get("/admin/keys", key)).status_code for key in made_up]
        assert found == [401] * 3 + [429] * 7
        assert (await house.get("/admin/keys", house.admin)).status_code == 429


@pytest.mark.parametrize(
    ("peers", "one"),
    [
        (("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:DB8:1:2:0::"), True),
        (("2001:db8:1:2::1", "2001:db8:1:3::1"), False),
        (("203.0.113.9", "::ffff:203.0.113.9", "::FFFF:cb00:7109"), True),
        (("203.0.113.9", "203.0.113.10"), False),
        (("fe80::1%eth0", "fe80::2%eth1"), True),
    ],
)
async def test_of_an_ipv6_address_its_network_counts(tmp_path: Path, peers: tuple[str, ...], one: bool) -> None:
    async with housing(tmp_path, limits=LimitSettings(ip="1/year")) as house:
        assert (await house.get("/v1/models", peer=peers[0])).status_code == 200
        for peer in peers[1:]:
            assert (await house.get("/v1/models", peer=peer)).status_code == (429 if one else 200)


PROXY, OUTER = "10.1.1.1", "2001:db8::80"


@pytest.mark.parametrize(
    ("peer", "said", "address"),
    [
        (PEER, ("198.51.100.7",), PEER),
        (PROXY, (), PROXY),
        (PROXY, ("",), PROXY),
        (PROXY, ("198.51.100.7",), "198.51.100.7"),
        (PROXY, ("192.0.2.1, 198.51.100.7",), "198.51.100.7"),
        (PROXY, (f"192.0.2.1,198.51.100.7 , {OUTER}",), "198.51.100.7"),
        (PROXY, ("192.0.2.1", "198.51.100.7"), "198.51.100.7"),
        (PROXY, ("192.0.2.1", "198.51.100.7", OUTER), "198.51.100.7"),
        (PROXY, ("192.0.2.1, unknown",), PROXY),
        (PROXY, (f"192.0.2.1, _hidden, {OUTER}",), "2001:db8::"),
        (PROXY, (f"10.2.2.2, {OUTER}",), "10.2.2.2"),
        (PROXY, ("2001:db8:5:6:7::8",), "2001:db8:5:6::"),
        (f"::ffff:{PROXY}", ("198.51.100.7",), "198.51.100.7"),
        (PROXY, ("::ffff:198.51.100.7",), "198.51.100.7"),
        (PROXY, ("192.0.2.1, 198.51.100.7:4711",), "198.51.100.7"),
        (PROXY, ("192.0.2.1, [2001:db8:5:6:7::8]:4711",), "2001:db8:5:6::"),
        (PROXY, ("192.0.2.1, [2001:db8:5:6:7::8]",), "2001:db8:5:6::"),
    ],
)
def test_whose_word_is_taken(idle: House, peer: str, said: tuple[str, ...], address: str) -> None:
    """The right-most address that is no trusted proxy's; what cannot be read is cannot passed over."""
    server = ServerSettings(trusted_proxies=("10.0.0.0/8", OUTER))
    guard = Guard(Settings(server=server), idle.accounts, idle.service.limiter)
    headers = [(b"host", b"t"), *((b"x-forwarded-for", line.encode()) for line in said)]
    assert guard.address_of({"headers": headers, "client": (peer, 4711)}) == address


@pytest.mark.parametrize("peer", [PEER, "10.1.1.1"])
async def test_made_up_addresses_change_nothing(tmp_path: Path, peer: str) -> None:
    server = ServerSettings(trusted_proxies=("10.0.0.0/8",))
    async with housing(tmp_path, limits=LIMIT, server=server) as house:
        fakes = (f"192.0.2.{number}, 198.51.100.7" for number in range(20))
        found = [(await house.get("/v1/models", peer=peer, x_forwarded_for=fake)).status_code for fake in fakes]
        assert found == [200] * 3 + [429] * 17


# --------------------------------------------------------------------------------------------------- keys and tenants


async def test_requests_of_a_key_count_on_every_route(house: House) -> None:
    for method, path, _ in keyed_routes(house):
        admin = path.startswith("/admin") or path == "/metrics"
        key = house.accounts.keys.create("default", admin=admin, limits=Quotas(requests="2/year;5/day")).secret_text
        answers = [await house.ask((method, path, {}), key) for _ in range(3)]
        assert [answer.status_code == 429 for answer in answers] == [False, False, True], (method, path)
        told = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
        assert told == ["1", "0", "0"], (method, path)
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
        assert all(answer.headers["x-ratelimit-reset-requests"].endswith("s") for answer in answers)
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60


async def test_requests_of_a_tenant_count_whatever_its_keys_ask(house: House) -> None:
    house.accounts.tenants.create("acme", limits={"requests": "6/year"})
    first, second = (house.accounts.keys.create("acme").secret_text for _ in range(2))
    admin = house.accounts.keys.create("acme", admin=True).secret_text
    paths = ("/v1/models", "/v1/files", "/v1/usage", "/v1/nothing")
    asked = [CALLS[0], *(("GET", path, {}) for path in paths), UNTOUCHED[-1]]
    answers = [await house.ask(call, key) for call, key in zip(asked, [first, second] * 3, strict=True)]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == list("543210")
    for key in (first, second):
        refused = await house.get("/v1/models", key)
        assert refused.status_code == 429
        assert "limit of this tenant is reached: 6 requests" in refused.json()["error"]["message"]
    assert (await house.get("/admin/tenants", admin)).status_code == 200
    assert (await house.get("/v1/models")).status_code == 200


async def test_a_request_that_one_limit_refuses_is_counted_by_no_other(house: House) -> None:
    house.accounts.tenants.create("acme", limits={"requests": "3/year"})
    small, other = (
        house.accounts.keys.create("acme", limits=Quotas(requests=requests)).secret_text for requests in ("1/year", "")
    )
    found = [(await house.get("/v1/models", key)).status_code for key in (small, small, small, other, other, other)]
    assert found == [200, 429, 429, 200, 200, 429]


async def test_headers_come_with_every_kind_of_answer(house: House) -> None:
    key = house.accounts.keys.create("default", limits=Quotas(requests="100/year")).secret_text
    more: list[Call] = [
        ("POST", "/v1/chat/completions", {"json": {}}),
        ("POST", "/v1/chat/completions", {"content": b"{", "headers": {"content-type": "application/json"}}),
        ("PUT", "/v1/chat/completions", {}),
        ("GET", "/v1/nothing", {}),
        ("GET", "/metrics", {}),
    ]
    for call in [*CALLS, *UNTOUCHED, *more]:
        answer = await house.ask(call, key)
        assert answer.status_code < 500
        assert len(answer.headers["x-request-id"]) == 24
        if answer.status_code != 403:
            assert answer.headers["x-ratelimit-limit-requests"] == "100", call
            assert len(answer.headers.get_list("x-ratelimit-limit-requests")) == 1


# ------------------------------------------------------------------------------------------------------- without a key

ANONYMOUS = ServerSettings(anonymous_tenant="guests")


async def test_who_sends_no_key_is_a_tenant(tmp_path: Path) -> None:
    async with housing(tmp_path, server=ANONYMOUS) as house:
        house.accounts.tenants.create("guests", limits={"requests": f"{len(CALLS + UNTOUCHED)}/year"})
        answers = [await house.ask(call, "") for call in CALLS + UNTOUCHED]
        assert {answer.status_code for answer in answers} <= {200, 400, 404}
        for answer, (_, path, _) in zip(answers, CALLS + UNTOUCHED, strict=True):
            assert answer.status_code == 200 or "files" in path, answer.text
        assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"
        assert (await house.get("/v1/models", "")).status_code == 429
        assert (await house.get("/v1/models")).status_code == 200
        with house.database.connect() as connection:
            rows = connection.exec_driver_sql("SELECT tenant, key, state FROM ledger").all()
        assert [tuple(row) for row in rows] == [("guests", "", "final")] * ANSWERED


@pytest.mark.parametrize(
    ("host", "anywhere", "status"),
    [
        ("localhost", False, 200),
        ("127.0.0.1:8080", False, 200),
        ("[::1]:8080", False, 200),
        ("evil.example", False, 403),
        ("127.0.0.1.evil.example", False, 403),
        ("[2001:db8::9]:80", False, 403),
        ("evil.example", True, 200),
    ],
)
async def test_a_web_page_that_finds_this_server_by_a_name_of_its_own_is_nobody(
    tmp_path: Path, host: str, anywhere: bool, status: int
) -> None:
    server = ServerSettings(anonymous_tenant="guests", anonymous_anywhere=anywhere)
    async with housing(tmp_path, server=server) as house:
        house.accounts.tenants.create("guests")
        chat: Call = ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"host": host}})
        assert (await house.ask(chat, "")).status_code == status
        assert (await house.ask(chat)).status_code == 200


async def test_what_an_address_may_not_ask_is_not_looked_up(tmp_path: Path) -> None:
    async with housing(tmp_path, limits=LimitSettings(ip="2/day")) as house:
        reads: list[object] = []

        def note(connection: object) -> None:
            if threading.current_thread().name != "ledger":  # which gives its sign of life meanwhile
                reads.append(connection)

        event.listen(house.database, "begin", note)
        statuses = []
        for number in range(20):
            if number == 2:
                reads.clear()
            statuses.append((await house.get("/v1/models", f"sk-{number:012}-{'x' * 43}")).status_code)
        assert statuses == [401, 401] + [429] * 18
        assert reads == []


async def test_the_tenant_without_a_key_has_limits_and_sees_its_own(tmp_path: Path) -> None:
    async with housing(tmp_path, server=ANONYMOUS) as house:
        house.accounts.prices.set("*", text_in="1", out="1")
        house.accounts.tenants.create("guests", limits={"tokens_out": 100, "budget": "0.5/month"})
        chat: Call = ("POST", "/v1/chat/completions", {"json": CHAT | {"max_tokens": 101}})
        assert "cannot pass" in (await house.ask(chat, "")).json()["error"]["message"]
        passed = await house.ask(("POST", "/v1/chat/completions", {"json": CHAT | {"max_tokens": 9}}), "")
        assert (passed.status_code, passed.headers["x-budget-limit"]) == (200, "0.50")
        (result,) = (await house.get("/v1/usage", "")).json()["data"][-1]["results"]
        assert (result["requests"], result["cost"]) == (1, passed.headers["x-cost-total"])
        limits = (await house.get("/v1/limits", "")).json()
        assert limits["tenant"]["budget"]["month"]["spent"] == result["cost"]
        assert limits["key"]["budget"]["month"]["limit"] is None


async def test_a_wrong_key_is_refused_though_none_would_do(tmp_path: Path) -> None:
    async with housing(tmp_path, server=ANONYMOUS) as house:
        house.accounts.tenants.create("guests")
        revoked = house.accounts.keys.create("guests")
        house.accounts.keys.revoke(revoked.key.public)
        for wrong in ("sk-wrong", house.key + "x", revoked.secret_text):
            assert (await house.get("/v1/models", wrong)).status_code == 401
        native = await house.get("/v1beta/models", "", x_goog_api_key="wrong")
        assert (native.status_code, native.json()["error"]["details"][0]["reason"]) == (400, "API_KEY_INVALID")
        assert (await house.get("/v1beta/models?key=wrong", "")).status_code == 400
        assert (await house.get("/v1beta/models", "")).status_code == 200


async def test_nobody_administers_without_a_key(tmp_path: Path) -> None:
    async with housing(tmp_path, server=ANONYMOUS) as house:
        house.accounts.tenants.create("guests")
        for path in ("/metrics", "//metrics", "/metrics/", "/admin/keys", "//admin//tenants/", "/admin/x"):
            assert (await house.get(f"http://t{path}", "")).status_code == 401
            assert (await house.get(f"http://t{path}")).status_code == 403


async def test_a_tenant_that_is_not_there_or_suspended_serves_nobody(tmp_path: Path) -> None:
    for status in ("", "suspended"):
        async with housing(tmp_path / (status or "none"), server=ANONYMOUS) as house:
            if status:
                house.accounts.tenants.create("guests")
                house.accounts.tenants.change("guests", status="suspended")
            for call in CALLS + UNTOUCHED:
                refused = await house.ask(call, "")
                assert refused.status_code == 403, call
                assert "does not exist or is suspended" in refused.json()["error"]["message"]
            assert (await house.get("/v1/models")).status_code == 200


@pytest.mark.parametrize(
    ("host", "anywhere", "starts"),
    [
        ("127.0.0.1", False, True), ("127.9.9.9", False, True), ("::1", False, True), ("localhost", False, True),
        ("0.0.0.0", False, False), ("::", False, False), ("", False, False), ("192.0.2.1", False, False),
        ("example.org", False, False), ("0.0.0.0", True, True),
    ],
)  # fmt: skip
def test_the_world_is_not_served_by_mistake(idle: House, host: str, anywhere: bool, starts: bool) -> None:
    server = ServerSettings(host=host, anonymous_tenant="guests", anonymous_anywhere=anywhere)
    if starts:
        Guard(Settings(server=server), idle.accounts, idle.service.limiter)
        return
    with pytest.raises(SettingsError, match="anonymous_anywhere"):
        Guard(Settings(server=server), idle.accounts, idle.service.limiter)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SERVER__ANONYMOUS_TENANT": "guests", "SERVER__HOST": "0.0.0.0"}, "anonymous_tenant serves requests"),
        ({"LIMITS__IP": "often"}, "ip: 'often' is no limit"),
        ({"SERVER__TRUSTED_PROXIES": "proxy"}, "trusted_proxies: proxy is no network"),
    ],
)
def test_a_mistake_ends_the_start_with_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    said: str,
) -> None:
    for name, value in (variables | {"MODEL__ENGINE": "scripted", "SERVER__PORT": "0"}).items():
        monkeypatch.setenv(f"QWEN3VL_{name}", value)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--state-dir", str(tmp_path / "state")])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert line.startswith("qwen3vl-compat: ")


# ------------------------------------------------------------------------------------------------------- over a socket


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose callers are few; a test that counts comes from an address of its own."""
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_LIMITS__IP": "3/year"}
    with serving(tmp_path_factory.mktemp("guarded"), environment=environment) as served:
        yield served


needs_more_loopback = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is no address here")


@contextmanager
def coming_from(address: str, served: Served) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(local_address=address)
    headers = {"authorization": f"Bearer {served.key}"}
    with httpx.Client(transport=transport, base_url=served.url, headers=headers, timeout=30) as client:
        yield client


@needs_more_loopback
def test_a_proxy_on_the_same_machine_is_not_trusted_either(guarded: Served) -> None:
    with coming_from("127.0.0.2", guarded) as client:
        fakes = ({"x-forwarded-for": f"192.0.2.{number}", "x-forwarded-proto": "https"} for number in range(6))
        assert [client.get("/v1/models", headers=fake).status_code for fake in fakes] == [200] * 3 + [429] * 3
    with coming_from("127.0.0.1", guarded) as client:  # which a server behind nothing would be told by default
        fakes = ({"x-forwarded-for": f"192.0.2.{number}"} for number in range(6))
        assert [client.get("/v1/models", headers=fake).status_code for fake in fakes][3:] == [429] * 3
    with coming_from("127.0.0.3", guarded) as client:
        assert client.get("/v1/models").status_code == 200


@needs_more_loopback
@pytest.mark.parametrize(
    ("source", "path", "key", "status"),
    [
        ("127.0.1.1", "/v1/chat/completions", "", 401),
        ("127.0.1.2", "/v1/chat/completions", "sk-wrong", 401),
        ("127.0.1.3", "/v1/chat/completions", "admin", 403),
        ("127.0.1.4", "/v1beta/models/qwen3-vl:generateContent", "", 403),
        ("127.0.1.5", "/v1/files", "", 401),
        ("127.0.1.6", "/upload/v1beta/files", "", 403),
        ("127.0.1.7", "/v1/chat/completions", "model", 429),
    ],
)
def test_a_body_that_nobody_reads_holds_up_nobody(
    guarded: Served, source: str, path: str, key: str, status: int
) -> None:
    """The answer comes while the body is being sent, and with it the end of the connection on this side."""
    secret = {"admin": guarded.admin_key, "model": guarded.key}.get(key, key)
    if status == 429:
        with coming_from(source, guarded) as client:
            assert [client.get("/v1/models").status_code for _ in range(3)] == [200] * 3
    host, port = guarded.url.removeprefix("http://").split(":")
    size = 40 * 2**20
    bearer = f"Authorization: Bearer {secret}\r\n" if secret else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\nContent-Type: application/json\r\n{bearer}\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0)) as connection:
        connection.sendall(head.encode())
        connection.sendall(b" " * (size // 2))  # what is sent all the same does not take the answer back
        got = b""
        while piece := connection.recv(65536):
            got += piece
    assert got.startswith(f"HTTP/1.1 {status} ".encode()), got
    assert b"connection: close" in got
    assert b"x-request-id: " in got


@needs_more_loopback
def test_a_client_that_sends_it_all_first_sees_why(guarded: Served) -> None:
    with coming_from("127.0.0.4", guarded) as client:
        for status in (200, 401, 401, 429, 429):
            key = guarded.key if status in (200, 429) else "sk-wrong"
            body = b'{"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hi"}]}' + b" " * 30_000_000
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            answer = client.post("/v1/chat/completions", content=body, headers=headers)
            assert answer.status_code == status, answer.text


# ----------------------------------------------------------------------------------------------------- a lost database


def move_away(house: House) -> Callable[[], None]:
    """The file, its log and all; what is open stays open."""
    folder = Path(house.settings.server.state_dir)
    away = folder.with_name("away")
    away.mkdir()
    for path in folder.glob(f"{FILE}*"):
        path.rename(away / path.name)

    def back() -> None:
        for path in folder.glob(f"{FILE}*"):
            path.unlink()
        for path in away.iterdir():
            path.rename(folder / path.name)

    return back


def move_away_and_hang_up(house: House) -> Callable[[], None]:
    """And no connection is left."""
    back = move_away(house)
    house.database.dispose()
    return back


def lock(house: House) -> Callable[[], None]:
    """By somebody who writes and does not end."""
    other = sqlite3.connect(Path(house.settings.server.state_dir) / FILE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    def back() -> None:
        with closing(other):
            other.execute("ROLLBACK")

    return back


@pytest.fixture
async def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """One that does not wait long for its database."""
    monkeypatch.setattr("qwen3vl_compat.accounts.sqlite._WAIT_S", 0.1)
    async with housing(tmp_path, ledger=LedgerSettings(wait=0.3), model=ModelSettings(pause=0.01)) as made:
        yield made


loses = pytest.mark.parametrize("lose", [move_away, move_away_and_hang_up, lock], ids=lambda lose: lose.__name__)


def is_no_database(answer: httpx.Response) -> bool:
    """Whether it says so, in the words of its wire, and when to come again."""
    if answer.status_code not in (503, 529):
        return False
    error = answer.json()["error"]
    kind = error.get("type") in ("service_unavailable_error", "overloaded_error")
    return (kind or error.get("status") == "UNAVAILABLE") and answer.headers["retry-after"] == "5"


async def test_whoever_is_not_known_yet_is_told_to_come_again(hasty: House, caplog: pytest.LogCaptureFixture) -> None:
    back = move_away_and_hang_up(hasty)
    upload: Call = ("POST", "/upload/session/" + "x" * 43, {"headers": {"x-goog-upload-command": "query"}})
    for call in [*keyed_routes(hasty), upload]:
        for key in (hasty.key, hasty.admin):
            answer = await hasty.ask(call, key)
            assert is_no_database(answer), (call, answer.text)
            assert len(answer.headers["x-request-id"]) == 24
    for path in ("/livez", "/readyz", "/health"):
        assert (await hasty.get(path)).status_code in (200, 503)
    back()
    for key, path in ((hasty.key, "/v1/models"), (hasty.admin, "/admin/keys")):
        assert (await hasty.get(path, key)).status_code == 200
    assert not [record for record in caplog.records if record.name.endswith("failures")]


@loses
async def test_who_is_known_is_told_so_too(
    hasty: House, lose: Callable[[House], Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    """Everything that needs the database says 503; what does not, is served; nothing is a failure of ours."""
    for key, path in ((hasty.key, "/v1/models"), (hasty.admin, "/admin/keys")):
        assert (await hasty.get(path, key)).status_code == 200
    back = lose(hasty)
    written = [call for call in CALLS if call[0] == "POST"]
    for call in CALLS:
        answer = await hasty.ask(call)
        # a locked database can be read, and so can one that is open still
        readable = lose is not move_away_and_hang_up and call not in written
        assert is_no_database(answer) or (readable and answer.status_code in (200, 404)), (call, answer.text)
    for call in UNTOUCHED:
        assert (await hasty.ask(call)).status_code == 200, call
    for method, path, body in (
        ("POST", "/admin/tenants", {"id": "acme"}),
        ("POST", "/admin/keys", {"tenant": "default"}),
        ("POST", "/admin/prices", {"model": "*", "text_in": "1", "out": "1"}),
    ):
        answer = await hasty.ask((method, path, {"json": body}), hasty.admin)
        assert is_no_database(answer), (path, answer.text)
    assert (await hasty.get("/metrics", hasty.admin)).status_code == 200
    back()
    for call in CALLS:
        answer = await hasty.ask(call)
        assert answer.status_code in (200, 400, 404), (call, answer.text)
    with hasty.database.connect() as connection:
        states = connection.exec_driver_sql("SELECT state, count(*) FROM ledger GROUP BY state").all()
    assert dict(tuple(state) for state in states) == {"final": ANSWERED}
    said = [record.getMessage().partition(":")[0] for record in caplog.records if record.name.endswith("ledger")]
    assert said in ([], ["the ledger cannot be written", "the ledger can be written again"])
    assert said or lose is not lock
    assert not [record for record in caplog.records if record.name.endswith("failures")]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_booked_is_not_paid_for(hasty: House, stream: bool) -> None:
    """Its client is told that the server has failed, and may ask again."""
    hasty.accounts.prices.set("*", text_in="1", out="1")
    long = CHAT | {"messages": [{"role": "user", "content": "count to 50"}], "stream": stream}
    asking = asyncio.create_task(hasty.ask(("POST", "/v1/chat/completions", {"json": long})))
    await until(lambda: "open" in states(hasty))
    back = lock(hasty)
    answer = await asking
    back()
    if stream:
        assert answer.status_code == 200
        assert "cannot book this answer" in answer.text
        assert "[DONE]" not in answer.text
    else:
        assert is_no_database(answer)
    await until(lambda: "open" not in states(hasty))
    with hasty.database.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT state, finish, cost, out FROM ledger").all()
    assert tuple(row) == ("aborted", "failed", 0, 50)


def states(house: House) -> list[str]:
    with house.database.connect() as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT state FROM ledger")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- it is the database that changes
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("header", ["sk-abc", "Basic c2s=", "Bearer", "Bearer "])
async def test_a_key_without_its_scheme_is_not_said_to_be_missing(tmp_path: Path, header: str) -> None:
    async with housing(tmp_path) as house:
        answer = await house.get("/v1/models", "", authorization=header)
    told = "The Authorization header must begin with 'Bearer': send it as 'Authorization: Bearer sk-...'."
    assert (answer.status_code, answer.json()["error"]["message"]) == (401, told)
