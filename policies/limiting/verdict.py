"""How decisions about limits are told: headers under OpenAI's names, and refusals."""

import math
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from qwen3vl_compat.errors import RateLimited
from qwen3vl_compat.events import Headers
from qwen3vl_compat.policies.limiting import Decision, Standing

_SHOWN = {
    "requests": "requests",
    "tokens": "tokens",
    "tokens_in": "tokens",
    "tokens_out": "tokens",
    "pictures": "images",
}
_NOUNS = {
    "requests": ("request", "requests"),
    "tokens": ("token", "tokens"),
    "tokens_in": ("token of prompts", "tokens of prompts"),
    "tokens_out": ("token of answers", "tokens of answers"),
    "pictures": ("picture", "pictures"),
    "concurrent": ("request at once", "requests at once"),
}
_PERIODS = {0: "", 1: " a second", 60: " a minute", 3600: " an hour", 86_400: " a day"}
_LONGEST_WAIT = 60
"""Seconds: clients do not obey a longer Retry-After."""


def after(standings: Iterable[Standing], used: Sequence[int]) -> Iterable[Standing]:
    """How the same counters stand once so much was used of each claim."""
    return [
        replace(standing, remaining=standing.remaining + max(0, standing.claim.amount - amount))
        for standing, amount in zip(standings, used, strict=True)
    ]


def headers_of(standings: Iterable[Standing]) -> Headers:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens,images}`, each of the limit that has least left."""
    tightest: dict[str, Standing] = {}
    for standing in standings:
        name = _SHOWN.get(standing.claim.kind)
        if name and (name not in tightest or standing.remaining < tightest[name].remaining):
            tightest[name] = standing
    return tuple(
        (f"x-ratelimit-{what}-{name}", text)
        for name, standing in tightest.items()
        for what, text in (
            ("limit", str(standing.most)),
            ("remaining", str(standing.remaining)),
            ("reset", f"{standing.reset:.3f}".rstrip("0").rstrip(".") + "s"),
        )
    )


def refusal_of(decision: Decision) -> RateLimited:
    """The error for a decision that refused."""
    standing = decision.refused
    assert standing is not None, "a decision that let the request pass is no refusal"
    claim, headers = standing.claim, headers_of(decision.standings)
    whose, _, _ = claim.scope.partition(":")
    period = _PERIODS.get(claim.period, f" in {claim.period} seconds")
    whose = "address" if whose == "ip" else whose
    noun = _NOUNS[claim.kind][claim.limit != 1]
    message = f"The limit of this {whose} is reached: {claim.limit} {noun}{period}"
    if standing.most != claim.limit:
        message += f", of which this one of several servers has {standing.most}"
    if claim.amount > standing.most:
        message += f". This request may take {claim.amount} and cannot pass here"
        if claim.kind in ("tokens", "tokens_out"):
            message += ": a lower max_tokens reserves less"
        headers += (("x-should-retry", "false"),)
    elif standing.reset > _LONGEST_WAIT:
        message += f". It begins anew in {math.ceil(standing.reset)} seconds"
        headers += (("x-should-retry", "false"),)
    wait = 1 if claim.period == 0 else min(max(math.ceil(standing.reset), 1), _LONGEST_WAIT)
    never = claim.amount > claim.limit  # no pause helps
    quota = f"{claim.kind}{period.replace(' a ', '/').replace(' an ', '/')}"
    return RateLimited(f"{message}.", quota=quota, retry_after=None if never else wait, headers=headers)
