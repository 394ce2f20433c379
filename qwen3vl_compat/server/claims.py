"""Claiming a request of each limit that it comes under, at the door."""

from collections.abc import Sequence

from qwen3vl_compat.policies.limiting import Claim, Limiter
from qwen3vl_compat.policies.limiting.verdict import headers_of, refusal_of
from qwen3vl_compat.server.exchange import Exchange


async def claim(limiter: Limiter, exchange: Exchange, claims: Sequence[Claim]) -> None:
    """Have all of them noted, and told of in the answer's head; raises RateLimited."""
    if claims:
        decision = await limiter.admit("", claims)
        if decision.refused is not None:
            raise refusal_of(decision)
        exchange.answer_headers |= dict(headers_of(decision.standings))
