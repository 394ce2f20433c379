"""Metering: nothing is asked of the engine that is not counted and reserved, and nothing is sent that is not booked.

The order is fixed: count the prompt exactly, take the worst case from limits and budgets, open a row, generate, close
the row with what it really took, and only then let the answer's end go out.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from qwen3vl_compat.accounts.booking import Entry, Left, Outcome, OverBudget
from qwen3vl_compat.accounts.ledger import LedgerUnavailable, Settled
from qwen3vl_compat.accounts.money import Counts, format_amount
from qwen3vl_compat.errors import ModerationUnavailable, Overloaded, TooSlow
from qwen3vl_compat.events import Event, Events, Finish, Headers, Progress, ReasoningDelta, Started, Usage
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies import Generate
from qwen3vl_compat.policies.bookkeeping import Account, Bookkeeping, amount_of, counts_of, entry_of, pictures_of
from qwen3vl_compat.policies.limiting import Standing
from qwen3vl_compat.policies.limiting.verdict import after, headers_of, refusal_of

CHECKPOINT_TOKENS = 32
CHECKPOINT_S = 1.0
"""An open row is at most so many tokens, or so long, behind what was taken from the engine."""

Check = Callable[[Request], Awaitable[None]]


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

        def inside(request: Request) -> Events:
            async def begun() -> tuple[_Meter, Events]:
                usage = await self._count(request)
                bound = self._bound(request, usage)
                meter = await _Meter.opened(self._books, bound, usage, pictures_of(bound), self._check)
                return meter, generate(bound)

            return _metered(begun)

        return inside

    def following(self, request: Request, usage: Usage, pictures: int, events: Events) -> Events:
        """The same events, which are made for another request like this, metered as this one's."""

        async def begun() -> tuple[_Meter, Events]:
            bound = self._bound(replace(request, cache="hit"), usage)
            return await _Meter.opened(self._books, bound, usage, pictures, _unchecked), events

        return _metered(begun)

    def _bound(self, request: Request, usage: Usage) -> Request:
        """What may be made is what was reserved, whatever the engine would make of a request that says nothing."""
        room = self._room(request, usage)
        return replace(request, sampling=replace(request.sampling, max_tokens=room))


async def _metered(begun: "Callable[[], Awaitable[tuple[_Meter, Events]]]") -> Events:
    meter, events = await begun()
    try:
        async with aclosing(events) as made:
            async for event in made:
                seen = await meter.seen(event)
                if not isinstance(seen, Progress):
                    yield seen
    except TooSlow:
        raise
    except Exception as error:
        if isinstance(error, ModerationUnavailable):
            meter.moderation = error.moderation
        await meter.end("failed")
        raise
    finally:
        await meter.end("gone")


async def _unchecked(request: Request) -> None:
    """Somebody else's request for the same was checked."""


