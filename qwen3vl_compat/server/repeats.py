"""Requests that came before, byte for byte: those whose answer is still kept are answered before anything is read.

The first time a body is taken apart, checked and answered by the chain of policies, and what that came to is noted:
the name of its answer. From then on the same bytes from the same tenant need no decoding. What may change is asked each
time: the key and its scope, limits, budgets, prices, the tenant's rules for media and moderation, and whether the
answer is still there. Whatever is not as it was goes the whole way again.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.errors import RateLimited
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies.caching import Answer
from qwen3vl_compat.policies.caching.naming import form_of
from qwen3vl_compat.policies.hits import Hit, Taken
from qwen3vl_compat.policies.idempotency import NAME as IDEMPOTENCY
from qwen3vl_compat.policies.limiting import Claim, Decision
from qwen3vl_compat.policies.limiting.verdict import headers_of, refusal_of
from qwen3vl_compat.server.body import announced_size
from qwen3vl_compat.server.claims import claim
from qwen3vl_compat.server.exchange import Exchange
from qwen3vl_compat.server.freshness import NAME as FRESHNESS
from qwen3vl_compat.settings import MediaLimits

if TYPE_CHECKING:
    from qwen3vl_compat.server.answer import Service

LARGE = 2**17
"""Bytes of a body beyond which it is not looked for."""
KNOWN = 20_000
"""Bodies that are remembered."""
_OTHERWISE = frozenset({IDEMPOTENCY.lower(), FRESHNESS.lower(), "x-server-timeout", "content-encoding"})
"""Headers that make a request another one."""
Passes = Callable[[str], bool]


class Terms(NamedTuple):
    """What holds for a tenant: who says at once whether an answer passes, if anybody does, and what may be sent."""

    passes: Passes | None
    limits: MediaLimits


class Known(Struct, frozen=True):
    """An answer that is kept and passes: the seal it bears, and what it takes of limits and money."""

    seal: bytes
    taken: Taken


class Recipe(Struct):
    """What the body of a request came to, on these terms."""

    name: str
    model: str
    form: str
    headers: dict[str, str]
    terms: Terms
    known: Known | None = None


class Repeats:
    """Remembers bodies. Its methods are called from one asyncio loop."""

    def __init__(self, service: "Service") -> None:
        self._service = service
        self._recipes: OrderedDict[bytes, Recipe] = OrderedDict()

    def may_be(self, exchange: Exchange) -> bool:
        """Whether a request is of the kind that is looked for, as far as its head tells."""
        size = announced_size(exchange)
        return (
            exchange.method == "POST"
            and self._service.cache.shelf is not None
            and _asks_for_a_whole_answer(exchange.path)
            and size is not None
            and size <= LARGE
            and _OTHERWISE.isdisjoint(exchange.headers)
        )

    async def answer(self, exchange: Exchange, body: bytes, claims: Sequence[Claim]) -> bytes | None:
        """The answer to a request whose body is this, booked, if it is kept; its claims are made either way.

        Raises RateLimited and OutOfCredit.
        """
        exchange.asked, terms = _digest(exchange, body), await self._terms(exchange)
        recipe = self._recipes.get(exchange.asked)
        known = recipe and await self._known(recipe, exchange, terms)
        if recipe is None or known is None:
            exchange.terms = terms
            await claim(self._service.limiter, exchange, claims)
            return None
        self._recipes.move_to_end(exchange.asked)  # those that come again and again are the last to be forgotten
        service, now = self._service, int(time.time())
        request = Request(
            id=exchange.id, created=now, model=recipe.model, messages=(), caller=exchange.caller, wire=exchange.wire
        )
        hit = await Hit.of(service.books, request, known.taken)
        decision = await service.cache.admit(claims, hit.claims, recipe.name, known.seal)
        if decision.refused is not None:
            raise await self._refusal(exchange, claims, decision)
        kept = service.cache.open(recipe.name, decision.stored) if decision.stored else None
        if kept is None:
            if decision.stored:  # whose tokens were admitted: it is too old, or not what it bears the seal of
                await hit.give_back(decision)
            recipe.known = None
            exchange.answer_headers |= dict(headers_of(decision.standings[: len(claims)]))
            return None
        headers = await hit.book(decision)
        age = {"x-cache": "hit", "age": str(int(service.cache.age(kept)))}
        exchange.answer_headers |= recipe.headers | dict(headers) | age
        exchange.model, exchange.tokens = recipe.model, f"{kept.usage.prompt}+{kept.usage.completion}"
        return kept.body(recipe.form, exchange.id, now)

    async def learn(self, exchange: Exchange, request: Request, headers: dict[str, str]) -> None:
        """Note what a request came to that was answered just now."""
        if not exchange.asked or not exchange.kept:
            return
        terms = await self._terms(exchange)
        if terms.passes is None or terms != exchange.terms:  # it was looked at, or is to be, on others
            return
        recipe = Recipe(exchange.kept, request.model, form_of(exchange.wire, request), headers, terms)
        before = self._recipes.get(exchange.asked)
        if before is not None and (before.name, before.terms) == (recipe.name, terms):
            recipe.known = before.known
        self._recipes[exchange.asked] = recipe
        if len(self._recipes) > KNOWN:
            self._recipes.popitem(last=False)

    async def _refusal(self, exchange: Exchange, claims: Sequence[Claim], decision: Decision) -> RateLimited:
        """A refusal as the long way has it, where a request counts before its answer is asked for."""
        first, rest = decision.standings[: len(claims)], decision.standings[len(claims) :]
        if decision.refused in first:
            return refusal_of(replace(decision, standings=first))
        await claim(self._service.limiter, exchange, claims)
        return refusal_of(replace(decision, standings=rest))

    async def _terms(self, exchange: Exchange) -> Terms:
        service, tenant = self._service, exchange.caller.tenant
        return Terms(service.moderation.instant(tenant), await service.accounts.media_limits(tenant))

    async def _known(self, recipe: Recipe, exchange: Exchange, terms: Terms) -> Known | None:
        """What the answer takes, if all is as it was as far as can be told without asking for it."""
        service = self._service
        holds = (
            not service.lifecycle.draining
            and service.engine.alive
            and (exchange.key is None or exchange.key.may_call(recipe.model))
            and terms == recipe.terms
        )
        if holds and recipe.known is None and (found := await service.cache.look(recipe.name)) is not None:
            recipe.known = _fitting(recipe, *found)
        return recipe.known if holds else None


def _fitting(recipe: Recipe, seal: bytes, answer: Answer) -> Known | None:
    """What is known of an answer that may be told in this form; it may not be kept in it yet."""
    assert recipe.terms.passes is not None
    fits = recipe.form in answer.bodies and recipe.terms.passes(answer.text)
    return Known(seal, Taken(answer.usage, answer.pictures, answer.finish)) if fits else None


def _asks_for_a_whole_answer(path: str) -> bool:
    return path in ("/v1/chat/completions", "/v1/completions", "/v1/messages") or (
        path.startswith(("/v1beta/models/", "/v1/models/")) and path.endswith(":generateContent")
    )


def _digest(exchange: Exchange, body: bytes) -> bytes:
    """What tells one request of a tenant from another."""
    query = sorted((name, values) for name, values in exchange.query.items() if name != "key")
    head = repr((exchange.caller.tenant, exchange.path, query, exchange.headers.get("content-type")))
    digest = hashlib.sha256(head.encode())
    digest.update(body)
    return digest.digest()
