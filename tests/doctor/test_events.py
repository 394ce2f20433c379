"""Streams are read as strictly as each wire's strictest client reads them."""

import pytest

from qwen3vl_compat.doctor.events import Event, Form, read_events
from qwen3vl_compat.doctor.finding import Failed
from qwen3vl_compat.doctor.visit import Reply

STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def reply(body: bytes, headers: dict[str, str] = STREAM) -> Reply:
    return Reply(200, headers, body, 0.0, 0.0)


@pytest.mark.parametrize(
    ("form", "body", "events"),
    [
        ("data", b"data: a\n\ndata: b\n\n", [Event("", "a"), Event("", "b")]),
        ("data", b": ping\n: ping\ndata: a\n\n: ping\n", [Event("", "a")]),
        ("named", b"event: x\ndata: a\n\n: ping\nevent: y\ndata: b\n\n", [Event("x", "a"), Event("y", "b")]),
        ("named", b"event: x\r\ndata: a\r\n\r\n", [Event("x", "a")]),
        ("bare", b"data: a\r\n\r\n\r\n\r\ndata: b\r\n\r\n", [Event("", "a"), Event("", "b")]),
        ("bare", b"", []),
    ],
)
def test_what_clients_can_read(form: Form, body: bytes, events: list[Event]) -> None:
    assert read_events(reply(body), form) == events


@pytest.mark.parametrize(
    ("form", "body", "expected"),
    [
        ("data", b"data: a\r\n\r\n", "a line feed alone"),
        ("data", b": ping\n\ndata: a\n\n", "one line end"),
        ("data", b"event: x\ndata: a\n\n", "clients read them"),
        ("data", b"data:a\n\n", "clients read them"),
        ("data", b"data: a\ndata: b\n\n", "clients read them"),
        ("data", b"data: a", "behind each event"),
        ("data", b"data: a\n\nid: 7\n\n", "clients read them"),
        ("named", b"data: a\n\n", "clients read them"),
        ("named", b"event: x\n\n", "behind each event"),
        ("named", b"event: x\nevent: y\ndata: a\n\n", "clients read them"),
        ("bare", b": ping\ndata: a\n\n", "clients read them"),
        ("bare", b"event: x\ndata: a\n\n", "clients read them"),
        ("bare", b"<html>", "clients read them"),
    ],
)
def test_what_a_client_stumbles_over(form: Form, body: bytes, expected: str) -> None:
    with pytest.raises(Failed) as failed:
        read_events(reply(body), form)
    assert expected in failed.value.expected
    assert "proxy" in failed.value.hint


def test_a_stream_says_that_it_is_one() -> None:
    with pytest.raises(Failed) as failed:
        read_events(reply(b"data: a\n\n", {"content-type": "text/html"}), "data")
    assert (failed.value.expected, failed.value.seen) == ("a stream of the type text/event-stream", "text/html")
