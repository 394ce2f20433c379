"""A little moderation service for tests: it objects to `evil`, to pictures if told so, and fails in many ways."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Moderating(ThreadingHTTPServer):
    """What it was asked (all texts of a question, and how many pictures), and how it behaves."""

    daemon_threads = True
    mode = "well"
    """`well`, or how it fails: `500`, `hangs`, `bad json`, `wrong shape`, `dies`."""
    against_pictures = False
    pause = 0.0
    """Seconds before it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.asked: list[tuple[list[str], int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/moderations"


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Moderating

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["input"]
        texts = [part if isinstance(part, str) else part["text"] for part in parts if "image_url" not in part]
        pictures = sum(isinstance(part, dict) and part["type"] == "image_url" for part in parts)
        self.server.asked.append((texts, pictures))
        evil = any("evil" in text for text in texts) or (pictures > 0 and self.server.against_pictures)
        told = {
            "flagged": evil,
            "categories": {"hate": evil, "sexual": False},
            "category_scores": {"hate": float(evil)},
        }
        self._say(json.dumps({"id": "modr-1", "model": body["model"], "results": [told]}).encode())

    def _say(self, good: bytes) -> None:
        mode = self.server.mode
        time.sleep(self.server.pause)
        if mode == "hangs":
            time.sleep(3)
        said = {"bad json": b"{", "wrong shape": b'{"results": {}}'}.get(mode, good)
        self.send_response(500 if mode == "500" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said[:5] if mode == "dies" else said)
        self.close_connection = mode == "dies"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def moderating() -> Iterator[Moderating]:
    with Moderating() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
