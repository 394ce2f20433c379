"""OpenAI's routes."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from litestar import Request as HttpRequest
from litestar import Response, post
from litestar.di import NamedDependency
from msgspec.structs import replace

from qwen3vl_compat.events import Completion, Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.server.answer import Service, streamed_answer, whole_answer
from qwen3vl_compat.server.body import announced_size, read_json_body
from qwen3vl_compat.server.exchange import Exchange, exchange_of
from qwen3vl_compat.server.idempotency import idempotency_of
from qwen3vl_compat.wire import openai_chat, openai_completions, sse

Http = HttpRequest[Any, Any, Any]
LARGE = 2**17
"""Bodies above this many bytes are parsed off the event loop."""


class Wire(Protocol):
    """The server's half of one: see `qwen3vl_compat.wire`."""

    def decode_request(self, body: bytes, *, request_id: str, now: int) -> Request: ...

    def encode_completion(self, request: Request, completion: Completion) -> bytes: ...

    def encode_stream(self, request: Request, events: Events) -> AsyncGenerator[bytes, None]: ...


async def received(exchange: Exchange, http: Http, service: Service, *, answers: bool = True) -> bytes:
    """The checked body of a request; a large one is not even taken where there is no room for an answer."""
    size = announced_size(exchange)
    if answers and (size is None or size > LARGE):
        exchange.unread = True
        service.check_room(exchange)
        exchange.unread = False
    return await read_json_body(exchange, http.receive, service.settings.server)


@post("/v1/chat/completions", status_code=200)
async def chat_completions(request: Http, service: NamedDependency[Service]) -> Response[Any]:
    """Answer a chat, whole or streamed."""
    return await _answered(request, service, openai_chat)


@post("/v1/completions", status_code=200)
async def completions(request: Http, service: NamedDependency[Service]) -> Response[Any]:
    """Go on with texts as they stand, whole or streamed."""
    return await _answered(request, service, openai_completions)


async def _answered(http: Http, service: Service, wire: Wire) -> Response[Any]:
    exchange = exchange_of(http.scope)
    body = await received(exchange, http, service)

    def decode() -> Request:
        asked = wire.decode_request(body, request_id=exchange.id, now=int(time.time()))
        return replace(asked, idempotency=idempotency_of(exchange, body))

    asked = await asyncio.to_thread(decode) if len(body) > LARGE else decode()
    if asked.stream:
        return await streamed_answer(service, exchange, asked, http.receive, wire.encode_stream, sse.CONTENT_TYPE)
    return await whole_answer(service, exchange, asked, http.receive, wire.encode_completion)
