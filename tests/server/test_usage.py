"""Usage over HTTP: who sees what, in which form, and how bad questions are answered."""

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, event, insert

from qwen3vl_compat.accounts.books import open_accounts
from qwen3vl_compat.accounts.database import open_database, writing
from qwen3vl_compat.accounts.export import COLUMNS
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.money import NANO, Counts
from qwen3vl_compat.accounts.tables import spending
from qwen3vl_compat.accounts.totals import Over
from qwen3vl_compat.accounts.usage import CHUNK, Spending, Usage
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.server.answer import Service
from qwen3vl_compat.server.app import build_app, build_service
from qwen3vl_compat.server.usage_routes import limits_body
from qwen3vl_compat.settings import LedgerSettings, LimitSettings, Quotas, ServerSettings, Settings
from tests.accounts.rows import record, row

DAY = 86_400
NOW = time.time()
TODAY = int(NOW) // DAY * DAY
YESTERDAY = TODAY - DAY


class House:
    """A server's application, its database, and a key of each kind."""

    def __init__(self, folder: Path) -> None:
        self.engine: Engine = open_database(folder)
        keys = Keys(self.engine)
        for tenant in ("acme", "other"):
            keys.add_tenant(tenant)
        self.key, self.other, self.admin = (
            keys.create("acme"), keys.create("other"), keys.create("acme", admin=True),
        )  # fmt: skip
        settings = Settings(
            server=ServerSettings(metrics_by_tenant=True),
            ledger=LedgerSettings(currency="EUR"),
            limits=LimitSettings(tokens=1000, budget="5.00/month", redis="redis://nowhere"),
        )
        accounts = replace(open_accounts(self.engine, settings), usage=Usage(self.engine, lambda: NOW))
        self.service: Service = build_service(settings, ScriptedEngine(), accounts)
        self.app: Any = build_app(self.service)
        public, other = self.key.key.public, self.other.key.public
        record(
            self.engine,
            [
                row(1, (YESTERDAY + 3600) * 1000, key=public, cost=NANO),
                row(2, (YESTERDAY + 7200) * 1000, key=public, model="=small", state="aborted"),
                row(3, TODAY * 1000, key=public, state="open", reserved=NANO // 2),
                row(4, (YESTERDAY + 3600) * 1000, key=other, tenant="other", cost=7),
            ],
        )

    async def get(self, path: str, key: Any = None) -> httpx.Response:
        """With acme's key, or another."""
        secret = (key or self.key).secret_text
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://t") as client:
            return await client.get(path, headers={"authorization": f"Bearer {secret}"})


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "state")
    yield made
    made.engine.dispose()


