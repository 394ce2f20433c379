"""Metered keys through the official SDKs: what a client is told is what is booked, and what is used up is refused."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx
import openai
import pytest
from google.genai import errors, types
from msgspec import Struct

from qwen3vl_compat.demo import SAMPLE
from tests import sdks
from tests.e2e.test_bad_input import ROWS
from tests.media.crafted import drawing
from tests.media.films import film, steady
from tests.media.typeset import typeset
from tests.metered import (
    Part,
    ask,
    chat,
    check_books,
    check_sums,
    closed_row,
    command,
    cost_of,
    get,
    headers_of,
    nano,
    new_key,
    nothing_runs,
    priced,
    public,
    rows,
    wait_until,
)
from tests.serving import Served, serving

pytestmark = pytest.mark.filterwarnings("default")
T = TypeVar("T")

PICTURE = SAMPLE.read_bytes()
SECONDS_A_TOKEN = 0.02
WIRES = ("openai", "google")
wires = pytest.mark.parametrize("wire", WIRES)
streams = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model, at a price."""
    with serving(tmp_path_factory.mktemp("reading")) as served:
        yield priced(served)


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scripted engine at a price, and slow enough to be interrupted."""
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": str(SECONDS_A_TOKEN)}
    with serving(tmp_path_factory.mktemp("telling"), environment=environment) as served:
        yield priced(served)


# -------------------------------------------------------------------------------------------------------------- books


@wires
@streams
def test_what_the_client_sees_is_what_is_booked(reading: Served, wire: str, stream: bool) -> None:
    """The words before the picture are this test's own, so that nothing of it is known to the server yet."""
    key = new_key(reading)
    picture = ("image/png", PICTURE)
    words = f"A question by {wire}, {'streamed' if stream else 'whole'}: " + "read what is written here, please. " * 4
    seen = [ask(reading, key, wire, words, picture, "Read the text. " * 8, stream=stream, most=8) for _ in range(2)]
    seen.append(ask(reading, key, wire, words, picture, picture, "Now both.", stream=stream, most=8, n=2))
    seen.append(ask(reading, key, wire, "Who are you?", stream=stream))
    check_books(reading, key, wire, stream, seen)
    first, again, both, _ = rows(reading, key)
    assert (first["cached_in"], first["vision_in"], first["pictures"]) == (0, 12, 1)
    assert again["cached_in"] > 0
    assert again["vision_in"] < 12  # part of the picture, too, was there already
    assert again["cost"] < first["cost"]
    assert both["pictures"] == 2
    assert both["out"] > 8


@wires
@streams
def test_thoughts_and_choices_are_booked_as_they_are_seen(telling: Served, wire: str, stream: bool) -> None:
    key = new_key(telling)
    thinking = "think: It is two. then say: Two."
    seen = [
        ask(telling, key, wire, thinking, stream=stream),
        ask(telling, key, wire, thinking, stream=stream, n=2),
        ask(telling, key, wire, "count to 9", stream=stream, n=2, most=5),
        ask(telling, key, wire, ("image/png", PICTURE), "think: A picture. then say: Yes.", stream=stream),
    ]
    check_books(telling, key, wire, stream, seen)
    assert [(row["out"], row["reasoning"]) for row in rows(telling, key)] == [(6, 5), (12, 10), (10, 0), (5, 4)]
    assert [row["finish"] for row in rows(telling, key)] == ["stop", "stop", "length", "stop"]


# ---------------------------------------------------------------------------------------------------------- what is cut

SLACK = 150
"""Tokens that may be made until the server hears that its client has gone; three seconds' worth."""


def check_aborted(served: Served, key: str, least: int, most: int) -> dict[str, Any]:
    """The row is closed at what was made by then, charged, and nothing more is made."""
    row = closed_row(served, key)
    assert (row["state"], row["finish"]) == ("aborted", "gone")
    assert least <= row["out"] <= most
    assert row["text_in"] > 0
    assert row["cost"] == cost_of(row)
    wait_until(lambda: nothing_runs(served))
    check_sums(served, key, [row])
    return row


