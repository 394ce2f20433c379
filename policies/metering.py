"""Metering: nothing is asked of the engine that is not counted and reserved, and nothing is sent that is not booked.

The order is fixed: count the prompt exactly, take the worst case from limits and budgets, open a row, generate, close
the row with what it really took, and only then let the answer's end go out.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import cache
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.accounts.booking import Budget, Entry, Left, Outcome, OverBudget
from qwen3vl_compat.accounts.books import Terms
from qwen3vl_compat.accounts.ledger import Ledger, LedgerUnavailable, Settled
from qwen3vl_compat.accounts.money import Counts, Price, format_amount
from qwen3vl_compat.errors import OutOfCredit, Overloaded, TooSlow
from qwen3vl_compat.events import Event, Events, Finish, Headers, Progress, ReasoningDelta, Started, Usage
from qwen3vl_compat.messages import Caller, Picture, Request, Video
from qwen3vl_compat.policies import Generate
from qwen3vl_compat.policies.limiting import Claim, Kind, Limiter, Standing
from qwen3vl_compat.policies.limiting.verdict import after, headers_of, refusal_of
from qwen3vl_compat.settings import Quotas, budgets_of

log = logging.getLogger(__name__)

CHECKPOINT_TOKENS = 32
CHECKPOINT_S = 1.0
"""An open row is at most so many tokens, or so long, behind what was taken from the engine."""

Check = Callable[[Request], Awaitable[None]]


class Bookkeeping(Struct, frozen=True):
    """Where a request is counted, and on what terms."""

    ledger: Ledger
    limiter: Limiter
    terms_of: Callable[[Caller], Awaitable[Terms]]
    price_of: Callable[[str, int], Awaitable[Price | None]]
    """By model and moment (milliseconds since 1970)."""
    currency: str = "USD"


class Metering:
    """A policy; `count`, `room` and `check` are the engine's."""

    def __init__(
        self,
        books: Bookkeeping,
        count: Callable[[Request], Awaitable[Usage]],
        room: Callable[[Request, Usage], int],
        check: Check,
    ) -> None:
        self._books, self._count, self._room, self._check = books, count, room, check

    def __call__(self, generate: Generate) -> Generate:
        """The same verb, metered."""

        async def inside(request: Request) -> Events:
            usage = await self._count(request)
            room = self._room(request, usage)
            # What the engine may make is what was reserved, whatever it would have made of a request that says nothing.
            bound = replace(request, sampling=replace(request.sampling, max_tokens=room))
            meter = await _Meter.opened(self._books, bound, usage, self._check)
            try:
                async with aclosing(generate(bound)) as events:
                    async for event in events:
                        seen = await meter.seen(event)
                        if not isinstance(seen, Progress):
                            yield seen
            except TooSlow:
                raise
            except Exception:
                await meter.end("failed")
                raise
            finally:
                await meter.end("gone")

        return inside


