"""Pictures as they leave the client: upright, RGB on white, no larger than is looked at, JPEG of quality 95."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from qwen3vl_compat.adapters.calling.pictures import QUALITY, prepared
from qwen3vl_compat.adapters.client import InvalidInput
from tests.media.crafted import drawing, encoded

ORIENTATION = 0x0112


def left(data: bytes, longest_side: int = 2048) -> Image.Image:
    made = prepared(data, longest_side, "p")
    assert made is not None
    image = Image.open(BytesIO(made))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert image.getexif().get(ORIENTATION, 1) == 1
    return image


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, "JPEG", exif=exif, quality=95)


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


@pytest.mark.parametrize(
    ("size", "longest", "becomes"),
    [
        ((3000, 2000), 2048, (2048, 1365)),
        ((2000, 3000), 2048, (1365, 2048)),
        ((3000, 10), 2048, (2048, 7)),
        ((2048, 2048), 2048, (2048, 2048)),
        ((100, 50), 2048, (100, 50)),
        ((100, 50), 10, (10, 5)),
        ((100, 1), 10, (10, 1)),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_it_is_brought_down_and_never_up(
    size: tuple[int, int], longest: int, becomes: tuple[int, int], form: str
) -> None:
    assert left(encoded(Image.new("RGB", size), form), longest).size == becomes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("longest", [64, 200])
def test_it_is_upright(orientation: int, longest: int) -> None:
    """As Pillow's own reading of the orientation has it, and the pixels are still those."""
    data = turned(drawing(120, 80), orientation)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    upright.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    made = left(data, longest)
    assert made.size == upright.size
    assert distance(made, upright) < 4


@pytest.mark.parametrize(
    ("image", "form", "pixel"),
    [
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("LA", (9, 9), (0, 0)), "PNG", (255, 255, 255)),
        (Image.new("L", (9, 9), 100), "PNG", (100, 100, 100)),
        (Image.new("1", (9, 9), 1), "PNG", (255, 255, 255)),
        (Image.new("P", (9, 9), 0), "GIF", (0, 0, 0)),
        (Image.new("CMYK", (9, 9)), "JPEG", (255, 255, 255)),
        (Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG", (156, 156, 156)),
        (Image.new("RGB", (9, 9), (10, 20, 30)), "BMP", (10, 20, 30)),
        (Image.new("RGB", (9, 9), (10, 20, 30)), "TIFF", (10, 20, 30)),
        (Image.new("RGB", (9, 9), (10, 20, 30)), "WEBP", (10, 20, 30)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_whatever_it_was_it_is_rgb_on_white(image: Image.Image, form: str, pixel: tuple[int, int, int]) -> None:
    made = left(encoded(image, form)).getpixel((4, 4))
    assert isinstance(made, tuple)
    assert max(abs(one - other) for one, other in zip(made, pixel, strict=True)) <= 3


def test_quality_and_full_colour() -> None:
    """The tables are those of quality 95, and no colour is left out."""
    made = left(encoded(drawing(64, 64), "PNG"))
    like = Image.open(BytesIO(encoded(drawing(64, 64), "JPEG", quality=QUALITY)))
    assert made.quantization == like.quantization
    assert [layer[1:3] for layer in made.layer] == [(1, 1)] * 3


def test_a_jpeg_that_needs_nothing_is_left_as_it_is() -> None:
    data = encoded(drawing(64, 64), "JPEG", quality=50)
    assert prepared(data, 64, "p") is data
    assert prepared(data, 63, "p") is not data


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    made = left(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((4, 4))
    assert isinstance(made, tuple)
    assert made[0] > 250


def test_what_is_no_picture_is_not_touched() -> None:
    assert prepared(b"hello" * 100, 2048, "p") is None


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_broken_picture_is_named(kept: float) -> None:
    data = encoded(drawing(300, 300), "PNG")
    with pytest.raises(InvalidInput, match=r"^image_path: the picture cannot be decoded") as caught:
        prepared(data[: int(len(data) * kept)], 2048, "image_path")
    assert caught.value.param == "image_path"
