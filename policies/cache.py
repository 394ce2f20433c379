"""The result cache: what was answered before is given again, and nothing is computed for it.

A request that draws nothing, or always the same, is looked for under the name of all that its answer depends on; so is
one whose caller says how old an answer may be. Those that are asked at the same time are computed once. Whoever gets
what was made for another pays the price of cached tokens, and has a row of its own.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from qwen3vl_compat.errors import ContentRefused, InvalidRequest, OutOfCredit, RateLimited
from qwen3vl_compat.events import Completion, Event, Events, Finish, Headers, Progress, Started, Usage, fold
from qwen3vl_compat.messages import Cached, Request
from qwen3vl_compat.policies import Generate, Moderation
from qwen3vl_compat.policies.bookkeeping import Bookkeeping, pictures_of
from qwen3vl_compat.policies.caching import SEAL, Answer, Shelf, key_of
from qwen3vl_compat.policies.caching.flight import Flight, together
from qwen3vl_compat.policies.caching.naming import deterministic, form_of, material_of
from qwen3vl_compat.policies.hits import Hit, Taken, as_cached
from qwen3vl_compat.policies.limiting import Claim, Decision, Look
from qwen3vl_compat.policies.limiting.verdict import refusal_of
from qwen3vl_compat.policies.media import Gathered

log = logging.getLogger(__name__)

Gathering = Callable[[Request], AbstractAsyncContextManager[Gathered]]
Encode = Callable[[Request, Completion], bytes]
HIT: Headers = (("x-cache", "hit"),)
MISS: Headers = (("x-cache", "miss"),)
OFF: Headers = (("x-cache", "off"),)
_OF_ITS_OWN = (ContentRefused, InvalidRequest, OutOfCredit, RateLimited)
"""Refusals that are for who came first: another has other limits, and other names for its fields."""
_LASTING = frozenset({"stop", "length", "tool_calls"})


class Following(Protocol):
    """Metering, as far as it is needed here."""

    def following(self, request: Request, usage: Usage, pictures: int, events: Events) -> Events:
        """The same events, metered as this request's."""
        ...


class Ways(Struct, frozen=True):
    """What the cache leads to: media are gathered, words and answers moderated, rows booked."""

    gathering: Gathering
    moderation: Moderation
    check_room: Callable[[str], None]
    """By tenant; Overloaded where there is no place for an answer to be made."""
    metering: Following
    books: Bookkeeping
    model_of: Callable[[str], str]
    """What tells a model, by its name, from any other."""
    greedy: Callable[[str], bool]
    """Whether a model draws nothing where a request names no temperature."""
    encode: Encode
    """A whole answer as it goes out, on the request's wire."""


