"""What received bytes are, how large a picture they announce, and whether its file is whole, without decoding it.

A declared media type is never believed: only these marks count. Nothing here raises.
"""

import re
import zlib
from collections.abc import Callable
from os import SEEK_END
from typing import BinaryIO

NAMES = {
    "jpeg": "a JPEG picture",
    "png": "a PNG picture",
    "webp": "a WebP picture",
    "gif": "a GIF picture",
    "bmp": "a BMP picture",
    "tiff": "a TIFF picture",
    "ico": "an icon",
    "psd": "a Photoshop document",
    "avif": "an AVIF picture",
    "heic": "a HEIC picture",
    "jp2": "a JPEG 2000 picture",
    "jxl": "a JPEG XL picture",
    "svg": "an SVG drawing",
    "eps": "a PostScript document",
    "pdf": "a PDF document",
    "mp4": "an MP4 video",
    "webm": "a WebM or Matroska video",
    "avi": "an AVI video",
    "wav": "a WAV sound",
    "mp3": "an MP3 sound",
    "ogg": "an Ogg sound or video",
    "zip": "a ZIP archive",
    "gzip": "a gzip archive",
    "html": "an HTML page",
}
"""Each kind that is recognised, as a message may call it."""

_MARKS = tuple(
    (kind, re.compile(mark, re.DOTALL))
    for kind, mark in (
        ("jpeg", rb"\xff\xd8\xff"),
        ("png", rb"\x89PNG\r\n\x1a\n"),
        ("webp", rb"RIFF....WEBP"),
        ("gif", rb"GIF8[79]a"),
        ("bmp", rb"BM.{4}\x00\x00\x00\x00"),
        ("tiff", rb"II[*+]\x00|MM\x00[*+]"),
        ("ico", rb"\x00\x00[\x01\x02]\x00"),
        ("psd", rb"8BPS"),
        ("avif", rb"....ftypavi[fs]"),
        ("heic", rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)"),
        ("mp4", rb"....ftyp"),
        ("jp2", rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"),
        ("jxl", rb"\x00\x00\x00\x0cJXL |\xff\x0a"),
        ("eps", rb"%!PS|\xc5\xd0\xd3\xc6"),
        ("webm", rb"\x1a\x45\xdf\xa3"),
        ("avi", rb"RIFF....AVI "),
        ("wav", rb"RIFF....WAVE"),
        ("mp3", rb"ID3|\xff[\xfb\xf3\xf2]"),
        ("ogg", rb"OggS"),
        ("zip", rb"PK\x03\x04"),
        ("gzip", rb"\x1f\x8b\x08"),
        ("svg", rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.{0,900}?)?<svg[\s>]"),
        ("html", rb"(?i:(?:\xef\xbb\xbf)?\s*<(?:!doctype|html))"),
        ("pdf", rb".{0,1019}?%PDF-"),
    )
)

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STEPS = 50_000
"""Segments or chunks looked at in one file; more are an attack on Pillow, which walks them as we do."""

_BOXES = 1_000_000
"""The same of an mp4: two for each fragment, which may be half a second long."""


def kind_of(data: bytes) -> str | None:
    """The kind (a key of NAMES) that the first kilobyte shows, or None if it shows none."""
    head = data[:1024]
    return next((kind for kind, mark in _MARKS if mark.match(head)), None)


def size_of(kind: str, data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels as a jpeg, png, webp or gif header announces them, or None if it announces nothing."""
    reader = _SIZE_READERS.get(kind)
    return reader(data) if reader else None


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _gif_size(data: bytes) -> tuple[int, int] | None:
    """The screen's size; a frame that is larger is found by the decoder (GIF89a, section 18)."""
    if len(data) < 10:
        return None
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The canvas of an extended file, else the one picture's own size (RFC 9649, sections 2.5 to 2.7)."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The first frame header's size, if pixels follow it; segments are stepped over by length (ITU T.81, annex B)."""
    at, size = 2, None
    for _ in range(_STEPS):
        marker = data[at + 1 : at + 2]
        if data[at : at + 1] != b"\xff" or not marker or marker == b"\xd9":
            return None
        if marker == b"\xda":
            return size
        if marker[0] in _FRAME_HEADERS and size is None and len(data) >= at + 9:
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if marker == b"\xff":  # a fill byte
            at += 1
        elif marker == b"\x01" or 0xD0 <= marker[0] <= 0xD8:  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def is_whole_png(data: bytes) -> bool:
    """Whether every critical chunk is unharmed and the end chunk is there; decoders look at neither."""
    at, view = 8, memoryview(data)
    for _ in range(_STEPS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if len(data) < end + 4:
            return False
        critical = not data[at + 4] & 0x20  # bit 5 of the first letter tells
        if critical and zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if kind == b"IEND":
            return True
        at = end + 4
    return False


def is_whole_video(file: BinaryIO, kind: str) -> bool:
    """Whether a file, an mp4 or webm, holds all that its outermost parts announce: the first half of one does not.

    An mp4 is a row of boxes (ISO/IEC 14496-12, section 4.2), a webm two elements (RFC 8794, section 4). Decoders take
    what there is for the whole.
    """
    size = file.seek(0, SEEK_END)
    step = _box if kind == "mp4" else _element
    at = 0
    for _ in range(_BOXES):
        file.seek(at)
        length = step(file.read(16))
        if length is None or at == size:
            return True
        at += length
        if at > size:
            return False
    return False


def _box(head: bytes) -> int | None:
    """Bytes of the box that begins so; None if it goes on to the end, or is none."""
    if len(head) < 8:
        return None
    length = int.from_bytes(head[:4], "big")
    length = int.from_bytes(head[8:16], "big") if length == 1 else length
    return length if length >= 8 else None


def _element(head: bytes) -> int | None:
    """Bytes of the element that begins so; None if it does not say, as in a live stream, or is none."""
    if not head or not head[0]:
        return None
    at = 9 - head[0].bit_length()  # the zeros before the first one tell how many bytes an id or a length has
    if len(head) <= at or not head[at]:
        return None
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[at : at + width], "big") & unknown
    return None if length == unknown else at + width + length


_SIZE_READERS: dict[str, Callable[[bytes], tuple[int, int] | None]] = {
    "jpeg": _jpeg_size,
    "png": _png_size,
    "webp": _webp_size,
    "gif": _gif_size,
}
