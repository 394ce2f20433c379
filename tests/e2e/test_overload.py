"""A full engine over sockets: what both families' clients see, what stands in the books, and who gives way to whom."""

import contextlib
import json
import select
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from google.genai import errors

from qwen3vl_compat.demo import SAMPLE
from tests import sdks
from tests.metered import chat, command, contents, new_key, priced, public, rows, wait_until
from tests.serving import Served, serving

ROWS, PLACES = 4, 2
FOR_EVER = {
    "QWEN3VL_MODEL__ENGINE": "scripted",
    "QWEN3VL_MODEL__PAUSE": "60",
    "QWEN3VL_MODEL__MAX_ROWS": str(ROWS),
    "QWEN3VL_MODEL__MAX_WAITING": str(PLACES),
}
"""A server on which an answer that was begun does not end."""
LARGE = SAMPLE.read_bytes() + bytes(1_000_000)
"""A picture that is larger than what is read before there is room."""

pytestmark = pytest.mark.filterwarnings("default")


class Holder:
    """A client that asks for a long answer and reads nothing of it."""

    def __init__(self, served: Served, key: str, number: int) -> None:
        host, port = served.url.removeprefix("http://").split(":")
        said = {"model": "qwen3-vl", "messages": chat(f"count to 1000{number}"), "max_tokens": 1000, "stream": True}
        body = json.dumps(said).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket = socket.create_connection((host, int(port)))
        self.socket.sendall(head.encode() + body)

    @property
    def answered(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def status(self) -> int:
        self.socket.settimeout(60)
        return int(self.socket.recv(4096).split()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("overload"), environment=FOR_EVER) as made:
        yield priced(made)


@contextlib.contextmanager
def full(served: Served, key: str) -> Iterator[list[Holder]]:
    """A key's requests in all rows and places, one after the other, each booked before the next is sent."""
    before, holders = len(rows(served, key)), list[Holder]()
    try:
        for number in range(ROWS + PLACES):
            holders.append(Holder(served, key, number))
            wait_until(lambda: len(rows(served, key)) == before + len(holders))
        assert [holder.status() for holder in holders[:ROWS]] == [200] * ROWS
        yield holders
    finally:
        for holder in holders:
            holder.socket.close()
        wait_until(lambda: all(row["state"] != "open" for row in rows(served, key)))


def test_a_full_engine_in_both_families_words_and_no_row_of_it(served: Served) -> None:
    key = new_key(served)
    with full(served, key) as holders:
        for parts in (("Hello",), (("image/png", LARGE), "What is this?")):
            refused = refused_openai(served, key, *parts)
            assert (refused.status_code, refused.code) == (503, "server_is_overloaded")
            assert "The model is overloaded. Please try again later." in refused.message
            assert (refused.response.headers["retry-after"], refused.response.headers["retry-after-ms"]) == (
                "2",
                "2000",
            )
            native = refused_google(served, key, *parts)
            assert (native.code, native.status) == (503, "UNAVAILABLE")
            assert "The model is overloaded" in str(native.message)
            assert native.response.headers["retry-after"] == "2"
        assert len(rows(served, key)) == len(holders)
        with sdks.google_client(served, key=key) as client:
            counted = client.models.count_tokens(model="qwen3-vl", contents=contents("Hello"))
            assert counted.total_tokens == 5


def test_no_conversation_is_read_for_a_full_engine(served: Served) -> None:
    key = new_key(served)
    asked = {"model": "qwen3-vl", "input": "Hello", "previous_response_id": "resp_" + "0" * 24}
    with full(served, key):
        assert served.post("/v1/responses", asked, key).status_code == 503
    assert served.post("/v1/responses", asked, key).status_code == 404


def refused_openai(served: Served, key: str, *parts: Any) -> openai.InternalServerError:
    with sdks.openai_client(served, key) as client, pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model="qwen3-vl", messages=chat(*parts))
    return refused.value


def refused_google(served: Served, key: str, *parts: Any) -> errors.ServerError:
    with sdks.google_client(served, key=key) as client, pytest.raises(errors.ServerError) as refused:
        client.models.generate_content(model="qwen3-vl", contents=contents(*parts))
    return refused.value


def test_another_tenant_takes_the_newest_place_and_its_turn(served: Served) -> None:
    command(served, "tenants", "create", "quiet")
    key, other = new_key(served), new_key(served, "--tenant", "quiet")
    with full(served, key) as holders:
        quiet = Holder(served, other, 0)
        assert holders[-1].status() == 503
        assert not holders[-2].answered
        wait_until(lambda: rows(served, key)[-1]["state"] != "open")
        pushed_out = rows(served, key)[-1]
        assert (pushed_out["state"], pushed_out["finish"], pushed_out["cost"]) == ("aborted", "refused", 0)
        assert [row["state"] for row in rows(served, other)] == ["open"]
        for holder in holders[:2]:
            holder.socket.close()
        assert [quiet.status(), holders[-2].status()] == [200, 200]
        quiet.socket.close()


def test_what_was_answered_before_is_told_again_though_there_is_no_room(served: Served) -> None:
    key = new_key(served)
    asked = {"model": "qwen3-vl", "messages": chat("say exactly: ")}
    headers = {"authorization": f"Bearer {key}", "idempotency-key": f"again-{public(key)}"}

    def again() -> httpx.Response:
        return httpx.post(f"{served.url}/v1/chat/completions", json=asked, headers=headers, timeout=60)

    first = again()
    assert first.status_code == 200
    with full(served, key):
        second = again()
        assert (second.status_code, second.headers["idempotent-replayed"]) == (200, "true")
        assert second.content == first.content
