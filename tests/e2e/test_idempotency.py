"""Idempotency-Key over sockets: the same bytes again on every wire, hang-ups, races, and servers that stop or die."""

import asyncio
import json
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from google.genai import errors, types

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.sqlite import FILE
from tests import sdks
from tests.serving import Served, serving

SLOW = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": "0.02", "QWEN3VL_LEDGER__LEASE": "0.5"}
JSON = {"content-type": "application/json"}
FORMS = ("chat", "chat stream", "native", "native stream", "native array")
forms = pytest.mark.parametrize("form", FORMS)
Ask = Callable[..., httpx.Response]


def said(form: str, text: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a request that says so."""
    if form.startswith("chat"):
        body: dict[str, Any] = {"model": "qwen3-vl", "messages": [{"role": "user", "content": text}]}
        more = {"stream": True, "stream_options": {"include_usage": True}} if form == "chat stream" else {}
        return "/v1/chat/completions", body | more
    verb = {
        "native": "generateContent",
        "native stream": "streamGenerateContent?alt=sse",
        "native array": "streamGenerateContent",
    }[form]
    return f"/v1beta/models/qwen3-vl:{verb}", {"contents": [{"parts": [{"text": text}]}]}


def ask(
    served: Served, form: str, text: str, key: str | bytes, *, caller: str | None = None, **headers: str
) -> httpx.Response:
    path, body = said(form, text)
    known = {"authorization": f"Bearer {caller or served.key}", "idempotency-key": key, **JSON} | headers
    return httpx.post(served.url + path, content=json.dumps(body), headers=known, timeout=60)  # type: ignore[arg-type]


def hang_up(served: Served, form: str, text: str, key: str, *, beside: int = 0, **headers: str) -> None:
    """Ask, and close the connection once the answer has begun, or the generation where nothing is streamed.

    So many others are under way `beside` it.
    """
    path, body = said(form, text)
    content = json.dumps(body).encode()
    known = {
        "host": "x",
        "authorization": f"Bearer {served.key}",
        "idempotency-key": key,
        "content-length": str(len(content)),
        **JSON,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in (known | headers).items())
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
        if form in ("chat", "native"):
            wait_until(lambda: running(served) == beside + 1)
        else:
            assert connection.recv(20).startswith(b"HTTP/1.1 200")


def ask_until_answered(served: Served, form: str, text: str, key: str) -> httpx.Response:
    """Ask again and again while the first is under way."""
    end = time.monotonic() + 60
    while (answer := ask(served, form, text, key)).status_code == 409:
        assert time.monotonic() < end
        time.sleep(0.05)
    return answer


def running(served: Served) -> int:
    return httpx.get(served.url + "/health").json()["running"]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def states(state: Path) -> list[str]:
    with closing(sqlite3.connect(state / FILE)) as connection:
        return [row[0] for row in connection.execute("SELECT state FROM replies")]


def code_of(answer: httpx.Response) -> object:
    """The code of an error, on OpenAI's wire."""
    return answer.json()["error"]["code"]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """At 20 ms a token."""
    with serving(tmp_path_factory.mktemp("slow"), environment=SLOW) as served:
        yield served


@pytest.fixture(scope="module")
def other_key(slow: Served) -> str:
    """A key of another tenant."""
    database = open_database(slow.state)
    keys = Keys(database)
    keys.add_tenant("other")
    made = keys.create("other").secret_text
    database.dispose()
    return made


# ------------------------------------------------------------------------------------------------------------- replays


@forms
def test_the_same_bytes_come_again(slow: Served, form: str) -> None:
    text = "think: hmm then say: zwölf \U0001f600"
    first, second = (ask(slow, form, text, f"same {form}") for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]


@pytest.mark.filterwarnings("default")
def test_openais_client_gets_the_first_answer_again(slow: Served) -> None:
    with sdks.openai_client(slow) as client:

        def whole(text: str = "count to 3") -> Any:
            return client.chat.completions.create(
                model="qwen3-vl",
                messages=[{"role": "user", "content": text}],
                extra_headers={"Idempotency-Key": "openai whole"},
            )

        first, second = whole(), whole()
        assert first == second
        assert first.choices[0].message.content == "1 2 3"
        with pytest.raises(openai.BadRequestError) as caught:
            whole("count to 4")
        assert (caught.value.code, caught.value.param) == ("idempotency_key_reuse", "Idempotency-Key")

        def streamed() -> list[Any]:
            return list(
                client.chat.completions.create(
                    model="qwen3-vl",
                    messages=[{"role": "user", "content": "count to 3"}],
                    stream=True,
                    extra_headers={"Idempotency-Key": "openai stream"},
                )
            )

        assert streamed() == streamed()


@pytest.mark.filterwarnings("default")
def test_googles_client_gets_the_first_answer_again(slow: Served) -> None:
    with sdks.google_client(slow) as client:

        def config(key: str) -> types.GenerateContentConfig:
            return types.GenerateContentConfig(http_options=types.HttpOptions(headers={"Idempotency-Key": key}))

        def whole(text: str = "count to 3") -> types.GenerateContentResponse:
            return client.models.generate_content(model="qwen3-vl", contents=text, config=config("google whole"))

        first, second = whole(), whole()
        assert (first.text, first.response_id) == ("1 2 3", second.response_id)
        assert first.usage_metadata == second.usage_metadata
        with pytest.raises(errors.ClientError) as caught:
            whole("count to 4")
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
        assert "Idempotency-Key" in (caught.value.message or "")

        def streamed() -> list[tuple[str | None, str | None]]:
            chunks = client.models.generate_content_stream(
                model="qwen3-vl", contents="count to 3", config=config("google stream")
            )
            return [(chunk.text, chunk.response_id) for chunk in chunks]

        assert streamed() == streamed()


@pytest.mark.filterwarnings("default")
def test_openais_client_that_gives_up_comes_again_by_itself_and_gets_the_answer(slow: Served) -> None:
    """Each of its tries is closed after a second; the answer takes longer. It waits as long as a 409 says."""
    with openai.OpenAI(base_url=slow.url + "/v1", api_key=slow.key, max_retries=9, timeout=1.0) as client:
        answer = client.chat.completions.with_raw_response.create(
            model="qwen3-vl",
            messages=[{"role": "user", "content": "count to 70"}],
            extra_headers={"Idempotency-Key": "by itself"},
        )
    assert answer.headers["idempotent-replayed"] == "true"
    assert (answer.parse().choices[0].message.content or "").endswith("69 70")


# ------------------------------------------------------------------------------------------------- another request


@forms
def test_another_request_under_the_same_key_is_refused(slow: Served, form: str) -> None:
    ask(slow, "chat", "count to 1", f"reuse {form}")
    answer = ask(slow, form, "count to 2", f"reuse {form}")
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    assert "idempotent-replayed" not in answer.headers
    error = answer.json()["error"]
    if form.startswith("chat"):
        assert (error["code"], error["param"]) == ("idempotency_key_reuse", "Idempotency-Key")
    else:
        assert error["status"] == "INVALID_ARGUMENT"
        assert error["details"][0]["fieldViolations"][0]["field"] == "Idempotency-Key"


def test_stream_or_not_is_another_request_and_so_is_another_path(slow: Served) -> None:
    ask(slow, "native", "count to 1", "verbs")
    for form in ("native stream", "native array", "chat"):
        assert ask(slow, form, "count to 1", "verbs").status_code == 400
    path, body = said("native", "count to 1")
    headers = {"authorization": f"Bearer {slow.key}", "idempotency-key": "verbs"}
    assert httpx.post(slow.url + path.replace("v1beta", "v1"), json=body, headers=headers).status_code == 400


def test_how_the_api_key_came_makes_no_difference(slow: Served) -> None:
    path, body = said("native", "count to 1")
    headers = {"idempotency-key": "any way"}
    ways: list[tuple[dict[str, str], dict[str, str]]] = [
        ({"authorization": f"Bearer {slow.key}"}, {}),
        ({"x-goog-api-key": slow.key}, {}),
        ({}, {"key": slow.key}),
    ]
    answers = [httpx.post(slow.url + path, json=body, headers=headers | way, params=query) for way, query in ways]
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}


