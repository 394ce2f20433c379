"""OpenAI's moderations, answered by the moderators that look at requests here."""

import asyncio
import time
from typing import Any

from litestar import Request as HttpRequest
from litestar import Response, post
from litestar.di import NamedDependency
from msgspec.structs import replace

from qwen3vl_compat.errors import DeadlineExceeded
from qwen3vl_compat.messages import Request
from qwen3vl_compat.server.answer import Service, allowed, ignored_header, unless_gone
from qwen3vl_compat.server.exchange import exchange_of
from qwen3vl_compat.server.openai_routes import LARGE, received
from qwen3vl_compat.wire import moderations


@post("/v1/moderations", status_code=200)
async def moderate(request: HttpRequest[Any, Any, Any], service: NamedDependency[Service]) -> Response[Any]:
    """Say what the moderators say. Nothing is generated: there is no row, and only limits of requests hold."""
    exchange = exchange_of(request.scope)
    body = await received(exchange, request, service, answers=False)

    def decode() -> Request:
        return moderations.decode_request(body, request_id=exchange.id, now=int(time.time()))

    asked = await asyncio.to_thread(decode) if len(body) > LARGE else decode()
    asked = replace(asked, caller=exchange.caller, wire="openai")
    seconds = allowed(service, exchange)

    async def judged() -> bytes:
        with service.lifecycle.work():
            try:
                async with asyncio.timeout(seconds), service.prepared(asked) as checked:
                    found = await service.moderation.judge(exchange.caller.tenant, checked.messages)
            except TimeoutError:
                raise DeadlineExceeded("The time allowed for this request is over.") from None
        results = [moderations.Result(each.flagged, each.categories, each.scores) for each in found]
        return moderations.encode_answer(asked, results, pictures=service.moderation.see_pictures)

    answer = await unless_gone(judged(), request.receive)
    return Response(answer, media_type="application/json", headers=exchange.answer_headers | ignored_header(asked))
