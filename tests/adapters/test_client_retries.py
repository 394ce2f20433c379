"""What the client does when a server refuses, fails, breaks off or says nothing: both faces, over a real socket."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_compat.adapters import client
from qwen3vl_compat.adapters.client import ClientError
from tests.adapters.faces import FACES, Face
from tests.adapters.faulty import Hangs, Says, faulty, refusal, streamed, whole

SOON = {"retry_after_ms": "10"}
faces = pytest.mark.parametrize("face", FACES.values(), ids=FACES)
FLIGHT = refusal(409, "idempotency_in_flight", **SOON)
ERROR = b'data: {"error": {"message": "Stopping.", "type": "x", "param": null, "code": "server_is_overloaded"}}\n\n'


@faces
@pytest.mark.parametrize(
    "script",
    [
        [refusal(429, "rate_limit_exceeded", **SOON)],
        [refusal(429, retry_after="0")],
        [refusal(503, **SOON), refusal(408, **SOON)],
        [refusal(500, **SOON), refusal(502, **SOON)],
        [FLIGHT, FLIGHT, FLIGHT, FLIGHT],
        [Hangs(breaks=True)],
        [Says(200, whole("yes").body, short=5)],
    ],
    ids=["429 in ms", "429 in s", "503, 408", "500, 502", "in flight", "no answer", "half an answer"],
)
def test_it_is_sent_again(face: Face, script: list[Says | Hangs]) -> None:
    """The same bytes under the same key, so that it is carried out once."""
    with faulty(*script, whole("yes")) as server, face(server.url, "sk-x", retries=2) as asking:
        answer = asking.generate("Well?")
        assert (answer.text, answer.request_id, answer.usage.completion) == ("yes", "r2", 1)
        assert len(server.seen) == len(script) + 1
        assert len({(seen.path, seen.body, seen.headers["idempotency-key"]) for seen in server.seen}) == 1
        assert server.seen[0].headers["authorization"] == "Bearer sk-x"


@faces
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (refusal(400), client.BadRequest),
        (refusal(400, x_should_retry="true"), client.BadRequest),
        (refusal(401), client.Unauthorized),
        (refusal(403), client.Forbidden),
        (refusal(404), client.NotFound),
        (refusal(409, "idempotency_reply_too_large"), client.Conflict),
        (refusal(413), client.BadRequest),
        (refusal(422), client.BadRequest),
        (refusal(429, "insufficient_quota", x_should_retry="false"), client.OutOfCredit),
        (refusal(429, retry_after="3600"), client.RateLimited),
        (refusal(429, retry_after="60"), client.RateLimited),
        (refusal(503, x_should_retry="false"), client.Overloaded),
        (refusal(504, x_should_retry="false"), client.TimeIsUp),
        (refusal(500, x_should_retry="false"), client.ServerFailed),
    ],
)
def test_it_is_not_sent_again(face: Face, said: Says, kind: type[ClientError]) -> None:
    """Because that would not help, or take longer than there is time. All that is known is told."""
    with faulty(said) as server, face(server.url, timeout=20) as asking:
        with pytest.raises(client.Refused) as caught:
            asking.generate("Well?")
        error = caught.value
        named = said.headers.get("retry-after")
        assert type(error) is kind
        assert (error.status, error.param, error.request_id, str(error)) == (said.status, "field", "r1", "No.")
        assert error.code == json.loads(said.body)["error"]["code"]
        assert error.retry_after == (float(named) if named else None)
        assert len(server.seen) == 1
        assert "authorization" not in server.seen[0].headers


@faces
def test_it_gives_up(face: Face) -> None:
    with faulty(*[refusal(503, **SOON)] * 3) as server, face(server.url, retries=2) as asking:
        with pytest.raises(client.Overloaded):
            asking.generate("Well?")
        assert len(server.seen) == 3


@faces
@pytest.mark.parametrize(
    ("script", "kind", "asked"),
    [
        ([Hangs(breaks=True)], client.ConnectionFailed, 1),
        ([refusal(502)], client.ServerFailed, 1),
        ([refusal(503, **SOON), streamed("a", short=30)], client.ConnectionFailed, 2),
        ([streamed("a", after=b": ping\n")], client.ConnectionFailed, 1),
        ([streamed("a", after=ERROR)], client.Overloaded, 1),
        ([streamed("a", after=b"data: {nonsense\n\n")], client.Unreadable, 1),
    ],
    ids=["no answer", "a proxy", "refused, then cut", "cut cleanly", "an error", "nonsense"],
)
def test_a_stream_is_not_sent_again_once_it_may_be_charged(
    face: Face, script: list[Says | Hangs], kind: type[ClientError], asked: int
) -> None:
    """It bears no key, so that hanging up ends it: only what surely cost nothing is tried once more."""
    with faulty(*script) as server, face(server.url, retries=2) as asking:
        with pytest.raises(kind):
            asking.stream("Well?")
        assert len(server.seen) == asked
        assert not any("idempotency-key" in seen.headers for seen in server.seen)


@faces
@pytest.mark.parametrize("short", [5, 20, 100, 300])
def test_a_stream_with_a_key_goes_on_where_it_broke(face: Face, short: int) -> None:
    said = streamed("a", "b", "c")
    script = [Says(200, said.body, said.headers, short), FLIGHT, said]
    with faulty(*script) as server, face(server.url) as asking:
        told, answer = asking.stream("Well?", idempotency_key="mine")
        assert [delta.text for delta in told] == ["a", "b", "c"]
        assert answer is not None
        assert (answer.text, answer.usage.completion) == ("abc", 3)
        assert {seen.headers["idempotency-key"] for seen in server.seen} == {"mine"}
        assert len(server.seen) == 3


@faces
def test_nobody_there(face: Face) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with face(address, retries=0) as asking:
        with pytest.raises(client.ConnectionFailed, match=f"^The server at {address} cannot be reached"):
            asking.generate("Well?")
        with pytest.raises(client.ConnectionFailed, match=f"^The server at {address} cannot be reached"):
            asking.stream("Well?")


@faces
def test_a_server_that_says_nothing(face: Face) -> None:
    with faulty(Hangs(breaks=False)) as server, face(server.url, timeout=0.3) as asking:
        with pytest.raises(client.TimedOut):
            asking.generate("Well?")
        assert all(0 <= float(seen.headers["x-server-timeout"]) <= 0.3 for seen in server.seen)


@faces
@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b"\xff", b'{"error": {"message": "x"}}'])
def test_another_server(face: Face, body: bytes) -> None:
    with faulty(Says(200, body)) as server, face(server.url) as asking, pytest.raises(client.Unreadable):
        asking.generate("Well?")


@faces
def test_a_proxys_page(face: Face) -> None:
    said = Says(418, b"<html>", {"x-request-id": "r9"})
    with faulty(said) as server, face(server.url) as asking, pytest.raises(client.BadRequest) as caught:
        asking.generate("Well?")
    assert (str(caught.value), caught.value.request_id) == ("The server answered with status 418.", "r9")


@faces
def test_redirections_are_not_followed(face: Face) -> None:
    """The key would go along."""
    said = Says(307, b"", {"location": "http://127.0.0.1:1/"})
    with faulty(said) as server, face(server.url) as asking, pytest.raises(client.Refused):
        asking.generate("Well?")


@faces
def test_an_upload_is_sent_again(face: Face, tmp_path: Path) -> None:
    path = tmp_path / 'a "q".pdf'
    path.write_bytes(b"%PDF-" + b"x" * 600_000)
    kept = {"id": "file-1", "filename": "a.pdf", "bytes": 9, "created_at": 1, "expires_at": 2}
    told: list[Any] = []
    with (
        faulty(Hangs(breaks=True), refusal(503, **SOON), Says(200, json.dumps(kept).encode())) as server,
        face(server.url) as asking,
    ):
        assert asking.upload(str(path), life=60, on_progress=told.append).id == "file-1"
        bodies = {seen.body for seen in server.seen}
        assert len(server.seen) == 3
        assert len(bodies) == 1
        (body,) = bodies
        assert path.read_bytes() in body
        assert b'name="expires_after[seconds]"\r\n\r\n60\r\n' in body
        assert b'filename="a _q_.pdf"' in body
    assert {(each.stage, each.total) for each in told} == {("upload", len(body))}
    assert [each.done for each in told].count(len(body)) == 3
