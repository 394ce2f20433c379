"""OpenAI's responses: made, kept, shown, deleted; and the counting of what would be asked."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec.structs import replace

from qwen3vl_compat.errors import ApiError, InvalidRequest
from qwen3vl_compat.events import Events, Finish
from qwen3vl_compat.messages import Request
from qwen3vl_compat.server.answer import Service, counted, generated, ignored_header, streamed_answer
from qwen3vl_compat.server.exchange import exchange_of
from qwen3vl_compat.server.idempotency import idempotency_of
from qwen3vl_compat.server.openai_routes import LARGE, received
from qwen3vl_compat.wire import openai_chat, openai_responses, sse
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_responses import Answering
from qwen3vl_compat.wire.openai_responses_request import Asked
from qwen3vl_compat.wire.openai_stored import decode_page, encode_deleted

Http = HttpRequest[Any, Any, Any]
JSON = "application/json"


@post("/v1/responses", status_code=200)
async def create_response(request: Http, service: NamedDependency[Service]) -> Response[Any]:
    """Answer, whole or streamed, and keep what was answered."""
    exchange = exchange_of(request.scope)
    asked, tenant = await _asked(request, service), exchange.caller.tenant

    async def encode(_: Request, events: Events) -> AsyncGenerator[bytes, None]:
        answering, ends = Answering(asked), list[Finish]()
        try:
            async for event in events:
                if isinstance(event, Finish):
                    ends.append(event)
                    continue
                for each in answering.push(event):
                    yield openai_responses.encode_event(each)
            # Only now all is settled, and kept before the client hears of the end: it may come back at once.
            told = [each for end in ends for each in answering.push(end)]
            await service.conversations.keep(tenant, asked, answering.response)
            for each in told:
                yield openai_responses.encode_event(each)
        except ApiError as error:
            for each in answering.fail(error):
                yield openai_responses.encode_event(each)

    async def gather(events: Events) -> Json:
        answering = Answering(asked)
        async with aclosing(events):
            async for event in events:
                answering.push(event)
        await service.conversations.keep(tenant, asked, answering.response)
        return answering.response

    if asked.request.stream:
        return await streamed_answer(service, exchange, asked.request, request.receive, encode, sse.CONTENT_TYPE)
    response = await generated(service, exchange, asked.request, request.receive, gather)
    return Response(response, media_type=JSON, headers=exchange.answer_headers | ignored_header(asked.request))


async def _asked(request: Http, service: Service) -> Asked:
    """What the body asks for, with all that it refers to."""
    exchange = exchange_of(request.scope)
    body = await received(exchange, request, service)

    def decode() -> Asked:
        asked = openai_responses.decode_request(body, request_id=exchange.id, now=int(time.time()))
        return replace(asked, request=replace(asked.request, idempotency=idempotency_of(exchange, body)))

    large = len(body) > LARGE
    asked = await asyncio.to_thread(decode) if large else decode()
    if asked.goes_on:
        service.check_room(exchange)  # a few words may stand for a conversation of megabytes
    return await service.conversations.complete(exchange.caller.tenant, asked, large=large)


@get("/v1/responses/{name:str}")
async def get_response(request: Http, name: FromPath[str], service: NamedDependency[Service]) -> Response[bytes]:
    """A stored response, whole, however it was sent."""
    exchange = exchange_of(request.scope)
    if exchange.query.get("stream", ["false"]) != ["false"]:
        message = "stream: a stored response is not streamed again; leave it out"
        raise InvalidRequest(message, param="stream", code="unsupported_parameter")
    return Response(await service.conversations.get(exchange.caller.tenant, name), media_type=JSON)


@get("/v1/responses/{name:str}/input_items")
async def list_input_items(request: Http, name: FromPath[str], service: NamedDependency[Service]) -> Response[bytes]:
    """A page of the items that came with a stored response's request."""
    exchange = exchange_of(request.scope)
    page = decode_page(exchange.query)
    return Response(await service.conversations.items(exchange.caller.tenant, name, page), media_type=JSON)


@delete("/v1/responses/{name:str}", status_code=200)
async def delete_response(request: Http, name: FromPath[str], service: NamedDependency[Service]) -> Response[bytes]:
    """Remove a stored response, with the media that no other has."""
    await service.conversations.delete(exchange_of(request.scope).caller.tenant, name)
    return Response(encode_deleted(name), media_type=JSON)


@post("/v1/responses/input_tokens", status_code=200)
async def count_response(request: Http, service: NamedDependency[Service]) -> Response[bytes]:
    """How many tokens a request for a response would be, with the conversation before it."""
    exchange = exchange_of(request.scope)
    body = await received(exchange, request, service, answers=False)
    model = next(iter(service.names.listed))

    def decode() -> Asked:
        return openai_responses.decode_count(body, request_id=exchange.id, now=int(time.time()), model=model)

    large = len(body) > LARGE
    asked = await asyncio.to_thread(decode) if large else decode()
    asked = await service.conversations.complete(exchange.caller.tenant, replace(asked, store=False), large=large)
    usage = await counted(service, exchange, asked.request, request.receive)
    return Response(openai_responses.encode_count(usage), media_type=JSON)


@post("/v1/chat/completions/input_tokens", status_code=200)
async def count_chat(request: Http, service: NamedDependency[Service]) -> Response[bytes]:
    """How many tokens a chat would be."""
    exchange = exchange_of(request.scope)
    body = await received(exchange, request, service, answers=False)

    def decode() -> Request:
        return openai_chat.decode_request(body, request_id=exchange.id, now=int(time.time()))

    asked = await asyncio.to_thread(decode) if len(body) > LARGE else decode()
    usage = await counted(service, exchange, asked, request.receive)
    return Response(openai_responses.encode_count(usage), media_type=JSON)


ROUTES = (create_response, get_response, list_input_items, delete_response, count_response, count_chat)
