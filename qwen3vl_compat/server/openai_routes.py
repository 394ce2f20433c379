"""OpenAI's routes."""

import asyncio
import time
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, post
from litestar.di import NamedDependency
from msgspec.structs import replace

from qwen3vl_compat.messages import Request
from qwen3vl_compat.server.answer import Service, streamed_answer, whole_answer
from qwen3vl_compat.server.body import announced_size, read_json_body
from qwen3vl_compat.server.exchange import Exchange, exchange_of
from qwen3vl_compat.server.idempotency import idempotency_of
from qwen3vl_compat.wire import openai_chat, sse

LARGE = 2**17
"""Bodies above this many bytes are parsed off the event loop."""


async def received(
    exchange: Exchange, http: "HttpRequest[Any, Any, Any]", service: Service, *, answers: bool = True
) -> bytes:
    """The checked body of a request; a large one is not even taken where there is no room for an answer."""
    size = announced_size(exchange)
    if answers and (size is None or size > LARGE):
        exchange.unread = True
        service.check_room(exchange)
        exchange.unread = False
    return await read_json_body(exchange, http.receive, service.settings.server)


@post("/v1/chat/completions", status_code=200)
async def chat_completions(request: HttpRequest[Any, Any, Any], service: NamedDependency[Service]) -> Response[Any]:
    """Answer a chat, whole or streamed."""
    exchange = exchange_of(request.scope)
    body = await received(exchange, request, service)

    def decode() -> Request:
        asked = openai_chat.decode_request(body, request_id=exchange.id, now=int(time.time()))
        return replace(asked, idempotency=idempotency_of(exchange, body))

    asked = await asyncio.to_thread(decode) if len(body) > LARGE else decode()
    if asked.stream:
        return await streamed_answer(
            service, exchange, asked, request.receive, openai_chat.encode_stream, sse.CONTENT_TYPE
        )
    return await whole_answer(service, exchange, asked, request.receive, openai_chat.encode_completion)
