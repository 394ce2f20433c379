"""Reading a request's body: counted and timed as it comes in."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from typing import Any

from litestar.types import Receive
from msgspec import Struct

from qwen3vl_compat.errors import ApiError, InvalidRequest
from qwen3vl_compat.server.exchange import Exchange
from qwen3vl_compat.settings import ServerSettings


class Disconnected(Exception):
    """The client has gone; there is nobody to answer."""


class Bounds(Struct, frozen=True):
    """What a body may be: bytes, seconds of silence, seconds in all, and bytes a second that grant more of them."""

    most: int
    idle: float
    total: float
    slowest: float = math.inf


async def read_json_body(exchange: Exchange, receive: Receive, settings: ServerSettings) -> bytes:
    """The whole body, at most `max_body` bytes; reading stops the moment it is known to be too much or too slow."""
    kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        message = "The body must be sent with Content-Type: application/json."
        raise InvalidRequest(message, status=415, code="unsupported_media_type")
    bounds = Bounds(settings.max_body, settings.body_idle, settings.body_total)
    return b"".join([chunk async for chunk in body_chunks(exchange, receive, bounds)])


async def body_chunks(exchange: Exchange, receive: Receive, bounds: Bounds) -> AsyncGenerator[bytes]:
    """The body as it comes; refuses it the moment it is known to be too much or too slow."""
    if exchange.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise InvalidRequest("A compressed body is not accepted.", status=415, code="unsupported_encoding")
    if (announced_size(exchange) or 0) > bounds.most:
        raise too_large(bounds.most)
    size, began = 0, time.monotonic()
    while True:
        left = began + bounds.total + size / bounds.slowest - time.monotonic()
        message = await _next(receive, min(bounds.idle, left))
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > bounds.most:
            raise too_large(bounds.most)
        yield chunk
        if not message.get("more_body", False):
            return


def announced_size(exchange: Exchange) -> int | None:
    """Bytes of the body as its Content-Length says, None where it says nothing."""
    declared = exchange.headers.get("content-length", "")
    return int(declared[:20]) if declared.isascii() and declared.isdigit() else None


async def _next(receive: Receive, seconds: float) -> Any:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await receive()
    except TimeoutError:
        raise ApiError("The body came too slowly.", status=408, code="request_timeout") from None


def too_large(limit: int) -> InvalidRequest:
    """The refusal of a body of more than `limit` bytes."""
    message = f"The body is larger than the {limit} bytes allowed."
    return InvalidRequest(message, status=413, code="request_too_large")
