"""A real HTTP server that answers as a test has written down, and keeps what it was asked."""

import json
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any


@dataclass(frozen=True)
class Says:
    """An answer; `short` of its body so many bytes stay away before the connection breaks."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    short: int = 0


@dataclass(frozen=True)
class Hangs:
    """Says nothing, until the end or for ever."""

    breaks: bool


@dataclass(frozen=True)
class Seen:
    """A request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Faulty(ThreadingHTTPServer):
    """Plays its script, an answer for a request."""

    daemon_threads = True

    def __init__(self, script: Sequence[Says | Hangs]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.seen, self.over = list(script), list[Seen](), Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.server.seen.append(Seen(self.command, self.path, headers, body))
        match self.server.script.pop(0):
            case Hangs(breaks):
                if not breaks:
                    self.server.over.wait(30)
                self._break()
            case Says(status, body, headers, short):
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) - short])
                if short:
                    self._break()

    def _break(self) -> None:
        """Not before what was written is taken; then at once, without a word."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def faulty(*script: Says | Hangs) -> Iterator[Faulty]:
    """A server with this script on a port of its own."""
    with Faulty(script) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def refusal(status: int, code: str = "code", *, message: str = "No.", **headers: str) -> Says:
    """An error as the server says it."""
    body = {"error": {"message": message, "type": "x", "param": "field", "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Says(status, json.dumps(body).encode(), {"x-request-id": "r1", **named})


def whole(text: str) -> Says:
    """A good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 2, "completion_tokens": 1}
    return Says(200, json.dumps({"choices": [choice], "usage": usage}).encode(), {"x-request-id": "r2"})


def chunks(*texts: str) -> list[bytes]:
    """A good stream's messages."""
    told: list[Any] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    told.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    told.append({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": len(texts)}})
    return [b"data: %b\n\n" % json.dumps(each).encode() for each in told] + [b"data: [DONE]\n\n"]


def streamed(*texts: str, after: bytes = b"", short: int = 0) -> Says:
    """A good stream; with `after`, one that goes on with that instead of coming to its end."""
    body = b"".join(chunks(*texts)[: len(texts)]) + after if after else b"".join(chunks(*texts))
    return Says(200, body, {"content-type": "text/event-stream", "x-request-id": "r3"}, short)