def test_tenants_have_keys_of_their_own(slow: Served, other_key: str) -> None:
    first = ask(slow, "chat", "count to 1", "shared")
    second = ask(slow, "chat", "count to 1", "shared", caller=other_key)
    assert second.status_code == 200
    assert "idempotent-replayed" not in second.headers
    assert second.json()["id"] != first.json()["id"]
    assert ask(slow, "chat", "count to 1", "shared", caller=other_key).json()["id"] == second.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", b"\xc3\xa9", b"\x80"])
@pytest.mark.parametrize("form", ["chat", "native"])
def test_what_is_no_key_is_refused_by_name(slow: Served, form: str, key: str | bytes) -> None:
    answer = ask(slow, form, "count to 1", key)
    assert answer.status_code == 400
    assert "Idempotency-Key: must be 1 to 255 printable ASCII characters" in answer.json()["error"]["message"]


@pytest.mark.parametrize("key", ["x" * 255, "!", '"8e03978e-40d5-43dd-bc93-6894a57f9324"'])
def test_what_is_a_key_is_taken(slow: Served, key: str) -> None:
    assert ask(slow, "chat", "count to 1", key).status_code == 200


def test_what_generates_nothing_takes_no_notice(slow: Served) -> None:
    headers = {"authorization": f"Bearer {slow.key}", "idempotency-key": "é".encode()}
    counted = httpx.post(
        slow.url + "/v1beta/models/qwen3-vl:countTokens",
        json={"contents": [{"parts": [{"text": "Hi"}]}]},
        headers=headers,  # type: ignore[arg-type]
    )
    assert counted.status_code == 200
    assert httpx.get(slow.url + "/v1/models", headers=headers).status_code == 200  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("form", ["chat", "chat stream", "native", "native stream"])
