"""From a decoded request to what goes out: one path for whole answers and streams."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeVar

from litestar import Response
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec.structs import replace

from qwen3vl_compat.accounts.booking import Entry, Outcome
from qwen3vl_compat.accounts.books import Accounts
from qwen3vl_compat.accounts.ledger import Ledger
from qwen3vl_compat.accounts.replies import Replies
from qwen3vl_compat.accounts.responses import Responses
from qwen3vl_compat.accounts.totals import Over
from qwen3vl_compat.engines import Engine
from qwen3vl_compat.errors import DeadlineExceeded, InvalidRequest, NotFound, Overloaded
from qwen3vl_compat.events import Completion, Event, Events, Finish, Started, Usage, fold
from qwen3vl_compat.media.sandbox import Sandbox
from qwen3vl_compat.messages import ModelInfo, Request
from qwen3vl_compat.policies import Generate
from qwen3vl_compat.policies.bookkeeping import Bookkeeping
from qwen3vl_compat.policies.cache import Cache
from qwen3vl_compat.policies.idempotency import NAME as IDEMPOTENCY
from qwen3vl_compat.policies.idempotency import Idempotency
from qwen3vl_compat.policies.limiting import Claim, make_limiter
from qwen3vl_compat.policies.moderation import Judged
from qwen3vl_compat.policies.moderation.policy import Moderators
from qwen3vl_compat.policies.room import Room
from qwen3vl_compat.server.body import Disconnected
from qwen3vl_compat.server.conversations import Conversations
from qwen3vl_compat.server.exchange import Exchange
from qwen3vl_compat.server.figures import Figures
from qwen3vl_compat.server.files import Files
from qwen3vl_compat.server.freshness import freshness_of
from qwen3vl_compat.server.keepalive import PING, kept_alive
from qwen3vl_compat.server.lifecycle import Lifecycle
from qwen3vl_compat.server.names import Names
from qwen3vl_compat.server.repeats import Repeats
from qwen3vl_compat.settings import Settings
from qwen3vl_compat.wire import anthropic_messages, generate_content, openai_chat, openai_completions

MOST_NAMES = 5
"""Models that are named to who asks for one that there is not; `/v1/models` lists all."""

T = TypeVar("T")
Whole = Callable[[Request, Completion], bytes]
Streamed = Callable[[Request, Events], AsyncGenerator[bytes, None]]


class Service:
    """What the routes share: the chain of policies with the engine behind it, and the server's state."""

    generate: Generate
    cache: Cache
    books: Bookkeeping
    moderation: Moderators
    prepared: Callable[[Request], AbstractAsyncContextManager[Request]]
    sandbox: Sandbox

    def __init__(self, settings: Settings, engine: Engine, accounts: Accounts, files: Files | None = None) -> None:
        """`files` are uploaded ones, where there are any. Raises SettingsError."""
        self.settings, self.engine, self.accounts, self.files = settings, engine, accounts, files
        self.names = Names(engine.models(), settings.model.aliases)
        self.repeats = Repeats(self)
        self.lifecycle = Lifecycle()
        self.room = Room(lambda: engine.occupancy)
        self.figures = Figures(settings)
        self.announced: Callable[[], bool] = lambda: True
        """Whether the operator was told; a script that waits for readiness then reads the first keys in the log."""
        self.ledger = Ledger(
            accounts.database, lease=settings.ledger.lease, wait=settings.ledger.wait, closed=self._sum_up
        )
        heart = self.ledger.heartbeat
        self.limiter = make_limiter(
            settings.limits, self._used, share=lambda: max(heart.living, settings.server.workers)
        )
        self.idempotency = Idempotency(
            Replies(accounts.database, self.ledger.owner, heart.alive, settings.ledger.replies)
        )
        self.conversations = Conversations(Responses(accounts.database, settings.responses), settings)

    def _sum_up(self, entry: Entry, outcome: Outcome) -> None:
        self.figures.add(Over(entry.tenant, entry.model, outcome.state, entry.cache, outcome.counts, outcome.cost))

    def note(self, judged: Judged) -> None:
        """Count what a moderator said."""
        self.figures.add(judged)

    async def _used(self, claim: Claim, since: int) -> int:
        """What the ledger knows of a counter."""
        return await asyncio.to_thread(self.accounts.usage.used, claim.scope, claim.kind, since)

    def check_ready(self) -> None:
        """Refuse work that would meet no engine: it is being loaded still, or has come to a halt."""
        if not self.engine.alive:
            raise Overloaded("The model cannot be asked now: it is being loaded, or has stopped.", retry_after=5)

    def check_room(self, exchange: Exchange) -> None:
        """Refuse what the engine would refuse before anything is done for it; what has a key may have been answered."""
        if IDEMPOTENCY.lower() not in exchange.headers:
            self.room.check(exchange.caller.tenant)

    async def open_books(self) -> None:
        """Begin to count and to write; raises LedgerUnavailable."""
        await self.ledger.start()
        await self.limiter.start()
        await self.idempotency.start()
        await self.conversations.start()

    async def close_books(self) -> None:
        """Write what is still to be written."""
        await self.idempotency.close()
        await self.conversations.close()
        await self.books.close()
        await self.limiter.close()
        await self.ledger.close()

    async def start(self) -> None:
        """Have the books, the decoding children and the engine ready; raises LedgerUnavailable or EngineUnusable."""
        await self.open_books()
        await self.sandbox.start()
        if self.files is not None:
            await self.files.start()
        await self.engine.start()

    async def close(self) -> None:
        """End all; what still runs ends with an error, and in the ledger."""
        await self.idempotency.close()
        await self.sandbox.close()
        if self.files is not None:
            await self.files.close()
        await self.engine.close()
        await self.cache.close()
        await self.moderation.close()
        await self.close_books()

    @property
    def ready(self) -> bool:
        """Whether a request sent now is likely to be served."""
        return self.engine.alive and self.announced() and self.ledger.writable and not self.lifecycle.draining


