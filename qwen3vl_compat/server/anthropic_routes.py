"""Anthropic's routes."""

import asyncio
import time
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, post
from litestar.di import NamedDependency
from msgspec.structs import replace

from qwen3vl_compat.messages import Request
from qwen3vl_compat.server.answer import Service, counted, streamed_answer, whole_answer
from qwen3vl_compat.server.exchange import exchange_of
from qwen3vl_compat.server.idempotency import idempotency_of
from qwen3vl_compat.server.openai_routes import LARGE, received
from qwen3vl_compat.wire import anthropic_messages, sse

Http = HttpRequest[Any, Any, Any]


@post("/v1/messages", status_code=200)
async def create_message(request: Http, service: NamedDependency[Service]) -> Response[Any]:
    """Answer a conversation, whole or streamed."""
    exchange = exchange_of(request.scope)
    body = await received(exchange, request, service)

    def decode() -> Request:
        asked = anthropic_messages.decode_request(body, request_id=exchange.id, now=int(time.time()))
        return replace(asked, idempotency=idempotency_of(exchange, body))

    asked = await asyncio.to_thread(decode) if len(body) > LARGE else decode()
    if asked.stream:
        return await streamed_answer(
            service, exchange, asked, request.receive, anthropic_messages.encode_stream, sse.CONTENT_TYPE
        )
    return await whole_answer(service, exchange, asked, request.receive, anthropic_messages.encode_completion)


@post("/v1/messages/count_tokens", status_code=200)
async def count_tokens(request: Http, service: NamedDependency[Service]) -> Response[bytes]:
    """Count the tokens of a prompt."""
    exchange = exchange_of(request.scope)
    body = await received(exchange, request, service, answers=False)

    def decode() -> Request:
        return anthropic_messages.decode_count(body, request_id=exchange.id, now=int(time.time()))

    asked = await asyncio.to_thread(decode) if len(body) > LARGE else decode()
    usage = await counted(service, exchange, asked, request.receive)
    return Response(anthropic_messages.encode_count(usage), media_type="application/json")