@wires
@pytest.mark.parametrize("taken", [1, 20])
def test_a_stream_that_is_closed_is_charged_its_running_count(telling: Served, wire: str, taken: int) -> None:
    key, seen = new_key(telling), 0
    if wire == "openai":
        with sdks.openai_client(telling, key) as client:
            stream = client.chat.completions.create(
                model="qwen3-vl", messages=chat("count to 2000"), stream=True, max_tokens=2000
            )
            for chunk in stream:
                seen += bool(chunk.choices[0].delta.content)
                if seen == taken:
                    break
            stream.close()
    else:
        with sdks.google_client(telling, key=key) as client:
            for chunk in client.models.generate_content_stream(model="qwen3-vl", contents="count to 2000"):
                seen += bool(chunk.text)
                if seen == taken:
                    break
    check_aborted(telling, key, taken, taken + SLACK)


@wires
def test_who_waits_no_longer_for_a_whole_answer_pays_what_was_made(telling: Served, wire: str) -> None:
    key = new_key(telling)
    if wire == "openai":
        with sdks.openai_client(telling, key) as client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="qwen3-vl", messages=chat("count to 2000"), timeout=2)
    else:
        options = types.HttpOptions(timeout=2000, headers={"X-Server-Timeout": "60"})
        config = types.GenerateContentConfig(http_options=options)
        with sdks.google_client(telling, key=key) as google, pytest.raises(Exception, match="timed out"):
            google.models.generate_content(model="qwen3-vl", contents="count to 2000", config=config)
    check_aborted(telling, key, 1, round(2 / SECONDS_A_TOKEN) + SLACK)


@wires
@streams
def test_a_deadline_ends_an_answer_at_what_was_made(telling: Served, wire: str, stream: bool) -> None:
    key, late = new_key(telling), {"x-server-timeout": "1"}
    if wire == "openai":
        with sdks.openai_client(telling, key) as client:
            asked: Any = {"model": "qwen3-vl", "messages": chat("count to 2000"), "extra_headers": late}
            if stream:
                with pytest.raises(openai.APIError, match="time allowed") as ended:
                    list(client.chat.completions.create(**asked, stream=True))
            else:
                with pytest.raises(openai.InternalServerError, match="time allowed") as ended:
                    client.chat.completions.create(**asked)
                assert ended.value.status_code == 504  # type: ignore[attr-defined]
            assert ended.value.code == "timeout"
    else:
        config = types.GenerateContentConfig(http_options=types.HttpOptions(headers=late))
        asked = {"model": "qwen3-vl", "contents": "count to 2000", "config": config}
        with sdks.google_client(telling, key=key) as google:
            call: Any = google.models.generate_content_stream if stream else google.models.generate_content
            with pytest.raises(errors.ServerError) as failed:
                list(call(**asked))
        assert (failed.value.code, failed.value.status) == (504, "DEADLINE_EXCEEDED")
    check_aborted(telling, key, 0, round(1 / SECONDS_A_TOKEN) + 1)


# -------------------------------------------------------------------------------------------------------------- limits


class Refusal(Struct, frozen=True):
    """A refusal as a family's client tells it."""

    headers: Any
    code: str
    message: str
    details: dict[str, Any]
    """On Google's wire, by their kind."""


def refused(served: Served, key: str, wire: str, *parts: Part, most: int = 3) -> Refusal:
    """Ask for what must be refused with 429."""
    if wire == "openai":
        with pytest.raises(openai.RateLimitError) as limited:
            ask(served, key, wire, *parts, most=most)
        assert limited.value.status_code == 429
        assert limited.value.type == {"insufficient_quota": "insufficient_quota"}.get(
            limited.value.code or "", "rate_limit_error"
        )
        return Refusal(limited.value.response.headers, limited.value.code or "", limited.value.message, {})
    with pytest.raises(errors.ClientError) as exhausted:
        ask(served, key, wire, *parts, most=most)
    assert (exhausted.value.code, exhausted.value.status) == (429, "RESOURCE_EXHAUSTED")
    error = exhausted.value.details["error"]
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
    return Refusal(exhausted.value.response.headers, "rate_limit_exceeded", error["message"], details)