def encode_whole(request: Request, completion: Completion) -> bytes:
    """A whole answer on the request's wire."""
    openai = openai_completions if request.raw else openai_chat
    wires = {"openai": openai, "google": generate_content, "anthropic": anthropic_messages}
    return wires[request.wire].encode_completion(request, completion)


async def whole_answer(
    service: Service, exchange: Exchange, request: Request, receive: Receive, encode: Whole
) -> Response[bytes]:
    """Generate to the end, then answer; a client that leaves ends the generation."""
    request = _asked(service, exchange, request)
    completion = await unless_gone(fold(_events(service, exchange, request)), receive)
    request = _as_answered(exchange, request)
    ignored = ignored_header(request)
    await service.repeats.learn(exchange, request, ignored)
    headers = exchange.answer_headers | ignored
    return Response(encode(request, completion), media_type="application/json", headers=headers)


async def generated(
    service: Service,
    exchange: Exchange,
    request: Request,
    receive: Receive,
    gather: Callable[[Events], Coroutine[Any, Any, T]],
) -> T:
    """What is made of the events of a generation; a client that leaves ends it."""
    return await unless_gone(gather(_events(service, exchange, _asked(service, exchange, request))), receive)


async def streamed_answer(
    service: Service, exchange: Exchange, request: Request, receive: Receive, encode: Streamed, content_type: str
) -> Response[Any]:
    """Answer as it is made. The status line waits for the first event, so that a refusal still is a refusal."""
    request = _asked(service, exchange, request)
    events = _events(service, exchange, request)
    first = await unless_gone(_first(events), receive)
    request = _as_answered(exchange, request)
    headers = {"content-type": content_type, "cache-control": "no-cache", "x-accel-buffering": "no"}
    headers |= exchange.answer_headers | ignored_header(request)

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})

        async def pump() -> None:
            # Google's clients take a comment for an error; Anthropic's know an event for it.
            silent = 0 if exchange.google else service.settings.server.keep_alive
            ping = anthropic_messages.PING if exchange.anthropic else PING
            async with (
                aclosing(events),
                aclosing(encode(request, _rejoined(first, events))) as chunks,
                kept_alive(send, silent, ping) as tell,
            ):
                async for chunk in chunks:
                    await tell({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await unless_gone(pump(), receive)
        except Disconnected:
            exchange.status = 499

    return Raw(respond)


class Raw(Response[Any]):
    """A response that speaks ASGI itself: Litestar's own stream would not notice at once that a client has gone."""

    def __init__(self, respond: ASGIApp) -> None:
        super().__init__(None)
        self._respond = respond

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """The application to run in place of a response."""
        return self._respond


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Run `work`; if the client hangs up first, cancel it, wait until it has come to rest and raise Disconnected."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_hang_up(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen, even if nobody is left to hear of it


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _asked(service: Service, exchange: Exchange, request: Request) -> Request:
    """The request with all that is known of it; what would find no engine or no place is refused here, for little."""
    service.check_ready()
    request = replace(_known(service, exchange, request), seconds=allowed(service, exchange))
    if not (request.freshness.read and service.cache.looks_for(request)):  # else an answer may be here already
        service.check_room(exchange)
    return request


async def _events(service: Service, exchange: Exchange, request: Request) -> Events:
    """The generation, noted for the log and the answer's head."""
    async with aclosing(service.generate(request)) as events:
        async for event in events:
            if isinstance(event, Started):
                exchange.replays, exchange.kept = event.replays, event.kept
            if isinstance(event, Started | Finish):
                exchange.tokens = f"{event.usage.prompt}+{event.usage.completion}"
                exchange.answer_headers |= dict(event.headers)
            yield event


def _known(service: Service, exchange: Exchange, request: Request) -> Request:
    """The request with its caller; a model that is not served is refused before work is spent on its pictures."""
    model = find_model(service, exchange, request.model)
    alias = "" if request.model == model.id else request.model
    exchange.model = model.id
    freshness = freshness_of(exchange.headers.get("cache-control"))
    return replace(
        request, model=model.id, alias=alias, caller=exchange.caller, wire=exchange.wire, freshness=freshness
    )


def find_model(service: Service, exchange: Exchange, name: str) -> ModelInfo:
    """The model that a caller means by a name; NotFound if there is none, or the caller's key is not for it."""
    model = service.names.find(name)
    if model is None or not may_call(exchange, model):
        message = f"The model '{name[:100]}' does not exist or you have no access to it"
        raise NotFound(f"{message}; {_served(service, exchange)}", param="model", code="model_not_found")
    return model


def _served(service: Service, exchange: Exchange) -> str:
    """What a caller may ask for instead."""
    names = [name for name, model in service.names.listed.items() if may_call(exchange, model)]
    if not names:
        return "this key is for no model that is served."
    more = ", ..." if len(names) > MOST_NAMES else "."
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names[:MOST_NAMES])}{more}"


