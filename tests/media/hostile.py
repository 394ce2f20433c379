"""Files made to hurt: each is small, and made here rather than kept, so that it can be read how."""

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.media.crafted import GREY, chunk, drawing, encoded, jpeg_saying, plain_png, png, webp_saying
from tests.media.films import film, steady

Make = Callable[[], bytes]


def _text_chunk(kind: bytes, size: int) -> bytes:
    body = zlib.compress(bytes(size), 9)
    return chunk(kind, b"k\0\1\0\0\0" + body if kind == b"iTXt" else b"k\0\0" + body)


def _animation(form: str, count: int, side: int) -> bytes:
    frames = [Image.new("P" if form == "GIF" else "RGB", (side, side), number % 7) for number in range(count)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=20, loop=0)


def _many_frames_gif(count: int) -> bytes:
    """A GIF whose one frame's block is repeated."""
    data = encoded(Image.new("P", (64, 64)), "GIF")
    at = data.index(b"\x2c")
    return data[:at] + data[at:-1] * count + b";"


def _wide_tiff() -> bytes:
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + struct.pack("<HHII", 256, 4, 1, 2**31 - 1) * 2


PICTURES: dict[str, Make] = {
    "png 50,000 squared": lambda: png(50_000, 50_000, bytes(6251) * 50, bits=1),
    "png 13,300 squared": lambda: png(13_300, 13_300, bytes(1664) * 50, bits=1),
    "jpeg saying 13,000 squared": lambda: jpeg_saying(13_000, 13_000),
    "jpeg saying 65,535 squared": lambda: jpeg_saying(65_535, 65_535),
    "webp saying 16,383 squared": lambda: webp_saying(16_383, 16_383),
    "png 2^31-1 wide": lambda: png(2**31 - 1, 1, b"\0"),
    "png 0 by 0": lambda: png(0, 0, b""),
    "png with a wrong checksum": lambda: bytes(plain_png(b"\7", bits=8, colour=GREY))[:-20] + b"\0" * 20,
    "png without a header": lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
    "png with 60 MB of text": lambda: plain_png(b"\7", bits=8, colour=GREY, extra=_text_chunk(b"zTXt", 60_000_000)),
    "png with 60 MB of more text": lambda: plain_png(
        b"\7", bits=8, colour=GREY, extra=_text_chunk(b"iTXt", 60_000_000)
    ),
    "png with a profile of 60 MB": lambda: plain_png(
        b"\7", bits=8, colour=GREY, extra=_text_chunk(b"iCCP", 60_000_000)
    ),
    "png with 100 texts of 1 MB": lambda: plain_png(
        b"\7", bits=8, colour=GREY, extra=_text_chunk(b"zTXt", 1_000_000) * 100
    ),
    "gif of 65,535 squared": lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(20),
    "gif of 10,000 frames": lambda: _many_frames_gif(10_000),
    "tiff": _wide_tiff,
    "tiff by Pillow": lambda: encoded(drawing(40, 40), "TIFF"),
    "icon": lambda: encoded(drawing(40, 40), "ICO"),
    "jpeg 2000": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "photoshop": lambda: b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\xff\xff\0\0\xff\xff\0\x08\0\3",
    "fits": lambda: b"SIMPLE  =                    T".ljust(2880),
    "windows metafile": lambda: b"\xd7\xcd\xc6\x9a" + bytes(40),
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "svg with an entity": lambda: (
        b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>"
    ),
    "avif": lambda: b"\0\0\0\x20ftypavif" + bytes(60),
    "words": lambda: b"not a picture at all",
    "1 by 1": lambda: encoded(drawing(1, 1), "PNG"),
    "2 by 2": lambda: encoded(drawing(2, 2), "PNG"),
    "1 by 10,000": lambda: encoded(drawing(1, 10_000), "PNG"),
    "20,000 by 50": lambda: encoded(drawing(20_000, 50), "PNG"),
    **{
        f"{form} cut at {tenth}0 %": lambda form=form, tenth=tenth: _cut(encoded(drawing(200, 120), form), tenth / 10)
        for form in ("JPEG", "PNG", "WEBP")
        for tenth in range(1, 10)
    },
}
"""Pictures that must be refused."""

SHOWN: dict[str, Make] = {
    "png whose rows swell": lambda: png(40, 40, bytes(50_000_000)),
    "apng of 20 frames": lambda: _animation("PNG", 20, 64),
    "webp of 30 large frames": lambda: _animation("WEBP", 30, 1000),
    "27 by 257": lambda: encoded(drawing(27, 257), "PNG"),
    "a transparent red": lambda: encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 0)), "PNG"),
    "16 bits of grey": lambda: encoded(Image.fromarray(np.full((64, 64), 40_000, np.uint16)), "PNG"),
}
"""Strange pictures that are shown: of an animation, the first frame."""


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


