"""What every request passes before a route sees it: its id, the key, the log line, and a last net for failures."""

import logging
import re
import secrets
import time
from collections.abc import Iterable, Set
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs

from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from litestar.utils import normalize_path

from qwen3vl_compat.accounts.keys import Key
from qwen3vl_compat.errors import ApiError, EngineFailed, Forbidden, InvalidRequest, Unauthorized
from qwen3vl_compat.messages import Caller
from qwen3vl_compat.server.connection import HEAD_BYTES, HEAD_LINES, Head
from qwen3vl_compat.wire import generate_content, openai_chat

log = logging.getLogger("qwen3vl_compat.access")
failures = logging.getLogger("qwen3vl_compat.failures")

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/startupz", "/health"})
"""Paths served without a key; every other path needs one."""
METRICS = "/metrics"
ADMIN = "/admin/"
"""Below this every path takes an admin key, as METRICS does."""
UPLOADS = "/upload/session/"
"""Below this every path is the secret address of one upload, which is why it needs no key."""


_UNREAD = frozenset({401, 403, 408, 413, 415, 431})
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")


class FindKey(Protocol):
    """Looks a presented key up."""

    def __call__(self, presented: str, /) -> Key | None:
        """The key, or None when it is none of ours."""
        ...


class Exchange:
    """What is known of one request, for its log line and its headers."""

    def __init__(self, scope: HTTPScope) -> None:
        self.id = secrets.token_hex(12)
        self.began = time.monotonic()
        # as Litestar reads it: to judge `//metrics` by other letters than it is routed by would let anybody in
        self.path, self.method = normalize_path(scope["path"]), scope["method"]
        self.headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        self.google = self._speaks_google()
        self.caller = Caller("", "")
        self.status = 0
        self.model = self.tokens = "-"
        self.answer_headers: dict[str, str] = {}

    def _speaks_google(self) -> bool:
        if self.path.startswith(("/v1beta", "/upload/")):
            return True
        named = "x-goog-api-key" in self.headers or "key" in self.query
        if self.path.startswith("/v1/files"):
            return named or any(header.startswith("x-goog-upload-") for header in self.headers)
        return self.path.startswith("/v1/models") and (self.method == "POST" or named)

    @property
    def key(self) -> str | None:
        """The key as it was presented, in any of the ways the two families of clients have."""
        scheme, _, bearer = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and bearer.strip():
            return bearer.strip()
        if header := self.headers.get("x-goog-api-key"):
            return header
        return self.query["key"][0] if self.google and self.query.get("key") else None

    def encode(self, error: ApiError) -> tuple[int, dict[str, str], bytes]:
        """The error as this request's wire says it: status, headers, body."""
        headers = {"content-type": "application/json", **self.answer_headers}
        if error.retry_after is not None:
            headers |= {"retry-after": str(error.retry_after), "retry-after-ms": str(error.retry_after * 1000)}
        if error.status in _UNREAD:  # the body was not read: what still comes of it must not be waited for
            headers["connection"] = "close"
        if self.google:
            return generate_content.status_of(error), headers, generate_content.encode_error(error)
        return error.status, headers, openai_chat.encode_error(error)


_NO_REQUEST = {
    400: ("The request is not valid HTTP.", "invalid_http"),
    408: ("The head of the request came too slowly.", "request_timeout"),
    431: (f"The headers are more than {HEAD_LINES} lines or {HEAD_BYTES} bytes.", "headers_too_large"),
}


def refusal(status: int, target: bytes, head: Head) -> bytes:
    """The answer to what never became a request, on the wire that its target and headers tell, as far as they came."""
    path, _, query = target.partition(b"?")
    scope: Any = {"path": path.decode("latin-1"), "method": "POST", "headers": head, "query_string": query}
    exchange = Exchange(scope)
    message, code = _NO_REQUEST[status]
    status, headers, body = exchange.encode(InvalidRequest(message, status=status, code=code))
    headers |= {"content-length": str(len(body)), "connection": "close", "x-request-id": exchange.id}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange_of(scope: Scope) -> Exchange:
    """The exchange the door opened for this request."""
    return scope["state"]["exchange"]