def check_retry(wire: str, refusal: Refusal) -> None:
    """Both say the same time, 1 to 60 s, and Google's names the quota."""
    seconds = int(refusal.headers["retry-after"])
    assert 1 <= seconds <= 60
    assert refusal.headers["retry-after-ms"] == str(1000 * seconds)
    assert refusal.code == "rate_limit_exceeded"
    if wire == "google":
        assert set(refusal.details) == {"RetryInfo", "QuotaFailure"}
        assert refusal.details["RetryInfo"]["retryDelay"] == f"{seconds}s"
        (violation,) = refusal.details["QuotaFailure"]["violations"]
        assert violation["description"] == refusal.message
        assert violation["subject"]


def in_one_minute(play: Callable[[], T]) -> T:
    """What comes of it in a minute that does not end meanwhile: limits begin anew with it."""
    while True:
        minute = time.time() // 60
        found = play()
        if time.time() // 60 == minute:
            return found


SHORT = "count to 3"
"""Seven tokens, and three in answer."""


@wires
@pytest.mark.parametrize(
    ("option", "limit", "shown", "left"),
    [
        ("requests", "2/day", "requests", ["1", "0"]),
        ("rpm", "2", "requests", ["1", "0"]),
        ("tpm", "25", "tokens", ["15", "5"]),
        ("tpm-in", "15", "tokens", ["8", "1"]),
        ("tpm-out", "7", "tokens", ["4", "1"]),
        ("pictures-per-day", "2", "images", ["1", "0"]),
    ],
)
def test_what_is_used_up_is_refused_until_it_begins_anew(
    telling: Served, wire: str, option: str, limit: str, shown: str, left: list[str]
) -> None:
    parts: tuple[Part, ...] = (("image/png", PICTURE), SHORT) if shown == "images" else (SHORT,)

    def play() -> tuple[str, list[str], Refusal]:
        key = new_key(telling, f"--{option}", limit)
        told = []
        for _ in range(2):
            headers = headers_of(telling, key, wire, *parts)
            assert headers[f"x-ratelimit-limit-{shown}"] == limit.partition("/")[0]
            assert re.fullmatch(r"\d+(\.\d+)?s", headers[f"x-ratelimit-reset-{shown}"])
            told.append(headers[f"x-ratelimit-remaining-{shown}"])
        return key, told, refused(telling, key, wire, *parts)

    key, told, refusal = in_one_minute(play)
    assert told == left
    check_retry(wire, refusal)
    assert refusal.headers[f"x-ratelimit-limit-{shown}"] == limit.partition("/")[0]
    assert refusal.headers[f"x-ratelimit-remaining-{shown}"] == left[-1]
    assert "limit of this key is reached" in refusal.message
    assert len(rows(telling, key)) == 2


@wires
def test_pages_and_videos_are_pictures(telling: Served, wire: str) -> None:
    key = new_key(telling, "--pictures-per-day", "4")
    pages = ("application/pdf", typeset(["one", "two"]))
    video = ("video/mp4", film(steady([drawing(64, 64, seed) for seed in range(4)], 2), rate=2))
    ask(telling, key, wire, pages, SHORT)
    ask(telling, key, wire, video, SHORT)
    check_retry(wire, refused(telling, key, wire, pages, SHORT))
    ask(telling, key, wire, ("image/png", PICTURE), SHORT)
    refusal = refused(telling, key, wire, ("image/png", PICTURE), SHORT)
    assert "4 pictures a day" in refusal.message
    assert refusal.headers["x-ratelimit-remaining-images"] == "0"
    assert [row["pictures"] for row in rows(telling, key)] == [2, 1, 1]
    too_many = refused(telling, key, wire, *[("image/png", PICTURE)] * 5, SHORT)
    assert "cannot pass" in too_many.message
    assert too_many.headers["x-should-retry"] == "false"
    assert "retry-after" not in too_many.headers
    assert "RetryInfo" not in too_many.details
    ask(telling, key, wire, SHORT)