# --------------------------------------------------------------------------------------------------------- videos


def address_takers(canary: Path, port: int) -> dict[str, bytes]:
    """Texts that FFmpeg, left to itself, takes for lists of files or addresses, and opens them."""
    local = f"http://127.0.0.1:{port}/"
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    session += f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        "mediaPresentationDuration='PT9S'>"
        f"<Period><AdaptationSet mimeType='video/mp4'><Representation id='1' bandwidth='1'><BaseURL>{local}</BaseURL>"
        "<SegmentBase indexRange='0-1'/></Representation></AdaptationSet></Period></MPD>"
    )
    return {
        "list of files, relative": f"ffconcat version 1.0\nfile '{canary.name}'\n".encode(),
        "list of files, absolute": f"ffconcat version 1.0\nfile '{canary}'\n".encode(),
        "list of files, by URL": f"ffconcat version 1.0\nfile 'file://{canary}'\n".encode(),
        "playlist of a file": playlist.format(canary).encode(),
        "playlist of a URL": playlist.format(f"{local}a.ts").encode(),
        "playlist with a key": playlist.format("a.ts")
        .replace("#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{local}"\n#EXTINF')
        .encode(),
        "DASH": dash.encode(),
        "session description": session.encode(),
        "session description, UDP": session.replace("RTP/AVP", "udp").encode(),
        "subtitles": b"1\n00:00:00,000 --> 00:00:09,000\nHello\n",
        "filter graph": b"movie=" + str(canary).encode(),
        "raw pictures": b"YUV4MPEG2 W16384 H16384 F25:1 Ip A0:0 C420\nFRAME\n",
        "image sequence": f"{canary.parent}/%03d.png".encode(),
        "redirect": f"rtsp://127.0.0.1:{port}/x".encode(),
    }


def _streams(count: int) -> bytes:
    out = BytesIO()
    with av.open(out, "w", format="matroska") as made:
        streams: list[Any] = [made.add_stream("mpeg4", rate=5) for _ in range(count)]
        for stream in streams:
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32)))
        for stream in streams:
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                made.mux(packet)
    return out.getvalue()


def sound(container: str = "mp4", codec: str = "aac") -> bytes:
    """A container with sound alone."""
    out = BytesIO()
    with av.open(out, "w", format=container) as made:
        stream: Any = made.add_stream(codec, rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            made.mux(packet)
    return out.getvalue()


def _short_film(**options: Any) -> bytes:
    return film(steady([drawing(64, 64, seed=number) for number in range(10)], 5), **options)


def _table_in_front(data: bytes) -> bytes:
    """The same mp4 with its table before the frames, as files for the web have it."""
    at = data.index(b"moov") - 4
    table, frames = data[at:], data[:at]
    head = int.from_bytes(frames[:4], "big")
    place = table.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", table, place)
    moved = [where + len(table) for where in struct.unpack_from(f">{count}I", table, place + 4)]
    table = table[: place + 4] + struct.pack(f">{count}I", *moved) + table[place + 4 + 4 * count :]
    return frames[:head] + table + frames[head:]


VIDEOS: dict[str, Make] = {
    "mp4 cut in half": lambda: _cut(_short_film(), 0.5),
    "mp4 cut in half, its table in front": lambda: _cut(_table_in_front(_short_film()), 0.7),
    "mp4 in fragments, cut in half": lambda: _cut(_short_film(movflags="frag_keyframe+empty_moov", gop=2), 0.6),
    "webm cut in half": lambda: _cut(_short_film(container="webm", codec="libvpx-vp9"), 0.6),
    "mkv cut in half": lambda: _cut(_short_film(container="matroska"), 0.6),
    "mp4, its head only": lambda: _short_film()[:40],
    "mp4 without its frames": lambda: _without_frames(_short_film()),
    "sound alone": sound,
    "a codec off the list": lambda: _short_film(codec="ffv1", container="matroska"),
    "200 streams": lambda: _streams(200),
    "webm, its head only": lambda: b"\x1a\x45\xdf\xa3" + bytes(60),
    "webm of nothing": lambda: b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 60,
    "a picture": lambda: encoded(drawing(64, 64), "PNG"),
    "words": lambda: b"not a video at all",
    "mp4 of noise behind a good head": lambda: _short_film()[:200] + bytes(range(256)) * 40,
}
"""Videos that must be refused."""

PLAYED: dict[str, Make] = {
    "mp4 saying 65,535 squared": lambda: _said_size(_short_film(codec="mpeg4"), 65_535),
    "mp4 with its table in front": lambda: _table_in_front(_short_film()),
    "mp4 with a few bytes behind it": lambda: _short_film() + bytes(20),
    "webm": lambda: _short_film(container="webm", codec="libvpx-vp9"),
    "webm of unknown length": lambda: _short_film(container="webm", codec="libvpx-vp9", live=True),
    "mp4 in fragments": lambda: _short_film(movflags="frag_keyframe+empty_moov"),
}
"""Strange videos that are shown."""


def _without_frames(data: bytes) -> bytes:
    """An mp4 whose table of samples is empty."""
    at = data.index(b"stsz")
    return data[: at + 12] + struct.pack(">I", 0) + data[at + 16 :]


def _said_size(data: bytes, side: int) -> bytes:
    """An mp4 whose description says another size than its frames have."""
    at = data.index(b"mp4v") + 4 + 24
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


# ------------------------------------------------------------------------------------------------------ documents


def pdf(objects: list[bytes], *, root: int = 1) -> bytes:
    """A PDF of these objects, numbered from 1."""
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, root, start)
    return bytes(out)


