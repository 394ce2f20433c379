"""Answers that were given before, booked: limits and budgets as for any other, at the price of cached tokens.

All is known beforehand, so that nothing is reserved and one row is written, closed.
"""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.accounts.booking import Outcome, OverBudget
from qwen3vl_compat.accounts.ledger import LedgerUnavailable
from qwen3vl_compat.accounts.money import Counts
from qwen3vl_compat.errors import Overloaded
from qwen3vl_compat.events import Headers, Usage
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies.bookkeeping import Account, Bookkeeping, counts_of, entry_of
from qwen3vl_compat.policies.limiting import Claim, Decision
from qwen3vl_compat.policies.limiting.verdict import headers_of


def as_cached(usage: Usage) -> Usage:
    """The usage of an answer for which nothing was computed."""
    return replace(usage, cached=usage.prompt, cached_vision=usage.prompt_image + usage.prompt_video)


class Taken(Struct, frozen=True):
    """What an answer takes of its caller's limits and money: tokens and pictures, and how it ended."""

    usage: Usage
    pictures: int
    finish: str
    moderation: str = ""


class Hit:
    """One request that is answered with what was answered before."""

    def __init__(self, books: Bookkeeping, request: Request, account: Account, counts: Counts, taken: Taken) -> None:
        self._books, self._request, self._account, self._taken = books, request, account, taken
        self._counts = counts
        self.claims: Sequence[Claim] = account.claims(counts, lasting=False)

    @classmethod
    async def of(cls, books: Bookkeeping, request: Request, taken: Taken) -> "Hit":
        """What it comes to for the caller, now."""
        account = await books.account(request, books.ledger.now_ms())
        counts = counts_of(as_cached(taken.usage), taken.pictures)
        return cls(books, replace(request, cache="hit"), account, counts, taken)

    async def book(self, decision: Decision) -> Headers:
        """Write the row, durably; returns what is told of limits, budget and cost.

        `decision` has admitted the claims, after others perhaps. They are given back where this raises OutOfCredit, or
        Overloaded because nothing can be written; not where it is cancelled, for the row may be written all the same.
        """
        ledger, account = self._books.ledger, self._account
        now = ledger.now_ms()
        entry = entry_of(self._request, account, now, reserved_out=self._counts.out, reserved=0)
        outcome = Outcome(
            state="final",
            finish=self._taken.finish,
            started_at=now,
            ended_at=now,
            counts=self._counts,
            cost=entry.cost(self._counts),
            moderation=";".join(filter(None, (self._request.moderation, self._taken.moderation))),
        )
        told = headers_of(decision.standings)
        try:
            left = await ledger.book(entry, outcome, account.budgets)
        except OverBudget as refusal:
            await self.give_back(decision)
            raise account.out_of_credit(refusal.left, outcome.cost, "", told) from None
        except LedgerUnavailable:
            await self.give_back(decision)
            raise Overloaded("The server cannot book this answer now.", retry_after=5) from None
        return told + account.cost_headers(outcome.cost) + account.budget_headers(left)

    async def give_back(self, decision: Decision) -> None:
        """It is not answered after all: what was admitted for it is free again, what was before its claims is not."""
        if self.claims:
            others = decision.standings[: -len(self.claims)]
            used = [standing.claim.amount for standing in others] + [0] * len(self.claims)
            await self._books.tell(self._books.limiter.give_back(decision, used))