@wires
def test_a_place_is_free_when_its_answer_is_over(telling: Served, wire: str) -> None:
    key = new_key(telling, "--concurrent", "1")
    with sdks.openai_client(telling, key) as client:
        stream = client.chat.completions.create(model="qwen3-vl", messages=chat("count to 2000"), stream=True)
        next(stream)
        refusal = refused(telling, key, wire, SHORT)
        check_retry(wire, refusal)
        assert refusal.headers["retry-after"] == "1"
        assert "1 request at once" in refusal.message
        stream.close()
    closed_row(telling, key)
    wait_until(lambda: nothing_runs(telling))
    for _ in range(2):
        ask(telling, key, wire, SHORT)


@wires
def test_a_limit_of_the_tenant_holds_for_all_its_keys(telling: Served, wire: str) -> None:
    def play() -> Refusal:
        tenant = f"t{time.monotonic_ns()}"
        command(telling, "tenants", "create", tenant)
        command(telling, "tenants", "set", tenant, "limits.tokens_out=7")
        first, second = (new_key(telling, "--tenant", tenant, "--tpm-out", "100") for _ in range(2))
        told = [headers_of(telling, key, wire, SHORT) for key in (first, second)]
        assert [headers["x-ratelimit-limit-tokens"] for headers in told] == ["7", "7"]
        assert [headers["x-ratelimit-remaining-tokens"] for headers in told] == ["4", "1"]
        refused(telling, first, wire, SHORT)
        return refused(telling, second, wire, SHORT)

    refusal = in_one_minute(play)
    check_retry(wire, refusal)
    assert "limit of this tenant is reached: 7 tokens of answers a minute" in refusal.message


# -------------------------------------------------------------------------------------------------------------- budget


def test_openais_client_does_not_try_again_what_nobody_pays_for(telling: Served) -> None:
    key = new_key(telling, "--budget", "0.0007/month")
    with openai.OpenAI(base_url=telling.url + "/v1", api_key=key) as client:
        assert client.max_retries == 2
        with pytest.raises(openai.RateLimitError) as spent:
            client.chat.completions.create(model="qwen3-vl", messages=chat(SHORT), max_tokens=3)
    assert (spent.value.code, spent.value.type) == ("insufficient_quota", "insufficient_quota")
    assert spent.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in spent.value.response.headers
    assert spent.value.response.headers["x-budget-remaining"] == "0.0007"
    assert telling.log().count(f"key={public(key)} ") == 1
    assert rows(telling, key) == []


@wires
def test_a_budget_is_told_as_such(telling: Served, wire: str) -> None:
    key = new_key(telling, "--budget", "0.001/day;1/month")
    ask(telling, key, wire, SHORT, most=3)
    refusal = refused(telling, key, wire, SHORT)
    (row,) = rows(telling, key)
    assert nano(refusal.headers["x-budget-remaining"]) == 10**6 - row["cost"]
    assert (refusal.headers["x-budget-limit"], refusal.headers["x-budget-period"]) == ("0.001", "day")
    assert "budget of this key does not allow this request" in refusal.message
    if wire == "google":
        assert set(refusal.details) == {"QuotaFailure"}
        assert refusal.details["QuotaFailure"]["violations"][0]["subject"] == "budget/day"
    check_sums(telling, key, [row])


# ---------------------------------------------------------------------------------------------------- keys and tenants

FOLLOWS = 5
"""Seconds in which a running server follows the command line."""