def stream(body: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n" % (len(body), entries) + body + b"\nendstream"


CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
ONE_PAGE = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"


def _page(box: bytes = b"[0 0 200 200]", extra: bytes = b"") -> bytes:
    return b"<< /Type /Page /Parent 2 0 R /MediaBox " + box + b" " + extra + b" >>"


def _nested(levels: int) -> bytes:
    """Forms that each draw the next one ten times."""
    objects = [
        CATALOG,
        ONE_PAGE,
        _page(extra=b"/Resources << /XObject << /F 5 0 R >> >> /Contents 4 0 R"),
        stream(b"/F Do"),
    ]
    for level in range(levels):
        inner = b"/Resources << /XObject << /F %d 0 R >> >>" % (6 + level) if level < levels - 1 else b""
        body = b"/F Do " * 10 if level < levels - 1 else b"0 0 1 1 re f"
        objects.append(stream(body, b"/Type /XObject /Subtype /Form /BBox [0 0 200 200] " + inner))
    return pdf(objects)


def _swelling(size: int) -> bytes:
    packed = zlib.compress(b"0 0 1 1 re f\n" * (size // 13), 1)
    return pdf([CATALOG, ONE_PAGE, _page(extra=b"/Contents 4 0 R"), stream(packed, b"/Filter /FlateDecode")])


def many_pages(count: int) -> bytes:
    """So many empty pages."""
    kids = b" ".join(b"3 0 R" for _ in range(count))
    return pdf([CATALOG, b"<< /Type /Pages /Kids [" + kids + b"] /Count %d >>" % count, _page()])


DOCUMENTS: dict[str, Make] = {
    "pdf, its head only": lambda: b"%PDF-1.7\n",
    "pdf cut in half": lambda: _cut(many_pages(3), 0.5),
    "pdf of 100,000 pages": lambda: many_pages(100_000),
    "pdf without pages": lambda: pdf([CATALOG, b"<< /Type /Pages /Kids [] /Count 0 >>"]),
    "pdf whose forms draw a thousand million": lambda: _nested(9),
    "pdf whose content swells to 700 MB": lambda: _swelling(700_000_000),
    "pdf with a page 1:10,000": lambda: pdf([CATALOG, ONE_PAGE, _page(b"[0 0 10 100000]")]),
    "pdf with a page of no size": lambda: pdf([CATALOG, ONE_PAGE, _page(b"[0 0 nan 5]")])[:60],
    "words": lambda: b"not a document at all",
}
"""Documents that must be refused."""

READ: dict[str, Make] = {
    "pdf with a page of 14,400 points": lambda: pdf([CATALOG, ONE_PAGE, _page(b"[0 0 14400 14400]")]),
    "pdf with a page of a million points": lambda: pdf([CATALOG, ONE_PAGE, _page(b"[0 0 1000000 1000000]")]),
    "pdf whose count lies": lambda: pdf([CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 7 >>", _page()]),
    "pdf that starts a program": lambda: pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R /OpenAction << /S /Launch /F (/bin/sh) >> >>",
            ONE_PAGE,
            _page(extra=b"/AA << /O << /S /URI /URI (http://127.0.0.1/) >> >>"),
        ]
    ),
    "pdf whose pages are one another's parents": lambda: pdf(
        [CATALOG, b"<< /Type /Pages /Kids [3 0 R] /Count 1 /Parent 2 0 R >>", _page()]
    ),
}
"""Strange documents that are shown."""


def corpus() -> Iterator[tuple[str, str, bytes]]:
    """(What it is, what it claims to be, its bytes) of everything here but what FFmpeg takes for addresses."""
    for claim, sets in (("image", (PICTURES, SHOWN)), ("video", (VIDEOS, PLAYED)), ("document", (DOCUMENTS, READ))):
        for name, make in (item for one in sets for item in one.items()):
            yield name, claim, make()
