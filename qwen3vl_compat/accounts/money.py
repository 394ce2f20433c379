"""Money as whole nano-units (a thousand-millionth of the currency's unit), and what an answer costs in it."""

import re
from decimal import Decimal

from msgspec import Struct
from msgspec.structs import replace

NANO = 10**9
MILLION = 10**6
_AMOUNT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")
MOST = 10**6 * NANO
"""The largest amount that is taken: a million units. Sums of thousands of them still fit 64 bits."""


def parse_amount(text: str) -> int:
    """`5.00` as nano-units; ValueError for anything but a plain decimal below a million with at most 9 places."""
    if not _AMOUNT.fullmatch(text):
        raise ValueError(
            f"An amount of money is a number as 5.00, below 1000000, with at most 9 places; not {text[:40]!r}."
        )
    return int(Decimal(text) * NANO)


def format_amount(nano: int) -> str:
    """Nano-units as a plain decimal number with two to nine places: `5.00`, `0.000123`."""
    sign, whole, part = "-" if nano < 0 else "", *divmod(abs(nano), NANO)
    return f"{sign}{whole}.{f'{part:09d}'.rstrip('0').ljust(2, '0')}"


class Counts(Struct, frozen=True, kw_only=True):
    """What the ledger counts of a request: tokens, and pictures (a video or a page is one).

    `text_in` and `vision_in` were computed of the prompt, `cached_in` was there already; `reasoning` is part of `out`.
    """

    text_in: int = 0
    vision_in: int = 0
    cached_in: int = 0
    out: int = 0
    reasoning: int = 0
    pictures: int = 0

    @property
    def tokens_in(self) -> int:
        """All tokens of the prompt."""
        return self.text_in + self.vision_in + self.cached_in


class Price(Struct, frozen=True, kw_only=True):
    """A row of `prices`: nano-units for a million tokens of each kind, and for a request."""

    id: int
    model: str
    effective_from: int
    text_in: int
    vision_in: int
    cached_in: int
    out: int
    reasoning: int
    per_request: int
    created_at: int = 0

    def cost(self, counts: Counts) -> int:
        """What so much costs, rounded half up once."""
        millionths = (
            counts.text_in * self.text_in
            + counts.vision_in * self.vision_in
            + counts.cached_in * self.cached_in
            + (counts.out - counts.reasoning) * self.out
            + counts.reasoning * self.reasoning
            + self.per_request * MILLION
        )
        return (millionths + MILLION // 2) // MILLION

    def worst(self, counts: Counts) -> int:
        """The most that `counts` can cost, whatever of it turns out to be cached or thought."""
        dearest = max(self.out, self.reasoning)
        upper = replace(
            self,
            text_in=max(self.text_in, self.cached_in),
            vision_in=max(self.vision_in, self.cached_in),
            out=dearest,
            reasoning=dearest,
        )
        return upper.cost(counts)

    def stored(self) -> "Price":
        """The price of an answer that was given before: every token of it, and of its prompt, is a cached one."""
        cached = self.cached_in
        return replace(self, text_in=cached, vision_in=cached, out=cached, reasoning=cached)