def may_call(exchange: Exchange, model: ModelInfo) -> bool:
    """Whether the caller's key is for a model, whatever it is called."""
    return exchange.key is None or exchange.key.may_call(model.id)


def allowed(service: Service, exchange: Exchange) -> float:
    """Seconds this request may take: the server's own limit, or less if the client says so."""
    asked = exchange.headers.get("x-server-timeout")
    if asked is None:
        return service.settings.server.deadline
    try:
        seconds = min(float(each) for each in asked.split(","))  # Google's client adds its own to a caller's
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InvalidRequest("X-Server-Timeout must be a number of seconds above 0.", param="X-Server-Timeout")
    return min(seconds, service.settings.server.deadline)


async def counted(service: Service, exchange: Exchange, request: Request, receive: Receive) -> Usage:
    """The prompt's tokens, inside the same bounds as a generation."""

    async def count() -> Usage:
        service.check_ready()
        asked = _known(service, exchange, request)
        with service.lifecycle.work():
            try:
                async with asyncio.timeout(allowed(service, exchange)), service.prepared(asked) as checked:
                    return await service.engine.count(checked)
            except TimeoutError:
                raise DeadlineExceeded("The time allowed for this request is over.") from None

    return await unless_gone(count(), receive)


async def _first(events: Events) -> Event:
    return await anext(events)


async def _rejoined(first: Event, events: Events) -> Events:
    yield first
    async for event in events:
        yield event


def _as_answered(exchange: Exchange, request: Request) -> Request:
    """The request with the id and time that the answer is to bear: of the one that it was made for."""
    first = exchange.replays
    return request if first is None else replace(request, id=first.id, created=first.created)


def ignored_header(request: Request) -> dict[str, str]:
    """The header that names fields without effect."""
    if not request.ignored:
        return {}
    names = (name.encode("ascii", "replace").decode()[:80].strip() for name in request.ignored[:20])
    ignored = ", ".join(name for name in names if name and name.isprintable())
    return {"x-ignored-fields": ignored}