@pytest.fixture(scope="module")
def questioned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests that only ask."""
    made = House(tmp_path_factory.mktemp("questioned") / "state")
    yield made
    made.engine.dispose()


async def test_a_tenant_sees_its_days(house: House) -> None:
    answer = await house.get(f"/v1/usage?start_time={YESTERDAY}&end_time={TODAY + DAY}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    first, second = answer.json().pop("data")
    assert (first["start_time"], second["end_time"]) == (YESTERDAY, TODAY + DAY)
    assert second["results"] == []
    assert first["results"] == [
        {
            "object": "usage.result",
            "requests": 2,
            "input_tokens": 36,
            "input_text_tokens": 20,
            "input_vision_tokens": 10,
            "input_cached_tokens": 6,
            "output_tokens": 14,
            "reasoning_tokens": 4,
            "pictures": 2,
            "cost": "1.000000025",
            "currency": "EUR",
            "tenant": None,
            "key": None,
            "model": None,
            "cache": None,
        }
    ]
    rest = {name: value for name, value in answer.json().items() if name != "data"}
    assert rest == {
        "object": "page",
        "has_more": False,
        "next_page": None,
        "open_requests": 1,
        "open_reserved": "0.50",
        "currency": "EUR",
    }


async def test_without_a_word_it_is_the_last_thirty_days_until_now(house: House) -> None:
    record(house.engine, [row(5, int(time.time() * 1000), key=house.key.key.public)])
    buckets = (await house.get("/v1/usage")).json()["data"]
    assert len(buckets) in (30, 31)
    assert buckets[-1]["end_time"] - buckets[0]["start_time"] == 30 * DAY
    assert sum(result["requests"] for bucket in buckets for result in bucket["results"]) == 3


async def test_groups_and_filters(house: House) -> None:
    where = f"start_time={YESTERDAY}&end_time={TODAY}"
    results = (await house.get(f"/v1/usage?{where}&group_by=model,key")).json()["data"][0]["results"]
    public = house.key.key.public
    assert [(each["key"], each["model"], each["requests"]) for each in results] == [
        (public, "=small", 1),
        (public, "qwen3-vl", 1),
    ]
    for narrowed, requests in (
        ("model=qwen3-vl", [1]), ("model=none", []), (f"key={public}", [2]), (f"key={house.other.key.public}", []),
    ):  # fmt: skip
        body = (await house.get(f"/v1/usage?{where}&{narrowed}")).json()
        assert [each["requests"] for each in body["data"][0]["results"]] == requests
        assert body["open_requests"] == 0


async def test_pages_join_without_a_gap(house: House) -> None:
    path = f"/v1/usage?start_time={YESTERDAY + 1800}&end_time={TODAY + 1800}&bucket_width=1h&limit=7"
    buckets: list[Any] = []
    page = ""
    for _ in range(4):
        body = (await house.get(path + page)).json()
        buckets += body["data"]
        page = f"&page={body['next_page']}"
        assert body["open_requests"] == 1
    assert (body["has_more"], body["next_page"]) == (False, None)
    assert [bucket["start_time"] for bucket in buckets[1:]] == [bucket["end_time"] for bucket in buckets[:-1]]
    assert len(buckets) == 25
    whole = (await house.get(path.replace("limit=7", "limit=168"))).json()["data"]
    assert whole == buckets


async def test_an_admin_sees_all_tenants_or_one(house: House) -> None:
    where = f"start_time={YESTERDAY}&end_time={TODAY}"
    body = (await house.get(f"/admin/usage?{where}&group_by=tenant", house.admin)).json()
    assert [(each["tenant"], each["requests"]) for each in body["data"][0]["results"]] == [("acme", 2), ("other", 1)]
    one = (await house.get(f"/admin/usage?{where}&tenant=other", house.admin)).json()
    assert [each["requests"] for each in one["data"][0]["results"]] == [1]
    for path in ("/admin/usage", "/admin/usage/export"):
        assert (await house.get(f"{path}?tenant=nobody", house.admin)).json()["error"]["param"] == "tenant"
        assert (await house.get(path)).status_code == 403
        assert (await house.get(f"http://t//{path}/")).status_code == 403
    for path in ("/v1/usage", "/v1/usage/export", "/v1/limits"):
        assert (await house.get(path, house.admin)).status_code == 403


BAD: list[tuple[str, str]] = [
    ("start_time=abc", "start_time"),
    ("start_time=-1", "start_time"),
    ("start_time=1.5", "start_time"),
    ("start_time=", "start_time"),
    ("start_time", "start_time"),
    ("start_time=" + "9" * 30, "start_time"),
    ("start_time=%D9%A1%D9%A2", "start_time"),
    ("start_time=1%00", "start_time"),
    ("start_time=1e9", "start_time"),
    ("start_time=%201", "start_time"),
    ("start_time=253402300800", "start_time"),
    ("end_time=" + "9" * 30, "end_time"),
    ("end_time=-0", "end_time"),
    ("end_time=0", "start_time"),
    ("start_time=20&end_time=10", "start_time"),
    ("start_time=10&end_time=10", "start_time"),
    ("start_time=253402300799", "start_time"),
    ("start_time=1&start_time=2", "start_time"),
    ("key=short", "key"),
    ("key=AAAAAAAAAAA%00", "key"),
    ("key=" + "A" * 12 + "&key=" + "B" * 12, "key"),
    ("model=", "model"),
    ("model=a%00b", "model"),
    ("model=a%0Ab", "model"),
    ("model=" + "x" * 201, "model"),
    ("strat_time=1", "strat_time"),
    ("%00=1", r"'\x00'"),
    ("%FF=1", r"'\ufffd'"),
    ("=1", ""),
]
SUMMED: list[tuple[str, str]] = [
    ("bucket_width=1m", "bucket_width"),
    ("bucket_width=", "bucket_width"),
    ("bucket_width=1d&bucket_width=1d", "bucket_width"),
    ("group_by=colour", "group_by"),
    ("group_by=key,", "group_by"),
    ("group_by=", "group_by"),
    ("group_by=key&group_by=model", "group_by"),
    ("limit=0", "limit"),
    ("limit=32", "limit"),
    ("limit=-1", "limit"),
    ("limit=" + "9" * 30, "limit"),
    ("limit=169&bucket_width=1h", "limit"),
    ("page=abc", "page"),
    ("page=" + "9" * 30, "page"),
    ("page=253402300799", "page"),
    ("page=86401&start_time=86400&end_time=864000", "page"),
    ("page=0&start_time=86400&end_time=864000", "page"),
    ("page=864000&start_time=86400&end_time=864000", "page"),
    ("bucket_width=1h&start_time=0&end_time=2678401", "start_time"),
    ("start_time=0&end_time=63158401", "start_time"),
    ("format=csv", "format"),
]
FILED: list[tuple[str, str]] = [
    ("format=xlsx", "format"),
    ("format=", "format"),
    ("format=csv&format=jsonl", "format"),
    ("group_by=key", "group_by"),
    ("bucket_width=1d", "bucket_width"),
]
OWN = [("tenant=acme", "tenant"), ("group_by=tenant", "group_by")]
ADMIN = [("tenant=ACME", "tenant"), ("tenant=", "tenant"), ("tenant=a&tenant=b", "tenant"), ("tenant=a%00", "tenant")]


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [("/v1/usage", *bad) for bad in BAD + SUMMED + OWN]
    + [("/v1/usage/export", *bad) for bad in BAD + FILED + OWN]
    + [("/admin/usage", *bad) for bad in BAD + SUMMED + ADMIN]
    + [("/admin/usage/export", *bad) for bad in BAD + FILED + ADMIN]
    + [("/v1/limits", "start_time=1", "start_time"), ("/v1/limits", "x=%00", "x")],
)
async def test_a_bad_question_is_refused_by_name(questioned: House, path: str, query: str, param: str) -> None:
    answer = await questioned.get(f"{path}?{query}", questioned.admin if path.startswith("/admin") else None)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(f"{param}: ")


async def test_a_whole_key_in_the_query_is_not_repeated(questioned: House) -> None:
    answer = await questioned.get(f"/v1/usage?key={questioned.key.secret_text}")
    assert answer.status_code == 400
    assert questioned.key.secret_text[-20:] not in answer.text


@pytest.mark.parametrize("query", ["start_time=0&end_time=63158400", "bucket_width=1h&start_time=0&end_time=2678400"])
async def test_the_longest_question_is_answered(questioned: House, query: str) -> None:
    assert (await questioned.get(f"/v1/usage?{query}")).status_code == 200


async def test_an_answer_has_bounds(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3vl_compat.server.usage_routes.MOST_RESULTS", 1)
    answer = await house.get(f"/v1/usage?start_time={YESTERDAY}&group_by=model")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


# ------------------------------------------------------------------------------------------------------------- exports


async def test_an_export_is_a_file_of_the_tenants_rows(house: House) -> None:
    answer = await house.get(f"/v1/usage/export?start_time={YESTERDAY}&end_time={TODAY}")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    named = f'attachment; filename="usage-acme-{YESTERDAY}-{TODAY}.csv"'
    assert answer.headers["content-disposition"] == named
    rows = list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))
    assert [(each["id"][-1], each["tenant"], each["model"], each["cost"]) for each in rows] == [
        ("1", "acme", "qwen3-vl", "1.00"),
        ("2", "acme", "'=small", "0.000000025"),
    ]
    lines = await house.get(f"/v1/usage/export?format=jsonl&start_time={YESTERDAY}&model=%3Dsmall")
    assert lines.headers["content-type"] == "application/jsonl"
    (only,) = map(json.loads, lines.content.splitlines())
    assert (tuple(only), only["model"]) == (COLUMNS, "=small")


async def test_an_admin_exports_all_tenants_or_one(house: House) -> None:
    for narrowed, ids in (("", "142"), ("&tenant=other", "4"), (f"&key={house.key.key.public}", "12")):
        answer = await house.get(f"/admin/usage/export?format=jsonl{narrowed}", house.admin)
        assert "".join(json.loads(line)["id"][-1] for line in answer.content.splitlines()) == ids


async def test_an_empty_export_is_a_file_too(house: House) -> None:
    head = await house.get("/v1/usage/export?start_time=0&end_time=1")
    assert head.content == ",".join(COLUMNS).encode() + b"\r\n"
    lines = await house.get("/v1/usage/export?start_time=0&end_time=1&format=jsonl")
    assert (lines.status_code, lines.content) == (200, b"")


async def test_what_is_read_ends_when_the_client_leaves(house: House) -> None:
    """After its first piece; five more were to come."""
    public = house.key.key.public
    record(house.engine, [row(10 + number, (YESTERDAY + 10) * 1000, key=public) for number in range(5 * CHUNK + 1)])
    reads: list[str] = []
    event.listen(house.engine, "before_cursor_execute", lambda *call: reads.append(call[2]))
    secret = house.key.secret_text.encode()
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": "/v1/usage/export",
        "raw_path": b"/v1/usage/export", "root_path": "", "query_string": b"", "client": None, "server": None,
        "headers": [(b"host", b"t"), (b"authorization", b"Bearer " + secret)], "state": {},
    }  # fmt: skip
    left, sent = asyncio.Event(), []

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            left.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        await house.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sum("FROM ledger" in text for text in reads) <= 2
    assert house.service.lifecycle.running == 0
    assert scope["state"]["exchange"].status == 499


async def test_a_file_that_is_cut_off_has_no_end(house: House) -> None:
    """When the server's time is over meanwhile: a file that is not whole must not pass for one."""
    public = house.key.key.public
    record(house.engine, [row(10 + number, (YESTERDAY + 10) * 1000, key=public) for number in range(2 * CHUNK)])
    secret = house.key.secret_text
    bodies: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.body":
                bodies.append(message["more_body"])
                house.service.lifecycle.cut()
            await send(message)

        await house.app(scope, receive, told)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t") as client:
        with pytest.raises(AssertionError):
            await client.get("/v1/usage/export", headers={"authorization": f"Bearer {secret}"})
    assert bodies
    assert all(bodies)


