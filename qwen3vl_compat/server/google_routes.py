"""Google's native routes, under /v1 and /v1beta alike."""

import asyncio
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec.structs import replace

from qwen3vl_compat.errors import ApiError, InvalidRequest, NotFound
from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.server.answer import Service, counted, streamed_answer, whole_answer
from qwen3vl_compat.server.exchange import Exchange, exchange_of
from qwen3vl_compat.server.idempotency import idempotency_of
from qwen3vl_compat.server.openai_routes import LARGE, received
from qwen3vl_compat.wire import generate_content, sse


@post(["/v1/models/{rest:path}", "/v1beta/models/{rest:path}"], status_code=200)
async def call_model(
    request: HttpRequest[Any, Any, Any], rest: FromPath[str], service: NamedDependency[Service]
) -> Response[Any]:
    """`{model}:generateContent`, `:streamGenerateContent` or `:countTokens`."""
    exchange = exchange_of(request.scope)
    model, _, method = rest.strip("/").rpartition(":")
    if method not in ("generateContent", "streamGenerateContent", "countTokens"):
        raise NotFound("There is no such method; there are generateContent, streamGenerateContent and countTokens.")
    body = await received(exchange, request, service, answers=method != "countTokens")
    read = generate_content.decode_request
    if method == "countTokens":
        read = generate_content.decode_count
    elif method == "streamGenerateContent":
        read = partial(read, stream=True)

    def decode() -> Request:
        asked = read(body, model=model.removeprefix("models/"), request_id=exchange.id, now=int(time.time()))
        return asked if method == "countTokens" else replace(asked, idempotency=idempotency_of(exchange, body))

    asked = await asyncio.to_thread(decode) if len(body) > LARGE else decode()
    match method:
        case "countTokens":
            usage = await counted(service, exchange, asked, request.receive)
            return Response(generate_content.encode_count(usage), media_type="application/json")
        case "streamGenerateContent":
            return await _streamed(service, exchange, asked, request)
        case _:
            return await whole_answer(service, exchange, asked, request.receive, generate_content.encode_completion)


async def _streamed(service: Service, exchange: Exchange, asked: Request, http: "HttpRequest[Any, Any, Any]") -> Any:
    form = exchange.query.get("alt", ["json"])[0]
    if form not in ("json", "sse"):
        raise InvalidRequest("alt: must be json or sse", param="alt")
    array = form == "json"

    def encode(request: Request, events: Events) -> AsyncGenerator[bytes, None]:
        return generate_content.encode_stream(request, events, array=array)

    content_type = "application/json" if array else sse.CONTENT_TYPE
    try:
        return await streamed_answer(service, exchange, asked, http.receive, encode, content_type)
    except ApiError as error:
        if not generate_content.is_blocked(error):
            raise
        _, headers, _ = exchange.encode(error)
        headers["content-type"] = content_type
        return Response(
            generate_content.encode_blocked(error, array=array),
            status_code=200,
            headers=headers,
            media_type=content_type,
        )
