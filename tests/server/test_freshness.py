"""What the header Cache-Control comes to, alone and in company (docs/caching.md)."""

import pytest

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Freshness
from qwen3vl_compat.server.freshness import freshness_of

USUAL, NEW, NOTHING = Freshness(), Freshness(read=False), Freshness(read=False, keep=False)


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        (None, USUAL),
        ("", USUAL),
        ("private, only-if-cached, max-stale=5", USUAL),
        ("max-age=60", Freshness(max_age=60)),
        ('Max-Age="60"', Freshness(max_age=60)),
        ("max-age=60, max-age=5", Freshness(max_age=5)),
        ("no-cache", NEW),
        ("max-age=0", Freshness(read=False, max_age=0)),
        ("max-age=0, max-age=60", Freshness(read=False, max_age=60)),
        ("no-cache, max-age=60", Freshness(read=False, max_age=60)),
        ("max-age=60, no-cache", Freshness(read=False, max_age=60)),
        ("no-store", NOTHING),
        ("no-store, no-cache", NOTHING),
        ("max-age=60, no-store", Freshness(read=False, keep=False, max_age=60)),
    ],
)
def test_the_directive_that_forbids_most_holds(header: str | None, wish: Freshness) -> None:
    assert freshness_of(header) == wish


@pytest.mark.parametrize("age", ["", "-1", "1.5", "x", "1234567890"])
@pytest.mark.parametrize("beside", ["", "no-store, "])
def test_an_age_is_a_number(age: str, beside: str) -> None:
    with pytest.raises(InvalidRequest, match="max-age must be a number of seconds"):
        freshness_of(f"{beside}max-age={age}")