class _Meter:
    """One request's row, and how far it is."""

    def __init__(self, books: Bookkeeping, request: Request, entry: Entry, claims: Sequence[Claim]) -> None:
        self._books, self._request, self._entry, self._claims = books, request, entry, claims
        self._left: tuple[Left, ...] = ()
        self._standings: tuple[Standing, ...] = ()
        self._made = [0] * request.choices
        self._thought = [0] * request.choices
        self._prompt = Counts()
        self._started_at: int | None = None
        self._noted, self._noted_at = 0, 0
        self._finished = 0
        self._closed = False

    @classmethod
    async def opened(cls, books: Bookkeeping, request: Request, usage: Usage, check: Check) -> "_Meter":
        """Reserve the worst case and open the row. Whatever this raises leaves all as before."""
        terms, now = await books.terms_of(request.caller), books.ledger.now_ms()
        price, budgets = await books.price_of(request.model, now), _budgets(request.caller, terms)
        if price is None and budgets:
            _warn_of(request.model)
        most = request.choices * (request.sampling.max_tokens or 0)
        worst = replace(_counts(usage, _pictures(request)), out=most, reasoning=0)
        entry = Entry(
            id=request.id,
            tenant=request.caller.tenant,
            key=request.caller.key,
            model=request.model,
            wire=request.wire,
            stream=request.stream,
            created_at=now,
            reserved_out=most,
            reserved=price.worst(worst) if price else 0,
            price=price,
        )
        claims = [
            *_claims(f"key:{request.caller.key}", terms.key, worst),
            *_claims(f"tenant:{request.caller.tenant}", terms.tenant, worst),
        ]
        meter = cls(books, request, entry, claims)
        await meter._admit(budgets, check)
        return meter

    async def _admit(self, budgets: Sequence[Budget], check: Check) -> None:
        limiter, name = self._books.limiter, self._entry.id
        if self._claims:
            decision = await limiter.admit(name, self._claims)
            if decision.refused is not None:
                raise refusal_of(decision)
            self._standings = decision.standings
        opened = False
        try:
            await check(self._request)  # which may take long: as many do it at once as the limits let through
            self._left = await self._books.ledger.open(self._entry, budgets)
            opened = True
        except OverBudget as refusal:
            raise self._out_of_credit(refusal.left) from None
        except LedgerUnavailable:
            raise Overloaded("The server cannot book requests now. Please try again later.", retry_after=5) from None
        finally:
            if not opened and self._claims:
                await _to_the_end(limiter.settle(name, [0] * len(self._claims)))

    def _out_of_credit(self, left: Left) -> OutOfCredit:
        budget, unit = left.budget, self._books.currency
        whose, most = budget.scope.partition(":")[0], format_amount(self._entry.reserved)
        message = (
            f"The budget of this {whose} does not allow this request: it could cost {most} {unit}, and "
            f"{format_amount(max(left.amount, 0))} of the {budget.period}'s {format_amount(budget.limit)} are left. "
            f"A lower max_tokens reserves less; it is {self._request.sampling.max_tokens} here."
        )
        headers = (*headers_of(self._standings), *self._budget_headers((left,), 0))
        return OutOfCredit(message, quota=f"budget/{budget.period}", headers=headers)

    async def seen(self, event: Event) -> Event:
        """Count an event on its way out. The last one waits until the row is closed."""
        match event:
            case Started(usage):
                self._prompt = _counts(usage, _pictures(self._request))
                self._started_at = self._books.ledger.now_ms()
                self._note()
                reserved = ("x-cost-reserved", format_amount(self._entry.reserved))
                told = (*headers_of(self._standings), *self._budget_headers(self._left, 0))
                told += (reserved,) if self._entry.price else ()
                return replace(event, headers=event.headers + told)
            case Finish(_, reason, usage):
                self._finished += 1
                if self._finished == self._request.choices:
                    counts = replace(self._prompt, out=usage.completion, reasoning=usage.reasoning)
                    settled = await _to_the_end(self._settle(self._outcome("final", reason, counts)))
                    if settled.state != "final":  # others took this process for dead, and closed the row before
                        raise Overloaded("The server was away for too long during this answer.", retry_after=1)
                    rates = headers_of(after(self._standings, self._used(counts)))
                    return replace(event, headers=event.headers + rates + self._cost_headers(settled.cost))
            case _:
                self._made[event.index] = event.completion
                if isinstance(event, ReasoningDelta):
                    self._thought[event.index] = event.completion
                waited = self._books.ledger.now_ms() - self._noted_at
                if sum(self._made) - self._noted >= CHECKPOINT_TOKENS or abs(waited) >= 1000 * CHECKPOINT_S:
                    self._note()
        return event

    async def end(self, finish: str) -> None:
        """Close the row if it is open still: who left pays for what there is; what failed costs nothing."""
        if not self._closed:
            counts = self._so_far if self._started_at is not None else Counts()
            outcome = self._outcome("aborted", finish, counts)
            if finish == "failed":  # our fault, or refused by the engine before it began
                outcome = replace(outcome, cost=0, finish="failed" if self._started_at is not None else "refused")
            await _to_the_end(self._settle(outcome))

    @property
    def _so_far(self) -> Counts:
        return replace(self._prompt, out=sum(self._made), reasoning=min(sum(self._thought), sum(self._made)))

    def _note(self) -> None:
        assert self._started_at is not None
        self._noted, self._noted_at = sum(self._made), self._books.ledger.now_ms()
        self._books.ledger.note(self._entry, self._started_at, self._so_far)

    def _outcome(self, state: Any, finish: str, counts: Counts) -> Outcome:
        price = self._entry.price
        return Outcome(
            state=state,
            finish=finish,
            started_at=self._started_at,
            ended_at=self._books.ledger.now_ms(),
            counts=counts,
            cost=price.cost(counts) if price and self._started_at is not None else 0,
        )

    async def _settle(self, outcome: Outcome) -> Settled:
        """Close the row, and give back what was reserved beyond it."""
        self._closed = True
        try:
            return await self._books.ledger.settle(self._entry, outcome)
        except LedgerUnavailable:
            raise Overloaded("The server cannot book this answer now.", retry_after=5) from None
        finally:  # after the ledger, which counters are begun with
            if self._claims:
                await self._books.limiter.settle(self._entry.id, self._used(outcome.counts))

    def _used(self, counts: Counts) -> list[int]:
        """What so much is of each claim."""
        return [_amount(claim.kind, counts) for claim in self._claims]

    def _budget_headers(self, lefts: Sequence[Left], more: int) -> Headers:
        if not lefts:
            return ()
        tightest = min(lefts, key=lambda left: left.amount)
        return (
            ("x-budget-limit", format_amount(tightest.budget.limit)),
            ("x-budget-remaining", format_amount(max(tightest.amount + more, 0))),
            ("x-budget-period", tightest.budget.period),
        )

    def _cost_headers(self, cost: int) -> Headers:
        if self._entry.price is None:
            return ()
        told = (("x-cost-total", format_amount(cost)), ("x-cost-currency", self._books.currency))
        return told + self._budget_headers(self._left, self._entry.reserved - cost)


