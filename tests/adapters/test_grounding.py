"""Thousandths to pixels: always inside of the true picture, as it is seen."""

import time
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from qwen3vl_compat.adapters.calling.pictures import prepared, size_of
from qwen3vl_compat.adapters.client import InvalidInput
from qwen3vl_compat.adapters.grounding import Block, Box, Plane, Point, blocks_of
from tests.media.crafted import drawing, encoded, png

sides = st.integers(1, 20_000)
sizes = st.tuples(sides, sides)
places = st.integers(0, 1000) | st.floats(0, 1000)


@given(sizes, st.tuples(places, places))
def test_a_point_is_a_pixel_of_the_picture(size: tuple[int, int], at: tuple[float, float]) -> None:
    point = Plane.of(size).point(at)
    assert 0 <= point.x < size[0]
    assert 0 <= point.y < size[1]
    for place, pixel, side in zip(at, (point.x, point.y), size, strict=True):
        assert abs(pixel - place * side / 1000) <= 1


@given(sizes, st.tuples(places, places, places, places))
def test_a_box_lies_in_the_picture_and_is_never_empty(size: tuple[int, int], corners: tuple[float, ...]) -> None:
    left, top, right, bottom = corners
    box = Plane.of(size).box((left, top, right, bottom))
    assert 0 <= box.left < box.right <= size[0]
    assert 0 <= box.top < box.bottom <= size[1]
    for one, other, first, last, side in (
        (left, right, box.left, box.right, size[0]),
        (top, bottom, box.top, box.bottom, size[1]),
    ):
        assert first <= min(one, other) * side / 1000 + 1e-6
        assert last >= max(one, other) * side / 1000 - 1e-6
        assert last - first <= abs(one - other) * side / 1000 + 2


@pytest.mark.parametrize(
    ("size", "corners", "box"),
    [
        ((1000, 1000), (0, 0, 1000, 1000), (0, 0, 1000, 1000)),
        ((4000, 3000), (100, 200, 300, 400), (400, 600, 1200, 1200)),
        ((4000, 3000), (300, 400, 100, 200), (400, 600, 1200, 1200)),
        ((10, 10), (55, 55, 55, 55), (0, 0, 1, 1)),
        ((10, 10), (1000, 1000, 1000, 1000), (9, 9, 10, 10)),
    ],
)
def test_boxes(size: tuple[int, int], corners: tuple[int, int, int, int], box: tuple[int, ...]) -> None:
    assert Plane.of(size).box(corners, "a") == Box(*box, "a")


def test_a_picture_nobody_can_measure_is_told_in_thousandths() -> None:
    plane = Plane.of(None)
    assert (plane.unit, plane.point((500, 1000)), plane.box((1, 2, 3, 4))) == (
        "thousandth", Point(500, 999), Box(1, 2, 3, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("form", "orientation", "size"),
    [
        *(("JPEG", orientation, (120, 80)) for orientation in range(1, 9)),
        ("PNG", 6, (120, 80)),
        ("WEBP", 3, (120, 80)),
        ("JPEG", 6, (3000, 600)),
        ("JPEG", 1, (3000, 600)),
    ],
)
def test_the_size_is_that_of_the_upright_picture(form: str, orientation: int, size: tuple[int, int]) -> None:
    """What the model sees has the same shape, however much it was brought down."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(drawing(*size), form, exif=exif)
    width, height = size_of(data, "p")
    assert (width, height) == (size if orientation < 5 else size[::-1])
    made = prepared(data, 2048, "p")
    assert made is not None
    seen = size_of(made, "p")
    assert max(seen) <= 2048
    assert abs(seen[0] / seen[1] - width / height) <= 0.02 * width / height


@settings(max_examples=25)
@given(st.tuples(st.integers(1, 3000), st.integers(1, 200)), st.integers(1, 8), st.tuples(places, places))
def test_places_lie_in_the_picture_however_it_lies_and_was_brought_down(
    size: tuple[int, int], orientation: int, at: tuple[float, float]
) -> None:
    """At the same part of it, too, as in what the model sees."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", size), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    sent = Image.open(BytesIO(prepared(data, 2048, "p") or b""))
    point = Plane.of(size_of(data, "p")).point(at)
    upright.getpixel((point.x, point.y))  # raises for one that is outside
    seen = Plane.of(sent.size).point(at)
    for true, small, side, less in zip((point.x, point.y), (seen.x, seen.y), upright.size, sent.size, strict=True):
        assert abs(true / side - small / less) <= 1 / less + 1e-9


@pytest.mark.parametrize("data", [b"hello", b"%PDF-1.7", b""])
def test_what_has_no_size_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    for source in (data, tmp_path / "file"):
        with pytest.raises(InvalidInput, match=r"^picture: must be a picture$"):
            size_of(source, "picture")


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    for source, why in (
        (tmp_path / "none.png", "cannot be read"),
        (tmp_path, "cannot be read"),
        (png(60_000, 60_000, b""), "cannot be decoded"),
    ):
        with pytest.raises(InvalidInput, match=rf"^picture: .*{why}"):
            size_of(source, "picture")


HTML = """<!DOCTYPE html><html><body>
<h1 data-bbox="0 0 1000 100">Annual
 report</h1><div class="list" data-bbox="0,100,1000,500"><p data-bbox="0 100 1000 300">One <b>two</b></p><br>
<p>thr<i>ee</i></div>
<img data-bbox="100 500 900 1000"><p data-bbox="0 0 2000 10">Outside</p><p data-bbox="here">Nowhere</p></p></body>"""


def test_parts_of_a_document() -> None:
    assert blocks_of(HTML, Plane.of((2000, 100))) == (
        Block("h1", "Annual report", Box(0, 0, 2000, 10)),
        Block("div.list", "One two three", Box(0, 10, 2000, 50)),
        Block("p", "One two", Box(0, 10, 2000, 30)),
        Block("img", "", Box(200, 50, 1800, 100)),
    )


def test_a_model_that_repeats_itself_takes_no_time() -> None:
    """What it says may be long, and none of it closed."""
    before = time.process_time()
    for html in ("<p>a", "<p></q>"):
        assert blocks_of(html * 50_000, Plane.of((10, 10))) == ()
    assert time.process_time() - before < 5


@given(st.text(alphabet='<>/="p b1data-bbox 0', max_size=80))
def test_no_document_breaks_it(html: str) -> None:
    blocks_of(html, Plane.of((10, 10)))
