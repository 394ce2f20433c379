"""Kinds and sizes are read from the first bytes, and no bytes make the reading fail or take long."""

import time
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.media.sniff import NAMES, is_whole_png, is_whole_video, kind_of, size_of
from tests.media.crafted import chunk, drawing, encoded, plain_png

HEADS = {
    "gif": b"GIF89a\x01\x00\x01",
    "bmp": b"BM\x46\0\0\0\0\0\0\0",
    "tiff": b"II*\0\x08\0\0\0",
    "ico": b"\0\0\x01\0\x01\0",
    "psd": b"8BPS\0\x01",
    "avif": b"\0\0\0\x1cftypavif",
    "heic": b"\0\0\0\x18ftypheic",
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "jxl": b"\xff\x0a\x00",
    "svg": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'>",
    "eps": b"%!PS-Adobe-3.0",
    "pdf": b"\n\n%PDF-1.7",
    "mp4": b"\0\0\0\x20ftypisom",
    "webm": b"\x1a\x45\xdf\xa3",
    "avi": b"RIFF\0\0\0\0AVI LIST",
    "wav": b"RIFF\0\0\0\0WAVEfmt ",
    "mp3": b"ID3\x04",
    "ogg": b"OggS",
    "zip": b"PK\x03\x04",
    "gzip": b"\x1f\x8b\x08",
    "html": b"<!DOCTYPE html>",
}


@pytest.mark.parametrize(("kind", "head"), HEADS.items())
def test_kinds_are_told_by_their_first_bytes(kind: str, head: bytes) -> None:
    assert kind_of(head) == kind
    assert size_of(kind, head) is None
    assert kind in NAMES


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"icc_profile": b"x" * 10}),
    ],
)
def test_sizes_are_read_from_headers(form: str, options: dict[str, object]) -> None:
    data = encoded(drawing(301, 77), form, **options)
    assert kind_of(data) == form.lower()
    assert size_of(form.lower(), data) == (301, 77)


@pytest.mark.parametrize("data", [b"", b"\xff", b"hello", b"<p>", b"RIFF", b"\0" * 2000])
def test_what_is_nothing_known(data: bytes) -> None:
    assert kind_of(data) is None


@given(
    head=st.sampled_from([*HEADS.values(), b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]),
    tail=st.binary(),
)
def test_nothing_raises(head: bytes, tail: bytes) -> None:
    data = head + tail
    kind = kind_of(data)
    assert kind is None or size_of(kind, data) is None or min(size_of(kind, data) or ()) >= 0
    is_whole_png(data)
    assert is_whole_video(BytesIO(data), "mp4") in (True, False)
    assert is_whole_video(BytesIO(data), "webm") in (True, False)


@pytest.mark.parametrize("junk", [b"\xff" * 20_000_000, b"\xff\x01" * 10_000_000, b"\xff\xe0\0\x02" * 5_000_000])
def test_a_jpeg_of_markers_only_takes_no_time(junk: bytes) -> None:
    start = time.thread_time()
    assert size_of("jpeg", b"\xff\xd8" + junk) is None
    assert time.thread_time() - start < 0.5


def test_a_png_is_whole_when_its_critical_chunks_are() -> None:
    good = plain_png(b"\x07", bits=8, colour=0)
    assert is_whole_png(good)
    assert is_whole_png(plain_png(b"\x07", bits=8, colour=0, extra=chunk(b"tEXt", b"k\0v")[:-1] + b"?"))
    assert not is_whole_png(good[:-12])
    for at in range(8, len(good)):
        assert not is_whole_png(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]), at