@cache
def _warn_of(model: str) -> None:
    """Say once that budgets mean nothing for a model."""
    log.warning("there is no price for the model '%s': budgets hold nobody back who calls it", model)


async def _to_the_end(work: Coroutine[Any, Any, Any]) -> Any:
    """Have work done even if whoever waits for it is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _counts(usage: Usage, pictures: int) -> Counts:
    return Counts(
        text_in=usage.prompt_text - (usage.cached - usage.cached_vision),
        vision_in=usage.prompt_image + usage.prompt_video - usage.cached_vision,
        cached_in=usage.cached,
        out=usage.completion,
        reasoning=usage.reasoning,
        pictures=pictures,
    )


def _pictures(request: Request) -> int:
    return sum(isinstance(part, Picture | Video) for message in request.messages for part in message.leaves)


def _amount(kind: str, counts: Counts) -> int:
    amounts = {
        "tokens": counts.tokens_in + counts.out,
        "tokens_in": counts.tokens_in,
        "tokens_out": counts.out,
        "pictures": counts.pictures,
    }
    return amounts.get(kind, 0)


def _claims(scope: str, quotas: Quotas, worst: Counts) -> list[Claim]:
    limits: tuple[tuple[Kind, int, int | None], ...] = (
        ("tokens", 60, quotas.tokens),
        ("tokens_in", 60, quotas.tokens_in),
        ("tokens_out", 60, quotas.tokens_out),
        ("pictures", 86_400, quotas.pictures),
        ("concurrent", 0, quotas.concurrent),
    )
    return [
        Claim(scope=scope, kind=kind, period=period, limit=limit, amount=_amount(kind, worst) if period else 1)
        for kind, period, limit in limits
        if limit is not None
    ]


def _budgets(caller: Caller, terms: Terms) -> list[Budget]:
    return [
        Budget(scope=scope, period=period, limit=limit)
        for scope, quotas in ((f"key:{caller.key}", terms.key), (f"tenant:{caller.tenant}", terms.tenant))
        for limit, period in budgets_of(quotas.budget)
    ]
