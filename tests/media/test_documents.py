"""What the model is shown of a document: its pages upright in RGB on white, and their text where it is wanted."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.jobs import PagesJob, Pictures
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.media.pdf import pages
from tests.media.typeset import filled_form, typeset

SPEC = VisionSpec(min_pixels=1024, max_pixels=16_777_216)
TEXTS = ["ONE 1", "TWO 2", "THREE 3", "FOUR 4", "FIVE 5"]


def drawn(data: bytes, **options: Any) -> Pictures:
    usual: dict[str, Any] = {"first": 1, "last": None, "most": 100, "most_in_all": 500, "text": False, "digest": "d"}
    return pages(BytesIO(data), PagesJob(spec=SPEC, **usual | options))


def darkness(picture: Any) -> float:
    """The share of dark pixels."""
    return float((np.frombuffer(picture.patches, np.uint8) < 128).mean())


def test_pages_are_dark_on_white() -> None:
    for picture in drawn(typeset(TEXTS)).pictures:
        assert 0.01 < darkness(picture) < 0.3
        assert np.frombuffer(picture.patches, np.uint8).max() == 255


def test_a_page_has_144_dots_to_the_inch_and_no_more_pixels_than_it_may() -> None:
    picture = drawn(typeset(["A"], width=160, height=96)).pictures[0]
    assert picture.grid == (1, 12, 20)
    small = VisionSpec(min_pixels=1024, max_pixels=64 * 1024)
    shrunk = drawn(typeset(["A"], width=1600, height=960), first=1)
    assert max(shrunk.pictures[0].grid[1:]) * 16 == 2048
    job = PagesJob(spec=small, first=1, last=1, most=1, most_in_all=1, text=False, digest="")
    (least,) = pages(BytesIO(typeset(["A"], width=1600, height=960)), job).pictures
    assert np.prod(least.grid) / 4 <= 64


def test_text_comes_with_its_page_where_it_is_wanted() -> None:
    assert drawn(typeset(TEXTS), text=True, first=2, last=3).texts == ("TWO 2", "THREE 3")
    assert set(drawn(typeset(TEXTS)).texts) == {""}


def test_what_was_filled_in_is_drawn() -> None:
    assert darkness(drawn(filled_form()).pictures[0]) > 0.9


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"first": 6}, "has 5 pages; page 6 is not among them"),
        ({"most": 4}, "5 pages are asked for; at most 4"),
        ({"most_in_all": 4}, "has 5 pages; at most 4"),
    ],
)
def test_what_pages_cannot_be_had(options: dict[str, int], fault: str) -> None:
    with pytest.raises(InvalidRequest, match=fault):
        drawn(typeset(TEXTS), **options)


def test_a_range_beyond_the_end_ends_there() -> None:
    assert drawn(typeset(TEXTS), first=4, last=99).numbers == (4, 5)
