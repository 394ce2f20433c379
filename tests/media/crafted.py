"""Pictures made byte by byte, most of them ones that no encoder would write."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""PNG colour types."""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes, *, bits: int = 8, colour: int = GREY, extra: bytes = b"") -> bytes:
    """A PNG whose header says what it is told to; `pixels` are filtered rows, `extra` chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body


def plain_png(pixel: bytes, *, bits: int, colour: int, extra: bytes = b"") -> bytes:
    """40 by 40 pixels of one colour; `pixel` is a whole byte of them where several share one."""
    return png(40, 40, (b"\0" + pixel * (40 * min(bits, 8) // 8)) * 40, bits=bits, colour=colour, extra=extra)


def drawing(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft shapes with some noise: compresses like a photograph, and no two regions are alike."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def jpeg_saying(width: int, height: int) -> bytes:
    """A small JPEG with another size written into its frame header."""
    data = bytearray(encoded(drawing(64, 64), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_saying(width: int, height: int) -> bytes:
    """An extended WebP file whose canvas is this large."""
    canvas = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + encoded(drawing(64, 64), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body
