"""What every request passes before a route sees it: its id, the key, the log line, and a last net for failures."""

import logging
import re
import time
from collections.abc import Iterable, Sequence, Set
from http import HTTPStatus
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from sqlalchemy.exc import SQLAlchemyError

from qwen3vl_compat.accounts.books import UNREACHABLE
from qwen3vl_compat.accounts.database import is_lost
from qwen3vl_compat.errors import ApiError, EngineFailed, InvalidRequest, Overloaded
from qwen3vl_compat.policies.limiting import Claim
from qwen3vl_compat.server.body import Disconnected, read_json_body
from qwen3vl_compat.server.connection import HEAD_BYTES, HEAD_LINES, Head
from qwen3vl_compat.server.exchange import Exchange
from qwen3vl_compat.server.guard import Guard
from qwen3vl_compat.server.repeats import Repeats

log = logging.getLogger("qwen3vl_compat.access")
failures = logging.getLogger("qwen3vl_compat.failures")

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/startupz", "/health", "/schema", "/schema/openapi.json"})
"""Paths served without a key; every other path needs one."""
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
UPLOADS = "/upload/session/"
"""Below this every path is the secret address of one upload, which is why it needs no key."""

_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
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


class Door:
    """The application behind its door: nothing of it runs for a request without a key, save on the open paths."""

    def __init__(self, app: ASGIApp, guard: Guard, repeats: Repeats, open_paths: Set[str] = OPEN_PATHS) -> None:
        self._app, self._guard, self._repeats, self._open_paths = app, guard, repeats, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or whatever else a server asks of an application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope)
        scope.setdefault("state", {})["exchange"] = exchange
        tell = _telling(exchange, send)
        try:
            check_head(scope["headers"])
            receive = await self._enter(exchange, scope, receive)
            if exchange.known is not None:
                await _send_known(exchange, exchange.known, send)
            else:
                await self._app(scope, receive, tell)
        except Disconnected:
            exchange.status = 499
        except ApiError as error:
            await _answer(exchange, error, tell)
        except SQLAlchemyError as error:
            if not is_lost(error):
                failures.exception("request %s failed", exchange.id)
            await _answer(exchange, no_database() if is_lost(error) else _failed(), tell)
        except Exception:
            failures.exception("request %s failed", exchange.id)
            if exchange.status:
                raise
            await _answer(exchange, _failed(), tell)
        finally:
            _write_line(exchange)

    async def _enter(self, exchange: Exchange, scope: Scope, receive: Receive) -> Receive:
        """Let in who may come in; returns what the application is to receive, if the answer is not known already."""
        if not needs_key(exchange.path, self._open_paths):
            return receive
        exchange.unread = exchange.method in _WITH_BODY
        claims = await self._guard.identify(exchange, scope)
        if self._repeats.may_be(exchange):
            body = await self._body(exchange, receive, claims)
            exchange.unread = False
            exchange.known = await self._repeats.answer(exchange, body, claims)
            return _again(body, receive)
        await self._guard.claim(exchange, claims)
        exchange.unread = False
        return receive

    async def _body(self, exchange: Exchange, receive: Receive, claims: Sequence[Claim]) -> bytes:
        """The body, before anything is claimed; one that is refused, or never comes, is a request all the same."""
        try:
            return await read_json_body(exchange, receive, self._guard.settings)
        except (ApiError, Disconnected):
            await self._guard.claim(exchange, claims)
            raise


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


def no_database() -> ApiError:
    """What a client is told while the accounts cannot be read or written."""
    return Overloaded(UNREACHABLE, retry_after=5)


def _failed() -> ApiError:
    return EngineFailed("The server failed on this request.")


def _telling(exchange: Exchange, send: Send) -> Send:
    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", exchange.id.encode())]
            told = {name.lower() for name, _ in headers}
            more = [(name.encode(), value.encode()) for name, value in exchange.answer_headers.items()]
            headers += [(name, value) for name, value in more if name not in told]
            exchange.ignored = dict(headers).get(b"x-ignored-fields", b"").decode("latin-1")
            message = {**message, "headers": headers}  # pyright: ignore[reportAssignmentType]
        await send(message)

    return tell


async def _answer(exchange: Exchange, error: ApiError, send: Send) -> None:
    if exchange.status:
        return
    await _send(*exchange.encode(error), send)


async def _send(status: int, headers: dict[str, str], body: bytes, send: Send) -> None:
    headers |= {"content-length": str(len(body))}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _send_known(exchange: Exchange, body: bytes, send: Send) -> None:
    """An answer that is there already goes out as it is."""
    exchange.status, exchange.ignored = 200, exchange.answer_headers.get("x-ignored-fields", "")
    headers = [(name.encode(), value.encode()) for name, value in exchange.answer_headers.items()]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", exchange.id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _again(body: bytes, receive: Receive) -> Receive:
    """What a client has sent already, and then what more it does."""
    waiting: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Any:
        return waiting.pop() if waiting else await receive()

    return received


_QUIET = frozenset({"/livez", "/readyz", "/health", "/startupz"})


def _write_line(exchange: Exchange) -> None:
    if exchange.path in _QUIET or not log.isEnabledFor(logging.INFO):
        return
    took = (time.monotonic() - exchange.began) * 1000
    path = UPLOADS + "..." if exchange.path.startswith(UPLOADS) else exchange.path
    ignored = f" ignored={_harmless(exchange.ignored.replace(', ', ','), 200)}" if exchange.ignored else ""
    log.info(
        "id=%s key=%s model=%s tokens=%s ms=%.0f status=%d %s %s%s",
        exchange.id, exchange.caller.key or "-", exchange.model, exchange.tokens, took, exchange.status,
        exchange.method, _harmless(path, 120), ignored,
    )  # fmt: skip


def _harmless(text: str, most: int) -> str:
    """A client's own words, as one word without a key in it."""
    return re.sub(r"sk-[\w-]+", "sk-...", re.sub(r"[^\x21-\x7e]", "?", text))[:most]
