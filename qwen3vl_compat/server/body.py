"""Reading a request's body: counted and timed as it comes in, JSON only."""

import asyncio
import time
from typing import Any

from litestar.types import Receive

from qwen3vl_compat.errors import ApiError, InvalidRequest
from qwen3vl_compat.server.door import Exchange
from qwen3vl_compat.settings import ServerSettings


class Disconnected(Exception):
    """The client has gone; there is nobody to answer."""


async def read_json_body(exchange: Exchange, receive: Receive, settings: ServerSettings) -> bytes:
    """The whole body, at most `max_body` bytes; reading stops the moment it is known to be too much or too slow."""
    kind = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        message = "The body must be sent with Content-Type: application/json."
        raise InvalidRequest(message, status=415, code="unsupported_media_type")
    if exchange.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise InvalidRequest("A compressed body is not accepted.", status=415, code="unsupported_encoding")
    declared = exchange.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > settings.max_body:
        raise _too_large(settings.max_body)
    chunks, size, end = list[bytes](), 0, time.monotonic() + settings.body_total
    while True:
        message = await _next(receive, min(settings.body_idle, end - time.monotonic()))
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > settings.max_body:
            raise _too_large(settings.max_body)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _next(receive: Receive, seconds: float) -> Any:
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await receive()
    except TimeoutError:
        raise ApiError("The body came too slowly.", status=408, code="request_timeout") from None


def _too_large(limit: int) -> InvalidRequest:
    message = f"The body is larger than the {limit} bytes allowed."
    return InvalidRequest(message, status=413, code="request_too_large")