# -------------------------------------------------------------------------------------------------------------- limits


async def test_limits_are_told_with_what_is_left(house: House) -> None:
    now = time.gmtime(NOW)
    day, month = time.strftime("%Y-%m-%d", now), time.strftime("%Y-%m", now)
    with writing(house.engine).begin() as connection:
        whose = f"key:{house.key.key.public}"
        for scope, period, amount in ((whose, day, 1), ("tenant:acme", month, 2), ("tenant:other", month, 3)):
            values = {"scope": scope, "period": period, "spent": amount * NANO, "reserved": amount * NANO // 10}
            connection.execute(insert(spending).values(values))
    quotas = Quotas(requests="60/minute", budget="1.05/day")
    house.service.accounts.keys.change(house.key.key.public, limits=quotas)
    answer = await house.get("/v1/limits")
    none = {"limit": None, "spent": "0.00", "reserved": "0.00", "left": None}
    unset = dict.fromkeys(("requests", "tokens", "tokens_in", "tokens_out", "pictures", "concurrent"))
    assert answer.json() == {
        "object": "limits",
        "currency": "EUR",
        "key": unset
        | {
            "requests": "60/minute",
            "budget": {
                "day": {"period": day, "limit": "1.05", "spent": "1.00", "reserved": "0.10", "left": "0.00"},
                "month": none | {"period": month},
            },
        },
        "tenant": unset
        | {
            "tokens": 1000,
            "budget": {
                "day": none | {"period": day},
                "month": {"period": month, "limit": "5.00", "spent": "2.00", "reserved": "0.20", "left": "2.80"},
            },
        },
    }


def test_a_limit_of_zero_is_one() -> None:
    standing = {(whose, period): Spending("") for whose in ("key", "tenant") for period in ("day", "month")}
    body = limits_body(Quotas(tokens=0, concurrent=0, budget="0.00/day"), Quotas(), standing, "USD")  # type: ignore[arg-type]
    assert (body["key"]["tokens"], body["key"]["concurrent"], body["key"]["budget"]["day"]["left"]) == (0, 0, "0.00")


# ------------------------------------------------------------------------------------------------------------- the rest


async def test_prometheus_is_told_what_was_charged(house: House) -> None:
    house.service.figures.add(Over("acme", "qwen3-vl", "final", "off", Counts(text_in=3), NANO))
    told = (await house.get("/metrics", house.admin)).text
    assert 'qwen3vl_request_tokens_total{kind="text_in",model="qwen3-vl",tenant="acme"} 3.0' in told
    assert 'qwen3vl_request_cost_total{currency="EUR",model="qwen3-vl",tenant="acme"} 1.0' in told
