"""How decisions about limits are told: headers under OpenAI's names, and refusals."""

import math
from collections.abc import Iterable

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
    "requests": "requests",
    "tokens": "tokens",
    "tokens_in": "tokens of prompts",
    "tokens_out": "tokens of answers",
    "pictures": "pictures",
    "concurrent": "requests at once",
}
_PERIODS = {0: "", 1: " a second", 60: " a minute", 3600: " an hour", 86_400: " a day"}
_LONGEST_WAIT = 60
"""Seconds: clients do not obey a longer Retry-After."""


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
    message = f"The limit of this {whose} is reached: {claim.limit} {_NOUNS[claim.kind]}{period}"
    if claim.amount > standing.most:
        share = "" if standing.most == claim.limit else f", of which this server has {standing.most},"
        message += f"{share}; this request may take {claim.amount} and can never pass"
        headers += (("x-should-retry", "false"),)
    elif standing.reset > _LONGEST_WAIT:
        message += f". It begins anew in {math.ceil(standing.reset)} seconds"
        headers += (("x-should-retry", "false"),)
    wait = 1 if claim.period == 0 else min(max(math.ceil(standing.reset), 1), _LONGEST_WAIT)
    quota = f"{claim.kind}{period.replace(' a ', '/').replace(' an ', '/')}"
    return RateLimited(f"{message}.", quota=quota, retry_after=wait, headers=headers)