def door(app: ASGIApp, find_key: FindKey, open_paths: Set[str] = OPEN_PATHS) -> ASGIApp:
    """Wrap the application; nothing behind it runs for a request without a key, save on the open paths."""

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        exchange = Exchange(scope)
        scope.setdefault("state", {})["exchange"] = exchange
        tell = _telling(exchange, send)
        try:
            check_head(scope["headers"])
            if needs_key(exchange.path, open_paths):
                exchange.caller = admit(exchange, find_key)
            await app(scope, receive, tell)
        except ApiError as error:
            await _answer(exchange, error, tell)
        except Exception:
            failures.exception("request %s failed", exchange.id)
            if exchange.status:
                raise
            await _answer(exchange, EngineFailed("The server failed on this request."), tell)
        finally:
            _write_line(exchange)

    return enter


def needs_key(path: str, open_paths: Set[str] = OPEN_PATHS) -> bool:
    """Whether nothing at this path is done without a key."""
    return path not in open_paths and not path.startswith(UPLOADS)


def check_head(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a head that is too large, or whose Host is not one plain name: others could read the path differently."""
    lines = list(headers)
    if len(lines) > HEAD_LINES or sum(len(name) + len(value) for name, value in lines) > HEAD_BYTES:
        message, code = _NO_REQUEST[431]
        raise InvalidRequest(message, status=431, code=code)
    hosts = [value.decode("latin-1") for name, value in lines if name.lower() == b"host"]
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise InvalidRequest("Host: must be given once, as a name or address with or without a port.", param="Host")


def admit(exchange: Exchange, find_key: FindKey) -> Caller:
    """Who is calling; raises Unauthorized or Forbidden."""
    presented = exchange.key
    if presented is None:
        where = "x-goog-api-key: ..." if exchange.google else "Authorization: Bearer ..."
        raise Unauthorized(f"No API key was given: send it as '{where}'.", code="missing_api_key")
    key = find_key(presented)
    if key is None:
        raise Unauthorized("The API key is not valid.")
    if key.problem == "suspended":
        raise Forbidden("The tenant of this API key is suspended.")
    if not key.usable:
        raise Unauthorized("The API key has expired or was revoked.")
    if key.admin != (exchange.path == METRICS or exchange.path.startswith(ADMIN)):
        kind = "an admin key; it cannot call models" if key.admin else "no admin key; this path takes one"
        raise Forbidden(f"This is {kind}.")
    return Caller(key.tenant, key.public)


def _telling(exchange: Exchange, send: Send) -> Send:
    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", exchange.id.encode())]
            message = {**message, "headers": headers}  # pyright: ignore[reportAssignmentType]
        await send(message)

    return tell


async def _answer(exchange: Exchange, error: ApiError, send: Send) -> None:
    if exchange.status:
        return
    status, headers, body = exchange.encode(error)
    headers |= {"content-length": str(len(body))}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})


_QUIET = frozenset({"/livez", "/readyz", "/health", "/startupz"})


def _write_line(exchange: Exchange) -> None:
    if exchange.path in _QUIET:
        return
    took = (time.monotonic() - exchange.began) * 1000
    path = UPLOADS + "..." if exchange.path.startswith(UPLOADS) else exchange.path
    path = re.sub(r"sk-[\w-]+", "sk-...", re.sub(r"[^\x21-\x7e]", "?", path))[:120]
    log.info(
        "id=%s key=%s model=%s tokens=%s ms=%.0f status=%d %s %s",
        exchange.id, exchange.caller.key or "-", exchange.model, exchange.tokens, took, exchange.status,
        exchange.method, path,
    )  # fmt: skip
