"""What stands between a wire and an engine. A policy wraps a Generate: check before, watch during, settle after.

Refusing is raising. The order of the chain is stated once, here.
"""

from collections.abc import Callable
from typing import Protocol

from qwen3vl_compat.events import Events
from qwen3vl_compat.messages import Request
from qwen3vl_compat.policies.prompts import apart

Generate = Callable[[Request], Events]
Policy = Callable[[Generate], Generate]


class Moderation(Protocol):
    """What is said about what is asked and answered. The first two raise where it may not be; see `chain`."""

    async def text(self, request: Request) -> Request:
        """The request, whose words may be asked about."""
        ...

    async def pictures(self, request: Request) -> Request:
        """The request, whose pictures may be shown."""
        ...

    def answer(self, generate: Generate) -> Generate:
        """The same verb; an answer that may not be given on ends."""
        ...

    def instant(self, tenant: str) -> Callable[[str], bool] | None:
        """Whether a whole answer may be given on, where that is told at once and always the same; None elsewhere.

        It is another function after every change of what holds for the tenant's words.
        """
        ...

    async def fingerprint(self, tenant: str) -> str:
        """What tells who moderates a tenant's requests from others who might say something else."""
        ...


def chain(
    generate: Generate,
    *,
    cache: Callable[[Generate], Generate],
    moderation: Moderation,
    metering: Policy,
    bounds: Policy,
    idempotency: Policy,
) -> Generate:
    """The engine behind every policy: idempotency -> bounds -> prompts -> media -> moderation -> cache -> metering.

    `bounds` ends what takes too long. It is inside of `idempotency`, which lets a generation outlive its client. Both
    hold for a request with several prompts as a whole; what is behind them, for each prompt (`apart`).
    `cache` stands around what is needed for an answer that it does not have; it has media fetched, but decoded only
    behind it, and the words moderated before it looks. Pictures are moderated when it has them decoded: what it has,
    has passed. Answers are moderated inside of `metering`, so that one cut off is booked as what was made of it.
    """
    return idempotency(bounds(apart(cache(metering(moderation.answer(generate))))))
