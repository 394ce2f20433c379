"""Administration by REST: who may, what it does, and that nothing sent is answered with a 5xx."""

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from qwen3vl_compat.accounts.books import Accounts, open_accounts
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.endpoints import endpoint_of
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.server.answer import Service
from qwen3vl_compat.server.app import build_app, build_routes, build_service
from qwen3vl_compat.server.door import needs_key
from qwen3vl_compat.server.guard import METRICS
from qwen3vl_compat.settings import LimitSettings, Settings

SETTINGS = Settings(limits=LimitSettings(tokens=1000))
FORM = re.compile(r"sk-[0-9A-Za-z]{12}-[\w-]{43}")


class Office:
    """A server's accounts and its application, asked with an admin key unless another is named."""

    def __init__(self, service: Service, accounts: Accounts, client: httpx.AsyncClient) -> None:
        self.service, self.accounts, self.client = service, accounts, client
        first = accounts.keys.ensure_first()
        assert first is not None
        self.admin, self.model = first.admin, first.model

    async def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.admin.secret_text if key is None else key}"}
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if content is not None:
            headers["content-type"] = "application/json"
        return await self.client.request(method, path, content=content, headers=headers)

    async def get(self, path: str) -> Any:
        answer = await self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Any = None) -> Any:
        answer = await self.ask("POST", path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def patch(self, path: str, body: Any) -> Any:
        answer = await self.ask("PATCH", path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str, str | None]:
        """Status, code and field of a refusal, which is in OpenAI's form."""
        answer = await self.ask(method, path, body)
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert not re.search(r"sqlite|Traceback|0x[0-9a-f]{6}|\.py", error["message"])
        if error["param"]:
            assert error["param"].partition("[")[0].partition(".")[0] in error["message"]
        return answer.status_code, error["code"], error["param"]

    async def changes(self) -> list[dict[str, Any]]:
        """The audit, the oldest first, without what the first start did."""
        return (await self.get("/admin/audit?limit=1000"))["data"][-4::-1]


@pytest.fixture(scope="module")
def new_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as a first start leaves it, made once: each test takes a copy."""
    folder = tmp_path_factory.mktemp("new") / "state"
    open_database(folder).dispose()
    return folder / FILE


@pytest.fixture
async def office(tmp_path: Path, new_file: Path) -> AsyncIterator[Office]:
    shutil.copy(new_file, tmp_path)
    database = open_database(tmp_path)
    service = build_service(SETTINGS, ScriptedEngine(), open_accounts(database, SETTINGS))
    transport = httpx.ASGITransport(app=build_app(service))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield Office(service, service.accounts, client)
    database.dispose()


# --------------------------------------------------------------------------------------------------------- who may


def walked(service: Service) -> list[tuple[str, str]]:
    """Every method of every path, with a made-up value for its parameters."""
    found = []
    for route in build_routes(service).routes:
        path = re.sub(r"\{[^}]+\}", "x", route.path)
        found += [(method, path) for method in getattr(route, "methods", ()) if method != "OPTIONS"]
    return found


async def test_every_admin_route_takes_an_admin_key_and_no_other_route_does(office: Office) -> None:
    for method, path in walked(office.service):
        if not needs_key(path) or path == METRICS:
            continue
        admin = path.startswith("/admin/")
        assert (await office.ask(method, path, key="")).status_code in ((401,) if admin else (401, 403)), path
        invented = f"sk-{'A' * 12}-{'B' * 43}"
        assert (await office.ask(method, path, key=invented)).status_code in ((401,) if admin else (400, 401)), path
        for key in (office.model, office.admin):
            answer = await office.ask(method, path, key=key.secret_text)
            assert (answer.status_code == 403) == (admin != key.key.admin), (method, path)
    assert len([path for _, path in walked(office.service) if path.startswith("/admin/")]) >= 13


async def test_every_route_that_takes_a_model_key_belongs_to_an_endpoint(office: Office) -> None:
    for _, path in walked(office.service):
        takes_model_key = needs_key(path) and path != METRICS and not path.startswith("/admin/")
        assert (endpoint_of(path) is not None) == takes_model_key or path.startswith("/upload/session/"), path


async def test_a_revoked_admin_key_and_that_of_a_suspended_tenant_are_refused(office: Office) -> None:
    new = await office.post("/admin/keys", {"tenant": "default", "admin": True})
    assert (await office.ask("GET", "/admin/keys", key=new["key"])).status_code == 200
    await office.post(f"/admin/keys/{new['id']}/revoke")
    assert (await office.ask("GET", "/admin/keys", key=new["key"])).status_code == 401


# --------------------------------------------------------------------------------------------------------- tenants


async def test_a_tenant_is_made_shown_changed_and_listed(office: Office) -> None:
    made = await office.post("/admin/tenants", {"id": "acme", "name": "Acme", "limits": {"tokens": 5}})
    assert made == await office.get("/admin/tenants/acme")
    assert abs(made.pop("created_at") - time.time()) < 60
    assert made == {
        "object": "tenant",
        "id": "acme",
        "name": "Acme",
        "status": "active",
        "limits": {"tokens": 5},
        "media": {},
        "moderation": {},
        "currency": "USD",
    }
    body = {"name": "New", "status": "suspended", "limits": {"budget": "5.00/month"}, "media": {"max_images": 2}}
    changed = await office.patch("/admin/tenants/acme", body)
    assert {name: changed[name] for name in body} == body
    assert (await office.patch("/admin/tenants/acme", {"status": "active", "limits": {}}))["media"] == {"max_images": 2}
    listed = await office.get("/admin/tenants")
    assert [tenant["id"] for tenant in listed["data"]] == ["acme", "default"]
    assert await office.refused("POST", "/admin/tenants", {"id": "acme"}) == (409, "already_exists", "id")
    assert [change["action"] for change in await office.changes()] == ["tenant.create"] + ["tenant.change"] * 2


async def test_a_suspended_tenants_keys_are_refused(office: Office) -> None:
    await office.post("/admin/tenants", {"id": "acme", "status": "suspended"})
    new = await office.post("/admin/keys", {"tenant": "acme"})
    assert new["problem"] == "suspended"
    assert (await office.ask("GET", "/v1/models", key=new["key"])).status_code == 403


# ------------------------------------------------------------------------------------------------------------ keys


async def test_a_key_is_shown_whole_once(office: Office) -> None:
    end = int(time.time()) + 3600
    limits = {"requests": "60/minute", "tokens": 5, "budget": "0.50/day"}
    scopes = {"models": ["qwen3-vl"], "endpoints": ["generate", "models"]}
    new = await office.post(
        "/admin/keys", {"tenant": "default", "label": "x", "expires_at": end, "limits": limits, **scopes}
    )
    secret = new.pop("key")
    assert FORM.fullmatch(secret)
    assert secret[3:15] == new["id"]
    assert new == await office.get(f"/admin/keys/{new['id']}")
    assert {name: new[name] for name in scopes} == scopes
    assert (new["expires_at"], new["limits"], new["problem"], new["currency"]) == (end, limits, None, "USD")
    assert (await office.ask("GET", "/v1/models", key=secret)).status_code == 200
    shown = [await office.ask("GET", path) for path in ("/admin/keys", "/admin/audit", f"/admin/keys/{new['id']}")]
    assert not any(secret[16:] in answer.text or secret[16:26] in answer.text for answer in shown)
    assert not any(re.search(r'"hash"|[0-9a-f]{64}', answer.text) for answer in shown)


async def test_a_key_is_changed_rotated_and_revoked(office: Office) -> None:
    new = await office.post("/admin/keys", {"tenant": "default", "label": "x", "models": ["a"]})
    path = f"/admin/keys/{new['id']}"
    changed = await office.patch(path, {"label": "y", "models": None, "limits": {"tokens": 1}, "expires_at": None})
    assert (changed["label"], changed["models"], changed["limits"]) == ("y", None, {"tokens": 1})
    successor = await office.post(f"{path}/rotate", {"grace_seconds": 3600})
    assert (successor["label"], successor["limits"]) == ("y", {"tokens": 1})
    old = await office.get(path)
    assert (old["replaced_by"], old["problem"]) == (successor["id"], None)
    assert abs(old["retires_at"] - time.time() - 3600) < 60
    for key in (new, successor):
        assert (await office.ask("GET", "/v1/models", key=key["key"])).status_code == 200
    assert await office.refused("POST", f"{path}/rotate", {"grace_seconds": 0}) == (409, "key_is_over", None)
    revoked = await office.post(f"{path}/revoke")
    assert (revoked["status"], revoked["problem"]) == ("revoked", "revoked")
    assert (await office.ask("GET", "/v1/models", key=new["key"])).status_code == 401
    assert await office.refused("PATCH", path, {"label": "z"}) == (409, "key_is_over", None)
    told = [(change["action"], change["subject"], change["actor"]) for change in await office.changes()]
    admin = office.admin.key.public
    assert told == [(f"key.{name}", new["id"], admin) for name in ("create", "change", "rotate", "revoke")]


async def test_of_many_rotations_at_once_one_is_done(office: Office) -> None:
    new = await office.post("/admin/keys", {"tenant": "default"})
    asked = [office.ask("POST", f"/admin/keys/{new['id']}/rotate", {"grace_seconds": 60}) for _ in range(8)]
    assert sorted(answer.status_code for answer in await asyncio.gather(*asked)) == [200] + [409] * 7
    assert len((await office.get("/admin/keys"))["data"]) == 4


# ------------------------------------------------------------------------------------------------- prices and audit


async def test_prices_are_added_and_listed(office: Office) -> None:
    price = await office.post("/admin/prices", {"model": "qwen3-vl", "text_in": "0.15", "out": "0.60"})
    assert price == (await office.get("/admin/prices"))["data"][0]
    amounts = {"text_in": "0.15", "vision_in": "0.15", "cached_in": "0.15", "out": "0.60", "reasoning": "0.60"}
    assert {name: price[name] for name in amounts} == amounts
    assert (price["per_request"], price["currency"], price["object"]) == ("0.00", "USD", "price")
    start = int(time.time()) + 3600
    later = await office.post("/admin/prices", {"model": "*", "text_in": "1", "out": "1", "effective_from": start})
    assert later["effective_from"] == start
    past = {"model": "*", "text_in": "1", "out": "1", "effective_from": start - 7200}
    assert await office.refused("POST", "/admin/prices", past) == (400, "invalid_value", "effective_from")
    assert [change["action"] for change in await office.changes()] == ["price.set"] * 2
    found = office.accounts.prices.at("qwen3-vl", int(time.time() * 1000))
    assert found is not None
    assert found.id == price["id"]


@pytest.mark.parametrize("kind", ["tenants", "keys", "prices", "audit"])
async def test_lists_are_paged_and_stable(office: Office, kind: str) -> None:
    for number in range(5):
        await office.post("/admin/tenants", {"id": f"t{number}"})
        await office.post("/admin/keys", {"tenant": f"t{number}"})
        await office.post("/admin/prices", {"model": f"m{number}", "text_in": "1", "out": "1"})
    whole = (await office.get(f"/admin/{kind}"))["data"]
    assert len(whole) >= 5
    seen: list[Any] = []
    while True:
        after = f"&after={seen[-1]['id']}" if seen else ""
        page = await office.get(f"/admin/{kind}?limit=2{after}")
        assert (page["object"], page["first_id"], page["last_id"]) == (
            "list",
            *(page["data"][n]["id"] for n in (0, -1)),
        )
        seen += page["data"]
        if kind in ("prices", "audit"):  # they are listed from the newest on, so new ones come before all
            await office.post("/admin/prices", {"model": "other", "text_in": "1", "out": "1"})
        if not page["has_more"]:
            break
    assert seen == whole
    assert [key["tenant"] for key in (await office.get("/admin/keys?tenant=t3"))["data"]] == ["t3"]


# ------------------------------------------------------------------------------------------------------- bad input

DEEP = b'{"limits":' * 70 + b"1" + b"}" * 70
KEY = {"tenant": "default"}
PRICE = {"model": "m", "text_in": "1", "out": "1"}
SQL = "x'; DROP TABLE keys; --"

BODIES: list[tuple[str, str, Any, str, str | None]] = [
    ("POST", "tenants", {}, "missing_required_parameter", "id"),
    ("POST", "tenants", {"id": "a", "nmae": "x"}, "invalid_value", "nmae"),
    ("POST", "tenants", {"id": 5}, "invalid_value", "id"),
    ("POST", "tenants", {"id": None}, "invalid_value", "id"),
    ("POST", "tenants", {"id": ["a"]}, "invalid_value", "id"),
    ("POST", "tenants", {"id": ""}, "invalid_value", "id"),
    ("POST", "tenants", {"id": "Acme"}, "invalid_value", "id"),
    ("POST", "tenants", {"id": "\u0430cme"}, "invalid_value", "id"),
    ("POST", "tenants", {"id": "a" * 65}, "invalid_value", "id"),
    ("POST", "tenants", {"id": SQL}, "invalid_value", "id"),
    ("POST", "tenants", {"id": "a", "name": "x" * 201}, "invalid_value", "name"),
    ("POST", "tenants", {"id": "a", "name": "a\nb"}, "invalid_value", "name"),
    ("POST", "tenants", {"id": "a", "name": None}, "invalid_value", "name"),
    ("POST", "tenants", {"id": "a", "status": "gone"}, "invalid_value", "status"),
    ("POST", "tenants", {"id": "a", "limits": None}, "invalid_value", "limits"),
    ("POST", "tenants", {"id": "a", "limits": [1]}, "invalid_value", "limits"),
    ("POST", "tenants", {"id": "a", "limits": {"rpm": 1}}, "invalid_value", "limits.rpm"),
    ("POST", "tenants", {"id": "a", "limits": {"tokens": "5"}}, "invalid_value", "limits.tokens"),
    ("POST", "tenants", {"id": "a", "limits": {"tokens": True}}, "invalid_value", "limits.tokens"),
    ("POST", "tenants", {"id": "a", "limits": {"tokens": -1}}, "invalid_value", "limits.tokens"),
    ("POST", "tenants", {"id": "a", "limits": {"tokens": 10**400}}, "invalid_value", "limits.tokens"),
    ("POST", "tenants", {"id": "a", "limits": {"requests": "60"}}, "invalid_value", "limits.requests"),
    ("POST", "tenants", {"id": "a", "limits": {"requests": 60}}, "invalid_value", "limits.requests"),
    ("POST", "tenants", {"id": "a", "limits": {"requests": "9" * 5000 + "/day"}}, "invalid_value", "limits.requests"),
    ("POST", "tenants", {"id": "a", "limits": {"budget": "5/year"}}, "invalid_value", "limits.budget"),
    ("POST", "tenants", {"id": "a", "media": {"children": 9}}, "invalid_value", "media.children"),
    ("POST", "tenants", {"id": "a", "media": {"types": ["exe"]}}, "invalid_value", "media.types"),
    ("POST", "tenants", {"id": "a", "media": {"fps": 1e308}}, "invalid_value", "media.fps"),
    ("PATCH", "tenants/default", {"id": "b"}, "invalid_value", "id"),
    ("PATCH", "tenants/default", {"limits": {"tokens": {"a": [1]}}}, "invalid_value", "limits.tokens"),
    ("POST", "keys", {}, "missing_required_parameter", "tenant"),
    ("POST", "keys", {"tenant": 1}, "invalid_value", "tenant"),
    ("POST", "keys", KEY | {"admin": "yes"}, "invalid_value", "admin"),
    ("POST", "keys", KEY | {"admin": 1}, "invalid_value", "admin"),
    ("POST", "keys", KEY | {"admin": True, "models": ["a"]}, "invalid_value", "models"),
    ("POST", "keys", KEY | {"label": 5}, "invalid_value", "label"),
    ("POST", "keys", KEY | {"label": "\u202e" + "x"}, "invalid_value", "label"),
    ("POST", "keys", KEY | {"expires_at": 1}, "invalid_value", "expires_at"),
    ("POST", "keys", KEY | {"expires_at": -1}, "invalid_value", "expires_at"),
    ("POST", "keys", KEY | {"expires_at": 2**63}, "invalid_value", "expires_at"),
    ("POST", "keys", KEY | {"expires_at": 10**400}, "invalid_value", "expires_at"),
    ("POST", "keys", KEY | {"expires_at": "2027-01-01"}, "invalid_value", "expires_at"),
    ("POST", "keys", KEY | {"expires_at": 1.5}, "invalid_value", "expires_at"),
    ("POST", "keys", KEY | {"models": "a"}, "invalid_value", "models"),
    ("POST", "keys", KEY | {"models": [1]}, "invalid_value", "models[0]"),
    ("POST", "keys", KEY | {"models": ["a", ""]}, "invalid_value", "models[1]"),
    ("POST", "keys", KEY | {"models": ["a"] * 101}, "invalid_value", "models"),
    ("POST", "keys", KEY | {"endpoints": ["admin"]}, "invalid_value", "endpoints[0]"),
    ("POST", "keys", KEY | {"endpoints": {"generate": 1}}, "invalid_value", "endpoints"),
    ("POST", "keys", KEY | {"limits": {"tokens": 2**60}}, "invalid_value", "limits.tokens"),
    ("POST", "keys", KEY | {"hash": "x"}, "invalid_value", "hash"),
    ("PATCH", "keys/{key}", {"tenant": "other"}, "invalid_value", "tenant"),
    ("PATCH", "keys/{key}", {"admin": True}, "invalid_value", "admin"),
    ("PATCH", "keys/{key}", {"status": "active"}, "invalid_value", "status"),
    ("PATCH", "keys/{key}", {"models": ["a"]}, "invalid_value", "models"),
    ("POST", "keys/{key}/rotate", {}, "missing_required_parameter", "grace_seconds"),
    ("POST", "keys/{key}/rotate", {"grace_seconds": -1}, "invalid_value", "grace_seconds"),
    ("POST", "keys/{key}/rotate", {"grace_seconds": 10**400}, "invalid_value", "grace_seconds"),
    ("POST", "keys/{key}/rotate", {"grace_seconds": "1h"}, "invalid_value", "grace_seconds"),
    ("POST", "keys/{key}/rotate", {"grace_seconds": None}, "invalid_value", "grace_seconds"),
    ("POST", "keys/{key}/rotate", {"grace_seconds": 1, "x": 1}, "invalid_value", "x"),
    ("POST", "prices", {"model": "m", "out": "1"}, "missing_required_parameter", "text_in"),
    ("POST", "prices", PRICE | {"text_in": 0.15}, "invalid_value", "text_in"),
    ("POST", "prices", PRICE | {"text_in": "-1"}, "invalid_value", "text_in"),
    ("POST", "prices", PRICE | {"out": "1e5"}, "invalid_value", "out"),
    ("POST", "prices", PRICE | {"out": "9" * 100_000}, "invalid_value", "out"),
    ("POST", "prices", PRICE | {"cached_in": "0.1234567891"}, "invalid_value", "cached_in"),
    ("POST", "prices", PRICE | {"model": ""}, "invalid_value", "model"),
    ("POST", "prices", PRICE | {"model": "x" * 201}, "invalid_value", "model"),
    ("POST", "prices", PRICE | {"effective_from": 0}, "invalid_value", "effective_from"),
    ("POST", "prices", PRICE | {"effective_from": 10**400}, "invalid_value", "effective_from"),
    ("POST", "prices", PRICE | {"currency": "EUR"}, "invalid_value", "currency"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "code", "field"), BODIES)
async def test_a_bad_body_is_refused_by_its_field_and_changes_nothing(
    office: Office, method: str, path: str, body: Any, code: str, field: str | None
) -> None:
    path = f"/admin/{path.replace('{key}', office.admin.key.public)}"
    assert await office.refused(method, path, body) == (400, code, field)
    assert await office.changes() == []


WRITES = (
    "POST tenants",
    "PATCH tenants/default",
    "POST keys",
    "PATCH keys/{key}",
    "POST keys/{key}/rotate",
    "POST prices",
)


@pytest.mark.parametrize("write", WRITES)
async def test_what_is_no_json_is_refused_everywhere(office: Office, write: str) -> None:
    method, _, path = write.partition(" ")
    path = f"/admin/{path.replace('{key}', office.admin.key.public)}"
    for body in (b"", b"null", b"[]", b'"x"', b"{", b"\xff", b"\xef\xbb\xbf{}", DEEP, b"[" * 100_000, b'{"a":NaN}',
                 b'{"a":1e999}', b'{"name":"a\\u0000b"}', b'{"label":"\\ud800"}', b'{"a":' + b"9" * 5000 + b"}",
                 b"{}{}", '{"id":"x"}'.encode("utf-16")):  # fmt: skip
        assert await office.refused(method, path, body) == (400, "invalid_json", None), body[:40]
    assert (await office.refused(method, path, b'{"id":"a","id":"b"}'))[:2] == (400, "duplicate_key")
    headers = {"authorization": f"Bearer {office.admin.secret_text}", "content-type": "text/plain"}
    assert (await office.client.request(method, path, content=b"{}", headers=headers)).status_code == 415
    assert await office.changes() == []


UNKNOWN = (
    "nobody", "A" * 12, "a" * 300, "%00", "a%00b", "%F0%9F%98%80", "%ED%A0%80", "%FF", "%27%20OR%201=1", "*", "null",
    "1", "-1", "sk-AAAAAAAAAAAA-" + "B" * 43, "%E2%80%AE", "a%0d%0ab", "{}", "$1", "%25s", ";",
)  # fmt: skip


def on(name: str) -> list[tuple[str, str, Any]]:
    """Every request that names one tenant or key."""
    return [
        ("GET", f"/admin/tenants/{name}", None),
        ("PATCH", f"/admin/tenants/{name}", {"name": "x"}),
        ("GET", f"/admin/keys/{name}", None),
        ("PATCH", f"/admin/keys/{name}", {"label": "x"}),
        ("POST", f"/admin/keys/{name}/rotate", {"grace_seconds": 1}),
        ("POST", f"/admin/keys/{name}/revoke", None),
    ]


@pytest.mark.parametrize("name", UNKNOWN)
async def test_what_is_not_there_is_404(office: Office, name: str) -> None:
    for method, path, body in on(name):
        assert await office.refused(method, path, body) == (404, "not_found", None), path
    assert await office.changes() == []


@pytest.mark.parametrize("name", ["..", "%2e%2e", "?", "#", "%2F", "a/b", "//", "%3F", "%2F..%2Fkeys"])
async def test_what_makes_another_path_changes_nothing(office: Office, name: str) -> None:
    for method, path, body in on(name):
        assert (await office.ask(method, path, body)).status_code < 500, path
    assert await office.changes() == []


async def test_a_key_of_a_tenant_that_is_not_there_is_404(office: Office) -> None:
    for tenant in ("nobody", SQL, "", "x" * 10_000, "\u0430"):
        assert await office.refused("POST", "/admin/keys", {"tenant": tenant}) == (404, "not_found", None)


@pytest.mark.parametrize("kind", ["tenants", "keys", "prices", "audit"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=-1", "limit"), ("limit=x", "limit"), ("limit=", "limit"),
        ("limit=1.0", "limit"), ("limit=" + "9" * 400, "limit"), ("limit=1&limit=2", "limit"),
        ("limit=%D9%A1", "limit"),
        ("after=%00", "after"), ("after=%27%20OR%201=1", "after"), ("after=" + "9" * 400, "after"), ("after=", "after"),
        ("after=%ED%A0%80", "after"), ("after=%FF", "after"), ("after=a b!", "after"), ("after=-1", "after"),
        ("after=a&after=b", "after"), ("after=%E2%80%AE", "after"), ("after=AAAAAAAAAAAA", "after"),
    ],
)  # fmt: skip
async def test_a_bad_page_is_refused_by_its_field(office: Office, kind: str, query: str, field: str) -> None:
    assert await office.refused("GET", f"/admin/{kind}?{query}") == (400, "invalid_value", field)


@pytest.mark.parametrize("kind", ["prices", "audit"])
async def test_a_number_that_no_id_reaches_is_refused(office: Office, kind: str) -> None:
    assert (await office.get(f"/admin/{kind}?after=0"))["data"] == []
    assert await office.refused("GET", f"/admin/{kind}?after=2147483648") == (400, "invalid_value", "after")


@pytest.mark.parametrize("tenant", ["nobody", "%00", "%ED%A0%80", "%27%20OR%201=1", "*", "%25", "x" * 3000, ""])
async def test_keys_of_no_tenant_are_none(office: Office, tenant: str) -> None:
    listed = await office.get(f"/admin/keys?tenant={tenant}")
    assert (listed["data"], listed["first_id"], listed["has_more"]) == ([], None, False)


async def test_a_wrong_method_names_the_right_ones(office: Office) -> None:
    answer = await office.ask("DELETE", "/admin/tenants/default")
    assert answer.status_code == 405
    assert "PATCH" in answer.headers["allow"]


async def test_a_database_that_cannot_be_used_now_is_503(office: Office) -> None:
    def fail(*arguments: Any) -> None:
        raise OperationalError("x", {}, OSError("database is locked"))

    office.accounts.keys.find(office.admin.secret_text)
    event.listen(office.accounts.database, "before_cursor_execute", fail)
    answer = await office.ask("GET", "/admin/tenants")
    event.remove(office.accounts.database, "before_cursor_execute", fail)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "server_is_overloaded"
