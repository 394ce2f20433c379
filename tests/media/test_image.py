"""Patches are the reference processor's to the bit, and no bytes make decoding fail in any way but a plain refusal."""

import hashlib
import re
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.image import check_size, decode_image, digest_of, grid_for, jpeg_of
from qwen3vl_compat.media.limits import Bounds, VisionSpec
from qwen3vl_compat.messages import Picture
from tests.media.crafted import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    chunk,
    drawing,
    encoded,
    jpeg_saying,
    plain_png,
    png,
    webp_saying,
)

SMALL = VisionSpec(min_pixels=1024, max_pixels=16_777_216)
"""The bundled model's budgets."""
QWEN = VisionSpec(min_pixels=65_536, max_pixels=16_777_216)
TIGHT = VisionSpec(min_pixels=4096, max_pixels=100_000)

FORBIDDEN = re.compile(r"0x|Errno|/|\\|Error|Exception|PIL|Image\.|<|>")
"""What no message may hold: addresses, paths, names of classes."""


def refused(data: bytes, spec: VisionSpec = SMALL) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        decode_image(data, spec)
    assert refusal.value.status == 400
    assert not FORBIDDEN.search(refusal.value.message)
    assert refusal.value.__cause__ is None
    return refusal.value


def pixels(picture: Picture) -> np.ndarray[Any, Any]:
    _, rows, columns = picture.grid
    patches = np.frombuffer(picture.patches, np.uint8).reshape(rows // 2, columns // 2, 2, 2, 3, 16, 16)
    return patches.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * 16, columns * 16, 3)


# The reference


def processor_for(spec: VisionSpec) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels},
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.5, 0.6, 0.7],
    )


def floats(picture: Picture, processor: Any) -> np.ndarray[Any, Any]:
    """The processor's `pixel_values` from uint8 patches: its own arithmetic as a table, and the doubling in time."""
    levels = np.tile(np.arange(256, dtype=np.uint8), (3, 1, 1))
    scaled = processor.rescale(levels, processor.rescale_factor)
    table = processor.normalize(scaled, processor.image_mean, processor.image_std)[:, 0].astype(np.float32)
    patches = np.frombuffer(picture.patches, np.uint8).reshape(-1, 3, 1, 256).repeat(2, axis=2)
    channel = np.arange(3).reshape(1, 3, 1, 1)
    return table[channel, patches].reshape(len(patches), 1536)


SIZES = (
    (96, 32), (32, 96), (64, 64), (4, 4), (5, 7), (15, 15), (16, 48), (17, 300), (300, 16), (27, 257), (33, 31),
    (4, 800), (100, 100), (255, 257), (640, 480), (481, 641), (1000, 20), (1366, 768), (2048, 64), (11, 2048),
    (2047, 99),
)  # fmt: skip


@pytest.mark.parametrize("spec", [SMALL, QWEN, TIGHT], ids=["small", "qwen", "tight"])
@pytest.mark.parametrize("size", SIZES)
def test_patches_are_the_references_to_the_bit(size: tuple[int, int], spec: VisionSpec) -> None:
    image = drawing(*size)
    picture = decode_image(encoded(image, "PNG"), spec)
    processor = processor_for(spec)
    expected = processor(images=[image], return_tensors="np")
    assert picture.grid == tuple(expected["image_grid_thw"][0])
    assert np.array_equal(floats(picture, processor), expected["pixel_values"])
    assert (picture.width, picture.height) == size
    assert spec.tokens(picture.grid) == len(expected["pixel_values"]) // 4