class Cache:
    """The policy. Its methods are called from one asyncio loop."""

    def __init__(self, ways: Ways, shelf: Shelf | None, *, together: bool = False) -> None:
        """`together` says that the shelf is in the limiter's Redis: one call asks both."""
        self._ways, self.shelf, self._together = ways, shelf, together
        self._flights: dict[str, Flight] = {}
        self._landing: set[asyncio.Task[None]] = set()

    def __call__(self, fresh: Generate) -> Generate:
        """Wrap what answers afresh."""

        async def inside(request: Request) -> Events:
            request = await self._ways.moderation.text(request)
            async with AsyncExitStack() as held:
                gathered = await held.enter_async_context(self._ways.gathering(request))
                async with aclosing(await self._source(fresh, gathered, held)) as events:
                    async for event in events:
                        yield event

        return inside

    async def look(self, name: str) -> tuple[bytes, Answer] | None:
        """The answer of that name, behind its seal."""
        assert self.shelf is not None
        value = await self.shelf.store.get(name)
        answer = value and self.shelf.open(name, value)
        return (value[:SEAL], answer) if value and answer else None

    async def admit(self, claims: Sequence[Claim], more: Sequence[Claim], name: str, seal: bytes) -> Decision:
        """Note the claims, and with the answer of that name and seal, which comes along, `more`: all or none."""
        assert self.shelf is not None
        if self._together:
            return await self._ways.books.limiter.admit_stored(claims, more, Look(key=key_of(name), seal=seal))
        value = await self.shelf.store.get(name)
        found = value is not None and value.startswith(seal)
        decision = await self._noted([*claims, *more] if found else claims)
        return replace(decision, stored=value) if found and decision.refused is None else decision

    async def _noted(self, claims: Sequence[Claim]) -> Decision:
        return await self._ways.books.limiter.admit("", claims) if claims else Decision(standings=())

    def open(self, name: str, value: bytes) -> Answer | None:
        """What is kept in a value of that name."""
        return self.shelf and self.shelf.open(name, value)

    def age(self, answer: Answer) -> float:
        """Seconds since an answer was made."""
        assert self.shelf is not None
        return self.shelf.age(answer)

    async def close(self) -> None:
        """Let what is just being kept be kept."""
        if self._landing:
            await asyncio.wait(self._landing, timeout=1)
        if self.shelf is not None:
            await self.shelf.store.close()

    def looks_for(self, request: Request) -> bool:
        """Whether an answer to it may be here already, or will be kept."""
        wish = request.freshness
        same = deterministic(request, greedy=self._ways.greedy(request.model))
        asked = (wish.read and wish.max_age is not None) or (same and (wish.read or wish.keep))
        return self.shelf is not None and asked

    async def _rendered(self, gathered: Gathered, cache: Cached) -> Request:
        self._ways.check_room(gathered.request.caller.tenant)  # nothing is decoded for what has no place to go to
        return await self._ways.moderation.pictures(replace(await gathered.rendered(), cache=cache))

    async def _source(self, fresh: Generate, gathered: Gathered, held: AsyncExitStack) -> Events:
        """Where the answer comes from: the shelf, a generation under way, or one of its own."""
        request, wish = gathered.request, gathered.request.freshness
        if self.shelf is None or not self.looks_for(request):
            return _told(fresh(await self._rendered(gathered, "off")), OFF)
        rules = await self._ways.moderation.fingerprint(request.caller.tenant)
        name = self.shelf.name(await material_of(gathered, f"{self._ways.model_of(request.model)} {rules}"))
        kept = name if gathered.lasting else ""
        while wish.read:
            answer = await self.shelf.find(name, wish.max_age)
            if answer is not None:
                await held.aclose()
                return self._again(request, answer, kept)
            flight = self._flights.get(name)
            if flight is None or flight.lost:
                break
            flight.join()
            try:
                started = await flight.started()
            except _OF_ITS_OWN:
                await flight.leave()
            except BaseException:
                await flight.leave()
                raise
            else:
                return self._followed(request, flight, started, kept)
        return self._led(request, self._flight(fresh, gathered, held, name), kept)

    def _flight(self, fresh: Generate, gathered: Gathered, held: AsyncExitStack, name: str) -> Flight:
        """Begin a generation that others may join."""

        async def made() -> Events:
            # Who reads has a time of its own: the first one's is not the others'.
            flight.request = replace(await self._rendered(gathered, "miss"), seconds=math.inf)
            async with aclosing(fresh(flight.request)) as events:
                async for event in events:
                    yield event

        flight = Flight(gathered.request, made(), held.pop_all())
        flight.join()
        if gathered.request.freshness.read:
            self._flights[name] = flight
        self._begin(self._land(name, flight))
        return flight

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done for which nobody's answer waits."""
        task = asyncio.create_task(work)
        self._landing.add(task)
        task.add_done_callback(self._landing.discard)

    async def _land(self, name: str, flight: Flight) -> None:
        """Keep what a generation has made; until it is kept, others join it."""
        try:
            await flight.landed()
            if flight.request.freshness.keep and not flight.lost and (answer := await self._answer(flight)) is not None:
                assert self.shelf is not None
                await self.shelf.keep(name, answer)
        except Exception:
            log.exception("an answer could not be kept")
        finally:
            if self._flights.get(name) is flight:
                del self._flights[name]

    async def _led(self, request: Request, flight: Flight, kept: str) -> Events:
        """A generation, as who asked for it first hears it."""
        try:
            async with aclosing(_told(flight.read(whole=not request.stream), MISS, kept)) as events:
                async for event in events:
                    yield event
        finally:
            await flight.leave()

    async def _followed(self, request: Request, flight: Flight, started: Started, kept: str) -> Events:
        """The same, as others hear it."""
        usage, metering = as_cached(started.usage), self._ways.metering
        # What was let pass with the first one's words or pictures is not noted again with its answer.
        notes = [note for note in flight.request.moderation.split(";") if note not in request.moderation.split(";")]
        request = replace(request, moderation=";".join(filter(None, (request.moderation, *notes))))
        try:
            metered = metering.following(request, usage, pictures_of(flight.request), _cached(flight.read()))
            async with aclosing(_told(metered, HIT, kept)) as events:
                async for event in events:
                    yield event
        finally:
            await flight.leave()

    async def _again(self, request: Request, answer: Answer, kept: str) -> Events:
        """What is on the shelf, moderated again, booked and then told."""
        assert self.shelf is not None
        again = self._ways.moderation.answer(lambda _: _cached(_replayed(answer.replay())))
        events = [event async for event in again(request)]
        end = events[-1]
        assert isinstance(end, Finish), "a moderated answer ended without an end"
        hit = await Hit.of(self._ways.books, request, Taken(end.usage, answer.pictures, end.reason, end.moderation))
        decision = await self._noted(hit.claims)
        if decision.refused is not None:
            raise refusal_of(decision)
        headers = await hit.book(decision)
        if kept and not request.stream and form_of(request.wire, request) not in answer.bodies:
            self._begin(self._keep_form(kept, request))
        age = ("age", str(int(self.shelf.age(answer))))
        async for event in _told(_replayed(events), (*HIT, age, *headers), kept):
            yield event

    async def _keep_form(self, name: str, request: Request) -> None:
        """Keep an answer as it goes out to this request too, so that the next one like it takes the short way."""
        assert self.shelf is not None
        try:
            answer, form = await self.shelf.find(name), form_of(request.wire, request)
            if answer is not None and form not in answer.bodies:
                first = replace(request, id=answer.id, created=answer.created)
                body = self._body(first, await fold(_replayed(answer.replay())))
                await self.shelf.keep(name, replace(answer, bodies={**answer.bodies, form: body}))
        except Exception:
            log.exception("an answer could not be kept in another form")

    def _body(self, request: Request, completion: Completion) -> bytes:
        """A whole answer as it goes out when it is given again."""
        return self._ways.encode(request, replace(completion, usage=as_cached(completion.usage)))

    async def _answer(self, flight: Flight) -> Answer | None:
        """What has come, as it is kept; None for what is not to be given again."""
        assert self.shelf is not None
        request = flight.request
        if request.moderation:  # something was let pass unseen, perhaps pictures, which nobody looks at again
            return None
        events = [_bare(event) for event in flight.events if not isinstance(event, Progress)]
        ends = [event for event in events if isinstance(event, Finish)]
        if len(ends) != request.choices or not {end.reason for end in ends} <= _LASTING:
            return None
        completion = await fold(_replayed(events))
        said = [[each.reasoning, each.text, *(call.arguments for call in each.calls)] for each in completion.choices]
        return Answer(
            made_at=self.shelf.now_ms(),
            usage=completion.usage,
            pictures=pictures_of(request),
            finish=ends[-1].reason,
            text="\n".join(text for texts in said for text in texts if text),
            events=Raw(msgspec.msgpack.encode(together(events))),
            id=request.id,
            created=request.created,
            bodies={form_of(request.wire, request): self._body(request, completion)},
        )


async def _told(events: Events, headers: Headers, kept: str = "") -> Events:
    """The same, saying in its head what the cache had to do with it, and under what name it is kept."""
    async with aclosing(events) as told:
        async for event in told:
            if isinstance(event, Started):
                event = replace(event, headers=event.headers + headers, kept=kept)
            yield event


async def _cached(events: Events) -> Events:
    """Another request's answer: without its headers, and with nothing computed."""
    async with aclosing(events) as told:
        async for event in told:
            bare = _bare(event)
            yield replace(bare, usage=as_cached(bare.usage)) if isinstance(bare, Started | Finish) else bare


async def _replayed(events: Sequence[Event]) -> Events:
    for event in events:
        yield event


def _bare(event: Event) -> Event:
    return replace(event, headers=()) if isinstance(event, Started | Finish) else event