def status_of(served: Served, key: str, wire: str) -> int:
    if wire == "openai":
        return served.post("/v1/chat/completions", {"model": "qwen3-vl", "messages": chat("Hi")}, key).status_code
    url = f"{served.url}/v1beta/models/qwen3-vl:generateContent"
    body = {"contents": [{"parts": [{"text": "Hi"}]}]}
    return httpx.post(url, json=body, headers={"x-goog-api-key": key}, timeout=60).status_code


def test_a_running_server_follows_the_command_line(telling: Served) -> None:
    """All of it at once, for the wait's sake."""
    for tenant in ("late", "forgiven"):
        command(telling, "tenants", "create", tenant)
    suspended, activated = new_key(telling, "--tenant", "late"), new_key(telling, "--tenant", "forgiven")
    command(telling, "tenants", "suspend", "forgiven")
    revoked, rotated, limited = (new_key(telling) for _ in range(3))
    poor = new_key(telling, "--budget", "0.0001/month")
    expiring = new_key(telling, "--expires", "3s")
    for key in (suspended, revoked, rotated, limited, expiring):
        assert [status_of(telling, key, wire) for wire in WIRES] == [200, 200]
    assert [status_of(telling, key, "openai") for key in (poor, activated)] == [429, 403]
    command(telling, "tenants", "suspend", "late")
    command(telling, "tenants", "activate", "forgiven")
    command(telling, "keys", "revoke", revoked)
    successor = command(telling, "keys", "rotate", rotated, "--grace", "2s")
    command(telling, "keys", "set", poor, "--budget", "1/month")
    command(telling, "keys", "set", limited, "--endpoints", "models")
    assert [status_of(telling, key, "openai") for key in (successor, rotated)] == [200, 200]
    expected = {
        suspended: [403, 403], revoked: [401, 400], rotated: [401, 400], expiring: [401, 400], limited: [403, 403],
        poor: [200, 200], successor: [200, 200], activated: [200, 200],
    }  # fmt: skip
    end = time.monotonic() + FOLLOWS + 5  # for a machine that is busy with other things
    while (found := {key: [status_of(telling, key, wire) for wire in WIRES] for key in expected}) != expected:
        assert time.monotonic() < end, found
        time.sleep(0.5)
    check_refused_keys(telling, suspended, revoked)


def check_refused_keys(served: Served, suspended: str, revoked: str) -> None:
    """As the clients' own errors."""
    with (
        sdks.openai_client(served, suspended) as client,
        pytest.raises(openai.PermissionDeniedError, match="suspended"),
    ):
        client.models.list()
    with sdks.openai_client(served, revoked) as client, pytest.raises(openai.AuthenticationError, match="revoked"):
        client.models.list()
    for key, code, status in ((suspended, 403, "PERMISSION_DENIED"), (revoked, 400, "INVALID_ARGUMENT")):
        with sdks.google_client(served, key=key) as google, pytest.raises(errors.ClientError) as refused_key:
            google.models.generate_content(model="qwen3-vl", contents="Hi")
        assert (refused_key.value.code, refused_key.value.status) == (code, status)


def test_a_key_is_for_its_models(telling: Served) -> None:
    key = new_key(telling, "--models", "other")
    with sdks.openai_client(telling, key) as client:
        assert list(client.models.list()) == []
        hello: Any = {"model": "qwen3-vl", "messages": chat("Hi")}
        for asked in (
            lambda: client.models.retrieve("qwen3-vl"),
            lambda: client.chat.completions.create(**hello),
            lambda: client.chat.completions.create(**hello, stream=True),
        ):
            with pytest.raises(openai.NotFoundError) as missing:
                asked()
            assert missing.value.code == "model_not_found"
    with sdks.google_client(telling, key=key) as google:
        assert list(google.models.list()) == []
        for asked_google in (google.models.generate_content, google.models.count_tokens):
            with pytest.raises(errors.ClientError) as unknown:
                asked_google(model="qwen3-vl", contents="Hi")
            assert (unknown.value.code, unknown.value.status) == (404, "NOT_FOUND")
    assert rows(telling, key) == []