@given(width=st.integers(4, 2048), height=st.integers(4, 2048), spec=st.sampled_from([SMALL, QWEN, TIGHT]))
def test_grids_are_the_references(width: int, height: int, spec: VisionSpec) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    tall, wide = smart_resize(height, width, 32, spec.min_pixels, spec.max_pixels)
    assert grid_for(width, height, spec) == (tall // 16, wide // 16)


@given(width=st.integers(1, 60_000), height=st.integers(1, 60_000))
def test_a_grid_is_refused_or_within_its_bounds(width: int, height: int) -> None:
    if max(width, height) > 200 * min(width, height) or min(width, height) < 4:
        with pytest.raises(InvalidRequest, match=f"{width} by {height} pixels"):
            check_size(width, height, Bounds())
        return
    rows, columns = grid_for(width, height, QWEN)
    assert min(rows, columns) >= 2
    assert rows % 2 == columns % 2 == 0
    assert rows * columns * 256 <= max(QWEN.max_pixels, 2048 * 2048)


def test_a_side_never_vanishes() -> None:
    assert grid_for(320, 8, VisionSpec(min_pixels=0, max_pixels=10**6)) == (2, 20)


def test_a_large_picture_is_brought_to_the_longest_side_in_one_resampling() -> None:
    image = drawing(3000, 1500)
    picture = decode_image(encoded(image, "PNG"), SMALL)
    assert picture.grid == (1, 64, 128)
    assert np.array_equal(pixels(picture), np.asarray(image.resize((2048, 1024), Image.Resampling.LANCZOS)))
    assert (picture.width, picture.height) == (3000, 1500)


def test_a_photograph_far_above_the_cap_is_nearly_what_it_would_be_without_a_draft() -> None:
    image = drawing(6400, 4800)
    picture = decode_image(encoded(image, "JPEG", quality=95), SMALL)
    assert (picture.grid, picture.width, picture.height) == ((1, 96, 128), 6400, 4800)
    true = np.asarray(image.resize((2048, 1536), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels(picture) - true).mean() < 1.5  # of 255, JPEG's own loss included


def test_a_picture_that_leaves_is_a_jpeg_of_what_the_model_would_see() -> None:
    picture = decode_image(encoded(drawing(640, 384), "PNG"), SMALL)
    again = decode_image(jpeg_of(picture, SMALL), SMALL)
    assert again.grid == picture.grid
    assert np.abs(pixels(again).astype(int) - pixels(picture)).mean() < 2


# Digests


def test_the_digest_is_of_bytes_and_rendering() -> None:
    data = encoded(drawing(64, 64), "PNG")
    digests = {
        decode_image(data, SMALL).digest,
        digest_of(data, SMALL, 2048),
        digest_of(data, QWEN, 2048),
        digest_of(data, SMALL, 1024),
        digest_of(data + b"\0", SMALL, 2048),
        hashlib.sha256(data).hexdigest(),
    }
    assert len(digests) == 5
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


# What is shown


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_sets_the_picture_upright(orientation: int, form: str) -> None:
    turned = {
        1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4],
    }[orientation]  # fmt: skip
    image = drawing(96, 64)
    stored = image
    for turn in turned:
        stored = stored.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode_image(encoded(stored, form, exif=exif, **({"lossless": True} if form == "WEBP" else {})), SMALL)
    assert (picture.width, picture.height) == (96, 64)
    difference = np.abs(pixels(picture).astype(int) - np.asarray(image))
    assert difference.max() == 0 or (form == "JPEG" and difference.mean() < 8)


def test_a_broken_exif_block_asks_for_nothing() -> None:
    data = encoded(drawing(64, 64), "PNG", exif=b"Exif\0\0garbage that is no TIFF header at all")
    assert decode_image(data, SMALL).grid == (1, 4, 4)


WHITE, GREY_156 = 255, 156


@pytest.mark.parametrize(
    ("data", "level"),
    [
        (plain_png(b"\xff\0\0\0", bits=8, colour=RGBA), WHITE),
        (plain_png(struct.pack(">4H", 40_000, 1, 1, 0), bits=16, colour=RGBA), WHITE),
        (plain_png(b"\x07\0", bits=8, colour=GREY_ALPHA), WHITE),
        (plain_png(b"\x07", bits=8, colour=GREY, extra=chunk(b"tRNS", b"\0\x07")), WHITE),
        (plain_png(b"\x07\x08\x09", bits=8, colour=RGB, extra=chunk(b"tRNS", b"\0\x07\0\x08\0\x09")), WHITE),
        (plain_png(b"\0", bits=8, colour=PALETTE, extra=chunk(b"PLTE", b"\xff\0\0") + chunk(b"tRNS", b"\0")), WHITE),
        (plain_png(struct.pack(">H", 40_000), bits=16, colour=GREY, extra=chunk(b"tRNS", b"\x9c\x40")), WHITE),
        (plain_png(b"\0", bits=1, colour=GREY, extra=chunk(b"tRNS", b"\0\0")), WHITE),
        (plain_png(b"\x55", bits=2, colour=GREY, extra=chunk(b"tRNS", b"\0\1")), WHITE),
        (plain_png(b"\x77", bits=4, colour=GREY, extra=chunk(b"tRNS", b"\0\7")), WHITE),
        (plain_png(b"\x12\x34" * 3, bits=16, colour=RGB, extra=chunk(b"tRNS", b"\x12\x34" * 3)), WHITE),
        (plain_png(b"\x55", bits=2, colour=GREY), 85),
        (plain_png(struct.pack(">H", 40_000), bits=16, colour=GREY), GREY_156),
        (plain_png(struct.pack(">2H", 40_000, 65_535), bits=16, colour=GREY_ALPHA), GREY_156),
        (plain_png(struct.pack(">3H", 40_000, 40_000, 40_000), bits=16, colour=RGB), GREY_156),
        (plain_png(b"\0", bits=8, colour=PALETTE, extra=chunk(b"PLTE", b"\x9c\x9c\x9c")), GREY_156),
    ],
)
def test_transparency_is_white_and_sixteen_bits_are_scaled(data: bytes, level: int) -> None:
    assert set(decode_image(data, SMALL).patches) == {level}


def test_half_transparent_is_half_white() -> None:
    picture = decode_image(plain_png(b"\xff\0\0\x80", bits=8, colour=RGBA), SMALL)
    assert set(map(tuple, pixels(picture).reshape(-1, 3))) == {(255, 127, 127)}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_shows_the_same_picture(mode: str) -> None:
    image = drawing(96, 64)
    form = "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"
    converted = image.convert(mode)
    picture = decode_image(encoded(converted, form), SMALL)
    difference = np.abs(pixels(picture).astype(int) - np.asarray(converted.convert("RGB")))
    assert difference.mean() < (10 if form == "JPEG" else 1)


def test_an_animation_shows_its_first_frame() -> None:
    frames = [drawing(64, 64, seed) for seed in range(3)]
    for form in ("PNG", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(pixels(decode_image(data, SMALL)), np.asarray(frames[0]))


# What is refused


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (lambda: png(50_000, 50_000, bytes(6251) * 50, bits=1), "image_too_large", "50,000,000"),
        (lambda: png(13_300, 13_300, bytes(1664) * 50, bits=1), "image_too_large", "13300 by 13300"),
        (lambda: png(2**31 - 1, 1, b"\0"), "image_too_large", "50,000,000"),
        (lambda: jpeg_saying(13_000, 13_000), "image_too_large", "13000 by 13000"),
        (lambda: webp_saying(16_000, 16_000), "image_too_large", "16000 by 16000"),
        (lambda: png(0, 0, b""), "invalid_image", "cannot be decoded"),
        (lambda: png(40, 40, b"\0" * 100), "invalid_image", "cannot be decoded"),
        (
            lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
            "invalid_image",
            "cannot be decoded",
        ),
        (lambda: encoded(drawing(1, 1), "PNG"), "image_too_small", "at least 4"),
        (lambda: encoded(drawing(2, 2), "PNG"), "image_too_small", "at least 4"),
        (lambda: encoded(drawing(1, 10_000), "PNG"), "aspect_ratio", "at most 200 times"),
        (lambda: encoded(drawing(20_000, 50), "PNG"), "aspect_ratio", "20000 by 50"),
        (lambda: b"", "invalid_image", "cannot be decoded"),
        (lambda: b"no picture at all", "invalid_image", "cannot be decoded"),
        (lambda: encoded(drawing(64, 64), "TIFF"), "invalid_image", "cannot be decoded"),
        (lambda: b"GIF89a" + b"\xff" * 20, "image_too_large", "65535 by 65535"),
        (lambda: encoded(drawing(40_000, 300), "PNG"), "image_too_large", "30,000"),
    ],
)
def test_bad_pictures_are_refused_by_name(data: Callable[[], bytes], code: str, says: str) -> None:
    crafted = data()
    start = time.thread_time()
    refusal = refused(crafted)
    assert time.thread_time() - start < 0.5
    assert refusal.code == code
    assert says in refusal.message


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_compressed_text_that_swells_is_refused(kind: bytes) -> None:
    body = zlib.compress(bytes(50_000_000), 9)
    extra = chunk(kind, b"k\0\1\0\0\0" + body if kind == b"iTXt" else b"k\0\0" + body)
    assert refused(plain_png(b"\x07", bits=8, colour=GREY, extra=extra)).code == "invalid_image"


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})],
)
def test_a_picture_that_is_cut_short_is_refused(form: str, options: dict[str, Any]) -> None:
    data = encoded(drawing(200, 120), form, **options)
    decode_image(data, SMALL)
    for cut in [len(data) * tenth // 10 for tenth in range(10)] + [len(data) - 1]:
        assert refused(data[:cut]).code in {"invalid_image", "invalid_image_format"}


@given(
    at=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=8),
    form=st.sampled_from(["JPEG", "PNG", "WEBP"]),
)
def test_damage_is_refused_or_shown_but_nothing_else(at: float, junk: bytes, form: str) -> None:
    data = encoded(drawing(48, 40), form)
    place = int(at * len(data))
    damaged = data[:place] + junk + data[place + len(junk) :]
    with suppress(InvalidRequest):
        assert len(decode_image(damaged, SMALL).patches) % 768 == 0
