"""Hang-ups, deadlines and the graceful stop, on a real server with the scripted engine."""

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving import Served, serving

LONG = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "count to 100000"}]}
SLOW = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": "0.02"}


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """At 20 ms a token, for all that leave it as it was."""
    with serving(tmp_path_factory.mktemp("lasting"), environment=SLOW) as served:
        yield served


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Served]:
    """Such a server of one's own."""
    with serving(tmp_path, environment=SLOW) as served:
        yield served


def lines_of(served: Served) -> list[str]:
    return [line for line in served.log().splitlines() if "qwen3vl_compat.access" in line]


def wait_for_line(served: Served, seconds: float, before: int = 0) -> str:
    """The next line after so many."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if lines := lines_of(served)[before:]:
            return lines[-1]
        time.sleep(0.02)
    raise AssertionError(served.log())


@pytest.mark.parametrize("stream", [True, False])
def test_a_hang_up_ends_the_generation(lasting: Served, stream: bool) -> None:
    host, port = lasting.url.removeprefix("http://").split(":")
    body = json.dumps(LONG | {"stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {lasting.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    before = len(lines_of(lasting))
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(0.5)
    line = wait_for_line(lasting, 1.0, before)
    assert "status=499" in line
    assert httpx.get(lasting.url + "/health").json()["running"] == 0


def test_a_client_that_stops_reading_is_given_up(tmp_path: Path) -> None:
    swift = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_SERVER__READ_IDLE": "0.3"}
    with serving(tmp_path, environment=swift) as served, socket.socket() as connection:
        host, port = served.url.removeprefix("http://").split(":")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        body = json.dumps(LONG | {"stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert "status=499" in wait_for_line(served, 20.0)
        assert not [
            each for each in psutil.Process(served.process.pid).net_connections() if each.status == "ESTABLISHED"
        ]
        assert httpx.get(served.url + "/health").json()["running"] == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1beta/models/qwen3-vl:generateContent"])
def test_the_client_may_shorten_the_deadline(lasting: Served, path: str) -> None:
    headers = {"authorization": f"Bearer {lasting.key}", "x-server-timeout": "0.4"}
    body = LONG if "chat" in path else {"contents": [{"parts": [{"text": "count to 100000"}]}]}
    began = time.monotonic()
    answer = httpx.post(lasting.url + path, json=body, headers=headers, timeout=20)
    assert answer.status_code == 504
    assert time.monotonic() - began < 3
    assert answer.json()["error"]["code"] in ("timeout", 504)


def test_a_deadline_in_a_stream_is_its_last_event(lasting: Served) -> None:
    headers = {"authorization": f"Bearer {lasting.key}", "x-server-timeout": "0.4"}
    answer = httpx.post(lasting.url + "/v1/chat/completions", json=LONG | {"stream": True}, headers=headers, timeout=20)
    last = answer.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"


def streaming(served: Served, body: dict[str, object], chunks: list[str]) -> threading.Thread:
    def run() -> None:
        headers = {"authorization": f"Bearer {served.key}"}
        url = served.url + "/v1/chat/completions"
        with (
            contextlib.suppress(httpx.RemoteProtocolError),  # what a server that ends at once leaves behind
            httpx.stream("POST", url, json=body | {"stream": True}, headers=headers, timeout=60) as answer,
        ):
            chunks.extend(line for line in answer.iter_lines() if line)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def wait_until_running(served: Served) -> None:
    end = time.monotonic() + 5
    while not httpx.get(served.url + "/health").json()["running"]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_stop_lets_streams_finish(slow: Served) -> None:
    chunks: list[str] = []
    said = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "count to 100"}]}
    thread = streaming(slow, said, chunks)
    wait_until_running(slow)
    slow.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert httpx.get(slow.url + "/readyz").status_code == 503
    assert httpx.get(slow.url + "/livez").status_code == 200
    refused = slow.post("/v1/chat/completions", said)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    thread.join(20)
    assert chunks[-1] == "data: [DONE]"
    assert slow.process.wait(5) == 0


def test_a_second_signal_ends_at_once(slow: Served) -> None:
    chunks: list[str] = []
    thread = streaming(slow, LONG, chunks)
    wait_until_running(slow)
    slow.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    slow.process.send_signal(signal.SIGTERM)
    slow.process.wait(5)
    thread.join(5)


def test_what_outlasts_the_grace_is_cut_with_an_error(tmp_path: Path) -> None:
    with serving(tmp_path, environment=SLOW | {"QWEN3VL_SERVER__GRACE": "0.5"}) as served:
        chunks: list[str] = []
        thread = streaming(served, LONG, chunks)
        wait_until_running(served)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(8) == 0
        thread.join(5)
        assert "server_is_overloaded" in chunks[-1]


def test_later_starts_print_public_parts_only(tmp_path: Path) -> None:
    with serving(tmp_path, environment=SLOW) as first:
        key = first.key
    with serving(tmp_path, environment=SLOW) as second:
        assert second.key == ""
        assert key.split("-")[1] in second.log()
        assert key.split("-", 2)[2] not in second.log()
        assert "keys create" in second.log()
        assert second.post("/v1/chat/completions", LONG | {"max_tokens": 1}, key=key).status_code == 200


def test_requests_that_come_while_it_starts_are_told_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path, environment={"QWEN3VL_MODEL__ENGINE": "scripted"}) as before:
        headers = {"authorization": f"Bearer {before.key}"}
    short = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    native = {"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"maxOutputTokens": 1}}
    seen: list[tuple[int, str]] = []

    def ask(url: str) -> None:
        end = time.monotonic() + 60
        while (not seen or seen[-1][0] != 200) and time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                for path, body in (
                    ("/v1beta/models/qwen3-vl:countTokens", {"contents": native["contents"]}),
                    ("/v1beta/models/qwen3-vl:generateContent", native),
                    ("/v1/chat/completions", short),
                ):
                    answer = httpx.post(url + path, json=body, headers=headers, timeout=30)
                    seen.append((answer.status_code, answer.headers.get("retry-after", "")))

    with serving(tmp_path, during=ask):
        pass
    assert {status for status, _ in seen} == {200, 503}
    assert all(later for status, later in seen if status == 503)
