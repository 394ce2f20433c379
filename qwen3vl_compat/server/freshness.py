"""The header Cache-Control of a request: whether an answer may be one that was given before (RFC 9111, 5.2.1)."""

import re

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Freshness

NAME = "Cache-Control"
_AGE = re.compile(r'"?([0-9]{1,9})"?')
_USUAL = Freshness()


def freshness_of(header: str | None) -> Freshness:
    """`no-store`: neither look nor keep; `no-cache`: do not look; `max-age=60`: look for nothing older than that.

    Other directives mean nothing here. Raises InvalidRequest for an age that is no number of seconds.
    """
    if not header:
        return _USUAL
    read = keep = True
    max_age: float | None = None
    for directive in header.lower().split(","):
        name, _, value = (part.strip() for part in directive.partition("="))
        if name == "no-store":
            read = keep = False
        elif name == "no-cache":
            read = False
        elif name == "max-age":
            if not (found := _AGE.fullmatch(value)):
                raise InvalidRequest(f"{NAME}: max-age must be a number of seconds.", param=NAME)
            max_age = float(found[1])
            read &= max_age > 0
    return Freshness(read=read, keep=keep, max_age=max_age)