def test_a_refused_picture_is_refused_again(slow: Served, form: str) -> None:
    path, body = said(form, "look")
    if form.startswith("chat"):
        url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        body["messages"][0]["content"] = [url]
    else:
        body["contents"][0]["parts"] = [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]
    headers = {"authorization": f"Bearer {slow.key}", "idempotency-key": f"picture {form}"}
    first, second = (httpx.post(slow.url + path, json=body, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (400, 400)
    assert first.content == second.content
    assert "idempotent-replayed" not in first.headers
    assert (second.headers["idempotent-replayed"], second.headers["x-should-retry"]) == ("true", "false")


@pytest.mark.parametrize("wrong", [{"model": "another"}, {"temperature": "hot"}, {"messages": []}])
def test_what_is_refused_before_the_key_is_looked_up_leaves_it_free(slow: Served, wrong: dict[str, object]) -> None:
    key = f"free {sorted(wrong)}"
    headers = {"authorization": f"Bearer {slow.key}", "idempotency-key": key}
    path, body = said("chat", "count to 1")
    assert httpx.post(slow.url + path, json=body | wrong, headers=headers).status_code in (400, 404)
    assert ask(slow, "chat", "count to 1", key).status_code == 200


# ------------------------------------------------------------------------------------------------------------ hang-ups


@forms
def test_after_a_hang_up_the_whole_answer_is_there(slow: Served, form: str) -> None:
    key = f"gone {form}"
    hang_up(slow, form, "count to 50", key)
    later = ask_until_answered(slow, form, "count to 50", key)
    assert (later.status_code, later.headers["idempotent-replayed"]) == (200, "true")
    whole = ask(slow, form, "count to 50", f"beside {key}")
    words = (answer.text.replace(identity(answer), "the id") for answer in (later, whole))
    assert len({unstamped(text) for text in words}) == 1


def identity(answer: httpx.Response) -> str:
    """The id inside an answer, which the x-request-id of a replay is not."""
    for name in ('"id":"chatcmpl-', '"responseId":"'):
        if name in answer.text:
            return answer.text.partition(name)[2].partition('"')[0]
    raise AssertionError(answer.text)


def unstamped(text: str) -> str:
    """Without the second in which it was created."""
    before, stamp, _ = text.partition('"created":')
    return text if not stamp else text.replace(text[len(before) :].partition(",")[0], "")


def test_it_is_under_way_to_its_deadline_though_nobody_waits(slow: Served) -> None:
    """In all forms side by side: each lasts for 6 s."""
    forms = ("chat", "chat stream", "native")
    for beside, form in enumerate(forms):
        hang_up(slow, form, "count to 100000", f"deadline {form}", beside=beside, **{"x-server-timeout": "6"})
    for form in forms:
        early = ask(slow, form, "count to 100000", f"deadline {form}")
        assert early.status_code == 409
        assert 1 <= int(early.headers["retry-after"]) <= 60
        assert early.json()["error"]["code"] in ("idempotency_in_flight", 409)
    for form in forms:
        answer = ask_until_answered(slow, form, "count to 100000", f"deadline {form}")
        assert answer.headers["idempotent-replayed"] == "true"
        if form == "chat stream":
            *_, last = filter(None, answer.text.split("\n"))
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        else:
            assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")


def test_an_answer_of_more_than_a_megabyte_is_given_once(tmp_path: Path) -> None:
    with serving(tmp_path, environment={"QWEN3VL_MODEL__ENGINE": "scripted"}) as served:
        path, body = said("chat", "count to 30000")
        body |= {"logprobs": True}
        headers = {"authorization": f"Bearer {served.key}", "idempotency-key": "large"}
        first, second = (httpx.post(served.url + path, json=body, headers=headers, timeout=120) for _ in range(2))
    assert first.status_code == 200
    assert (second.status_code, code_of(second)) == (409, "idempotency_reply_too_large")
    assert second.headers["x-should-retry"] == "false"
    assert "retry-after" not in second.headers
    assert states(served.state) == ["too_large"]


# -------------------------------------------------------------------------------------------------- races and processes


def test_of_fifty_at_two_servers_of_one_database_one_generates(slow: Served, tmp_path: Path) -> None:
    with serving(tmp_path, "--state-dir", str(slow.state), environment=SLOW) as beside:
        beside.key = slow.key
        path, body = said("chat", "count to 100")
        headers = {"authorization": f"Bearer {slow.key}", "idempotency-key": "fifty", **JSON}
        content = json.dumps(body)

        async def race() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=60) as client:
                urls = [(slow, beside)[number % 2].url for number in range(50)]
                return await asyncio.gather(
                    *(client.post(url + path, content=content, headers=headers) for url in urls)
                )

        answers = asyncio.run(race())
        assert {answer.status_code for answer in answers} <= {200, 409}
        generated = [each for each in answers if each.status_code == 200 and "idempotent-replayed" not in each.headers]
        assert len(generated) == 1
        assert {each.content for each in answers if each.status_code == 200} == {generated[0].content}
        assert {code_of(each) for each in answers if each.status_code == 409} == {"idempotency_in_flight"}
        assert [ask(each, "chat", "count to 100", "fifty").content for each in (slow, beside)] == [
            generated[0].content
        ] * 2


def test_a_stop_waits_for_what_nobody_waits_for(tmp_path: Path) -> None:
    with serving(tmp_path, environment=SLOW) as served:
        hang_up(served, "chat stream", "count to 100", "stopping")
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0
    assert states(served.state) == ["kept"]
    with serving(tmp_path, environment=SLOW) as again:
        again.key = served.key
        answer = ask(again, "chat stream", "count to 100", "stopping")
        assert (answer.status_code, answer.headers["idempotent-replayed"]) == (200, "true")
        assert answer.text.endswith("data: [DONE]\n\n")


def test_what_outlasts_the_grace_is_cut_and_kept_as_cut(tmp_path: Path) -> None:
    with serving(tmp_path, environment=SLOW | {"QWEN3VL_SERVER__GRACE": "0.5"}) as served:
        hang_up(served, "chat", "count to 100000", "cut")
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0
    with serving(tmp_path, environment=SLOW) as again:
        again.key = served.key
        answer = ask(again, "chat", "count to 100000", "cut")
        assert (answer.status_code, code_of(answer)) == (503, "server_is_overloaded")
        assert (answer.headers["idempotent-replayed"], answer.headers["x-should-retry"]) == ("true", "false")


def test_what_a_killed_server_had_begun_is_begun_anew_by_one(tmp_path: Path) -> None:
    with serving(tmp_path, environment=SLOW) as served:
        hang_up(served, "chat", "count to 100", "killed")
        served.process.kill()
        served.process.wait()
    assert states(served.state) == ["running"]
    with serving(tmp_path, environment=SLOW) as again:
        path, body = said("chat", "count to 100")
        headers = {"authorization": f"Bearer {served.key}", "idempotency-key": "killed", **JSON}

        async def insist(client: httpx.AsyncClient) -> list[httpx.Response]:
            answers: list[httpx.Response] = []
            while not answers or answers[-1].status_code == 409:
                answers.append(await client.post(again.url + path, content=json.dumps(body), headers=headers))
                await asyncio.sleep(0.05)
            return answers

        async def race() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=60) as client:
                told = await asyncio.wait_for(asyncio.gather(*(insist(client) for _ in range(8))), 60)
            return [answer for answers in told for answer in answers]

        answers = asyncio.run(race())
    answered = [answer for answer in answers if answer.status_code != 409]
    assert {answer.status_code for answer in answered} == {200}
    assert ["idempotent-replayed" in answer.headers for answer in answered].count(False) == 1
    assert len({answer.content for answer in answered}) == 1
