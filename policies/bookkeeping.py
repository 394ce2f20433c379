"""What a request may use and what it is charged: the terms, claims and budgets of its caller, and how they are told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import cache, lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.accounts.booking import Budget, Entry, Left
from qwen3vl_compat.accounts.books import Terms
from qwen3vl_compat.accounts.ledger import Ledger
from qwen3vl_compat.accounts.money import Counts, Price, format_amount
from qwen3vl_compat.errors import OutOfCredit
from qwen3vl_compat.events import Headers, Usage
from qwen3vl_compat.messages import Caller, Picture, Request, Video
from qwen3vl_compat.policies.limiting import Claim, Kind, Limiter
from qwen3vl_compat.settings import Quotas, budgets_of

log = logging.getLogger(__name__)


class Bookkeeping(Struct, frozen=True):
    """Where a request is counted, and on what terms."""

    ledger: Ledger
    limiter: Limiter
    terms_of: Callable[[Caller], Awaitable[Terms]]
    price_of: Callable[[str, int], Awaitable[Price | None]]
    """By model and moment (milliseconds since 1970)."""
    currency: str = "USD"
    settling: set["asyncio.Future[None]"] = msgspec.field(default_factory=set)
    """What the limiter is just being told."""

    async def tell(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the limiter told something, for which nobody's answer waits."""
        task = asyncio.ensure_future(work)
        self.settling.add(task)
        task.add_done_callback(self.settling.discard)
        await asyncio.sleep(0)  # it is on its way, before whatever is claimed next

    async def close(self) -> None:
        """Wait until the limiter has heard all."""
        if self.settling:
            await asyncio.wait(self.settling, timeout=1)

    async def account(self, request: Request, now: int) -> "Account":
        """What holds for a request that comes now, milliseconds since 1970."""
        terms, price = await self.terms_of(request.caller), await self.price_of(request.model, now)
        account = _account(request.caller, terms, price, self.currency)
        if price is None and account.budgets:
            _warn_of(request.model)
        return account


class Account(Struct, frozen=True):
    """A caller's terms, budgets and price at one moment."""

    caller: Caller
    terms: Terms
    budgets: tuple[Budget, ...]
    price: Price | None
    currency: str

    def claims(self, counts: Counts, *, lasting: bool = True) -> list[Claim]:
        """So much of each limit; with `lasting`, a place under way too. Who may have none gets nothing."""
        claims = [
            *_claims(f"key:{self.caller.key}", self.terms.key, counts),
            *_claims(f"tenant:{self.caller.tenant}", self.terms.tenant, counts),
        ]
        return claims if lasting else [claim for claim in claims if claim.period or not claim.limit]

    def budget_headers(self, lefts: Sequence[Left], more: int = 0) -> Headers:
        """How the budget that has least left stands, with so many nano-units more."""
        if not lefts:
            return ()
        tightest = min(lefts, key=lambda left: left.amount)
        return (
            ("x-budget-limit", format_amount(tightest.budget.limit)),
            ("x-budget-remaining", format_amount(max(tightest.amount + more, 0))),
            ("x-budget-period", tightest.budget.period),
        )

    def cost_headers(self, cost: int) -> Headers:
        """What an answer has cost."""
        return (("x-cost-total", format_amount(cost)), ("x-cost-currency", self.currency)) if self.price else ()

    def out_of_credit(self, left: Left, could_cost: int, hint: str, headers: Headers) -> OutOfCredit:
        """The refusal of a request that could cost more than a budget has left."""
        budget, unit = left.budget, self.currency
        message = (
            f"The budget of this {budget.scope.partition(':')[0]} does not allow this request: it could cost "
            f"{format_amount(could_cost)} {unit}, and {format_amount(max(left.amount, 0))} of the {budget.period}'s "
            f"{format_amount(budget.limit)} are left.{hint}"
        )
        return OutOfCredit(message, quota=f"budget/{budget.period}", headers=headers + self.budget_headers((left,)))


def entry_of(request: Request, account: Account, now: int, *, reserved_out: int, reserved: int) -> Entry:
    """The request's row as it begins."""
    return Entry(
        id=request.id,
        tenant=request.caller.tenant,
        key=request.caller.key,
        model=request.model,
        wire=request.wire,
        stream=request.stream,
        created_at=now,
        reserved_out=reserved_out,
        reserved=reserved,
        price=account.price,
        cache=request.cache,
    )


def counts_of(usage: Usage, pictures: int) -> Counts:
    """Usage as the ledger counts it."""
    return Counts(
        text_in=usage.prompt_text - (usage.cached - usage.cached_vision),
        vision_in=usage.prompt_image + usage.prompt_video - usage.cached_vision,
        cached_in=usage.cached,
        out=usage.completion,
        reasoning=usage.reasoning,
        pictures=pictures,
    )


def pictures_of(request: Request) -> int:
    """How many pictures and videos a request shows."""
    return sum(isinstance(part, Picture | Video) for message in request.messages for part in message.leaves)


def amount_of(kind: str, counts: Counts) -> int:
    """What so much is of a kind of limit."""
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
        Claim(scope=scope, kind=kind, period=period, limit=limit, amount=amount_of(kind, worst) if period else 1)
        for kind, period, limit in limits
        if limit is not None
    ]


@lru_cache(4096)
def _account(caller: Caller, terms: Terms, price: Price | None, currency: str) -> Account:
    return Account(caller, terms, tuple(_budgets(caller, terms)), price, currency)


def _budgets(caller: Caller, terms: Terms) -> list[Budget]:
    return [
        Budget(scope=scope, period=period, limit=limit)
        for scope, quotas in ((f"key:{caller.key}", terms.key), (f"tenant:{caller.tenant}", terms.tenant))
        for limit, period in budgets_of(quotas.budget)
    ]


@cache
def _warn_of(model: str) -> None:
    """Say once that budgets mean nothing for a model."""
    log.warning("there is no price for the model '%s': budgets hold nobody back who calls it", model)