def test_a_key_is_for_its_endpoints(telling: Served) -> None:
    reader, caller = new_key(telling, "--endpoints", "models,usage"), new_key(telling, "--endpoints", "generate")
    for key, may in ((reader, (True, False, False)), (caller, (False, True, False))):
        with sdks.openai_client(telling, key) as client:
            calls: tuple[Callable[[], Any], ...] = (
                client.models.list,
                lambda client=client: client.chat.completions.create(model="qwen3-vl", messages=chat("Hi")),
                client.files.list,
            )
            for call, allowed in zip(calls, may, strict=True):
                if allowed:
                    call()
                else:
                    with pytest.raises(openai.PermissionDeniedError, match="not for the endpoint"):
                        call()
    with sdks.google_client(telling, key=reader) as google, pytest.raises(errors.ClientError) as refused_call:
        google.models.generate_content(model="qwen3-vl", contents="Hi")
    assert (refused_call.value.code, refused_call.value.status) == (403, "PERMISSION_DENIED")
    assert get(telling, reader, "/v1/usage").json()["object"] == "page"


def test_a_key_that_is_missing_or_wrong(telling: Served) -> None:
    path = "/v1beta/models/qwen3-vl:generateContent"
    body = {"contents": [{"parts": [{"text": "Hi"}]}]}
    missing = httpx.post(telling.url + path, json=body)
    assert (missing.status_code, missing.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    with sdks.google_client(telling, key="wrong") as google, pytest.raises(errors.ClientError) as wrong:
        google.models.generate_content(model="qwen3-vl", contents="Hi")
    assert wrong.value.code == 400
    (detail,) = wrong.value.details["error"]["details"]
    assert (detail["reason"], detail["@type"].rpartition(".")[2]) == ("API_KEY_INVALID", "ErrorInfo")
    swapped = "sk-" + public(telling.key) + "-" + telling.admin_key.rpartition("-")[2]
    for key in ("sk-wrong", telling.key[:-1], swapped):
        with sdks.openai_client(telling, key) as client, pytest.raises(openai.AuthenticationError) as unknown:
            client.models.list()
        assert unknown.value.code == "invalid_api_key"


# ----------------------------------------------------------------------------------------------------------- bad input

UNFIT: tuple[dict[str, Any], ...] = (
    {"regex": "("},
    {"regex": "(?!a)b"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}},
    {"logit_bias": {"99999999": 1}},
    {"stop_token_ids": [99_999_999]},
    {"messages": [{"role": "user", "content": "a b " * 40_000}]},
    {"model": "none"},
)
"""What only the model's own engine can tell is wrong."""


def test_what_is_refused_leaves_no_row_and_no_charge(telling: Served, reading: Served) -> None:
    """And every answer has an id of its own."""
    limits = ("--tpm", "1000000", "--pictures-per-day", "100", "--budget", "1/month", "--concurrent", "1")
    ids = []
    for served in (telling, reading):
        key = new_key(served, *limits)
        for row in ROWS[::5] if served is telling else ():
            content = row.body if isinstance(row.body, bytes | None) else json.dumps(row.body).encode()
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"} | row.headers
            answer = httpx.request(row.method, served.url + row.path, content=content, headers=headers, timeout=60)
            assert answer.status_code == row.status, row.name
            ids.append(answer.headers["x-request-id"])
        for more in UNFIT if served is reading else ():
            body = {"model": "qwen3-vl", "messages": chat(("image/png", PICTURE), "Hi")} | more
            answer = served.post("/v1/chat/completions", body, key)
            assert answer.status_code in (400, 404), (more, answer.text)
            ids.append(answer.headers["x-request-id"])
        assert rows(served, key) == []
        check_sums(served, key, [])
        headers = headers_of(served, key, "openai", ("image/png", PICTURE), SHORT)
        assert headers["x-ratelimit-remaining-images"] == "99"
        assert nano(headers["x-budget-remaining"]) == 10**9 - nano(headers["x-cost-total"])
    assert len(ids) == len(set(ids))
