"""Videos and documents made for tests: words on a screen, in any container, at any rate."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import pypdfium2
from PIL import Image

TICKS = 1000
"""Time stamps a second, so that frames can stand at any millisecond."""
ENDINGS = {"mp4": "mp4", "webm": "webm", "matroska": "mkv"}


def film(
    frames: Iterable[tuple[Image.Image, float]],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    rate: int = 25,
    gop: int = 12,
    options: dict[str, str] | None = None,
    ticks: int = 0,
    movflags: str = "",
    live: bool = False,
) -> bytes:
    """A video of these pictures, each at its time in seconds: at a steady `rate`, or else so many `ticks` a second."""
    out = BytesIO()
    flags = {"movflags": movflags} if movflags else {"live": "1"} if live else {}
    with av.open(out, "w", format=container, options=flags) as made:
        stream: Any = None
        for image, seconds in frames:
            if stream is None:
                stream = made.add_stream(codec, rate=rate)
                stream.width, stream.height = image.size
                stream.pix_fmt = "yuv420p"
                stream.codec_context.gop_size = gop
                stream.options = options or {}
                if ticks:
                    stream.codec_context.time_base = Fraction(1, ticks)
            frame = av.VideoFrame.from_image(image)
            base = Fraction(1, ticks or rate)
            frame.pts, frame.time_base = round(seconds / base), base
            for packet in stream.encode(frame):
                made.mux(packet)
        for packet in stream.encode(None):
            made.mux(packet)
    return out.getvalue()


def steady(images: Sequence[Image.Image], rate: float) -> list[tuple[Image.Image, float]]:
    """Pictures, so many a second."""
    return [(image, number / rate) for number, image in enumerate(images)]


def pdf_of(images: Sequence[Image.Image], dots: float = 144.0, texts: Sequence[str] = ()) -> bytes:
    """A document of one page for each picture, which fills it at so many dots to the inch."""
    document: Any = pypdfium2.PdfDocument.new()
    for image in images:
        width, height = (side * 72 / dots for side in image.size)
        page = document.new_page(width, height)
        stored = BytesIO()
        image.convert("RGB").save(stored, "JPEG", quality=95, subsampling=0)
        stored.seek(0)
        held = pypdfium2.PdfImage.new(document)
        held.load_jpeg(stored, pages=[page], inline=True)
        held.set_matrix(pypdfium2.PdfMatrix().scale(width, height))
        page.insert_obj(held)
        page.gen_content()
    out = BytesIO()
    document.save(out)
    return out.getvalue()


def long_film(scenes: Sequence[Image.Image], seconds: int, *, rate: int = 25, gop: int = 50) -> bytes:
    """An MP4 that shows each scene for so many seconds.

    Every scene is encoded once, as one group of pictures, which is then repeated: hours are made in seconds.
    """
    out = BytesIO()
    with av.open(out, "w", format="mp4") as made:
        stream: Any = made.add_stream("libx264", rate=rate)
        stream.width, stream.height = scenes[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = {"preset": "veryfast", "crf": "14", "bf": "0", "x264-params": "scenecut=0:rc-lookahead=0"}
        packets: list[tuple[bytes, bool]] = []
        for number in range(len(scenes) * gop):
            frame = av.VideoFrame.from_image(scenes[number // gop])
            frame.pts, frame.time_base = number, Fraction(1, rate)
            packets += [(bytes(packet), packet.is_keyframe) for packet in stream.encode(frame)]
        packets += [(bytes(packet), packet.is_keyframe) for packet in stream.encode(None)]
        for number in range(len(scenes) * seconds * rate):
            scene = number // (seconds * rate)
            data, key = packets[scene * gop + number % (seconds * rate) % gop]
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, rate), 1
            packet.pts = packet.dts = number
            packet.is_keyframe = key
            made.mux(packet)
    return out.getvalue()