class _Meter:
    """One request's row, and how far it is."""

    def __init__(self, books: Bookkeeping, account: Account, request: Request, entry: Entry, worst: Counts) -> None:
        self._books, self._account, self._request, self._entry = books, account, request, entry
        self._claims, self._pictures = account.claims(worst), worst.pictures
        self._left: tuple[Left, ...] = ()
        self._standings: tuple[Standing, ...] = ()
        self._made = [0] * request.choices
        self._thought = [0] * request.choices
        self._prompt = Counts()
        self._started_at: int | None = None
        self._noted, self._noted_at = 0, 0
        self._finished = 0
        self._closed = False
        self.moderation = ""
        """What moderators have said of the answer."""

    @classmethod
    async def opened(cls, books: Bookkeeping, request: Request, usage: Usage, pictures: int, check: Check) -> "_Meter":
        """Reserve the worst case and open the row. Whatever this raises leaves all as before."""
        now = books.ledger.now_ms()
        account = await books.account(request, now)
        most = request.choices * (request.sampling.max_tokens or 0)
        worst = replace(counts_of(usage, pictures), out=most, reasoning=0)
        price = account.price
        if request.cache == "hit" and price:
            price = price.stored()
        reserved = price.worst(worst) if price else 0
        entry = entry_of(request, account, now, reserved_out=most, reserved=reserved)
        meter = cls(books, account, request, entry, worst)
        await meter._admit(check)
        return meter

    async def _admit(self, check: Check) -> None:
        limiter, name = self._books.limiter, self._entry.id
        if self._claims:
            decision = await limiter.admit(name, self._claims)
            if decision.refused is not None:
                raise refusal_of(decision)
            self._standings = decision.standings
        opened = False
        try:
            await check(self._request)  # which may take long: as many do it at once as the limits let through
            self._left = await self._books.ledger.open(self._entry, self._account.budgets)
            opened = True
        except OverBudget as refusal:
            hint = f" A lower max_tokens reserves less; it is {self._request.sampling.max_tokens} here."
            told = headers_of(self._standings)
            raise self._account.out_of_credit(refusal.left, self._entry.reserved, hint, told) from None
        except LedgerUnavailable:
            raise Overloaded("The server cannot book requests now. Please try again later.", retry_after=5) from None
        finally:
            if not opened and self._claims:
                await _to_the_end(limiter.settle(name, [0] * len(self._claims)))

    async def seen(self, event: Event) -> Event:
        """Count an event on its way out. The last one waits until the row is closed."""
        match event:
            case Started(usage):
                self._prompt = counts_of(usage, self._pictures)
                self._started_at = self._books.ledger.now_ms()
                self._note()
                reserved = ("x-cost-reserved", format_amount(self._entry.reserved))
                told = (*headers_of(self._standings), *self._account.budget_headers(self._left))
                told += (reserved,) if self._entry.price else ()
                return replace(event, headers=event.headers + told)
            case Finish(_, reason, usage):
                self._finished += 1
                self.moderation = event.moderation
                if self._finished == self._request.choices:
                    counts = replace(self._prompt, out=usage.completion, reasoning=usage.reasoning)
                    settled = await _to_the_end(self._settle(self._outcome("final", reason, counts)))
                    if settled.state != "final":  # others took this process for dead, and closed the row before
                        raise Overloaded("The server was away for too long during this answer.", retry_after=1)
                    rates = headers_of(after(self._standings, self._used(counts)))
                    return replace(event, headers=event.headers + rates + self._cost_headers(settled.cost))
            case _:
                # What moderators have held back comes after its tokens were counted.
                self._made[event.index] = max(self._made[event.index], event.completion)
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
        return Outcome(
            state=state,
            finish=finish,
            started_at=self._started_at,
            ended_at=self._books.ledger.now_ms(),
            counts=counts,
            cost=self._entry.cost(counts) if self._started_at is not None else 0,
            moderation=";".join(filter(None, (self._request.moderation, self.moderation))),
        )

    async def _settle(self, outcome: Outcome) -> Settled:
        """Close the row, and give back what was reserved beyond it."""
        self._closed = True
        try:
            return await self._books.ledger.settle(self._entry, outcome)
        except LedgerUnavailable:
            raise Overloaded("The server cannot book this answer now.", retry_after=5) from None
        finally:  # after the ledger, which counters are begun with; nobody's answer waits for it
            if self._claims:
                await self._books.tell(self._books.limiter.settle(self._entry.id, self._used(outcome.counts)))

    def _used(self, counts: Counts) -> list[int]:
        """What so much is of each claim."""
        return [amount_of(claim.kind, counts) for claim in self._claims]

    def _cost_headers(self, cost: int) -> Headers:
        if self._entry.price is None:
            return ()
        return self._account.cost_headers(cost) + self._account.budget_headers(self._left, self._entry.reserved - cost)


async def _to_the_end(work: Coroutine[Any, Any, Any]) -> Any:
    """Have work done even if whoever waits for it is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
