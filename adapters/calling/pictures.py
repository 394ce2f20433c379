"""A picture made ready to leave: no larger than the server looks at, upright, RGB on white, JPEG of quality 95."""

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from qwen3vl_compat.adapters.calling.failures import InvalidInput

LONGEST_SIDE = 2048
"""Pixels; the server brings larger pictures down to it too."""
QUALITY = 95
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)
"""Orientations that change width and height over."""


def prepared(data: bytes, longest_side: int, param: str) -> bytes | None:
    """The picture as a JPEG, of an animation the first frame; None for what is no picture we know.

    A JPEG that needs nothing is left as it is. Raises InvalidInput for a picture that does not decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large or slightly broken files, which are the caller's own
        try:
            image = Image.open(BytesIO(data), formats=_FORMATS)
            return data if _is_ready(image, longest_side) else _encoded(image, longest_side)
        except UnidentifiedImageError:
            return None
        except Exception as error:  # Pillow raises some twenty kinds for broken files
            raise InvalidInput(f"{param}: the picture cannot be decoded ({error})", param=param) from error


def size_of(source: Path | bytes, param: str) -> tuple[int, int]:
    """Width and height of a picture as it is seen, upright, in pixels; raises InvalidInput for what is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
                width, height = image.size
                lies = image.getexif().get(_ORIENTATION, 1) in _LYING
        except UnidentifiedImageError:
            raise InvalidInput(f"{param}: must be a picture", param=param) from None
        except OSError as error:
            why = error.strerror or str(error)
            raise InvalidInput(f"{param}: cannot be read ({why})", param=param) from error
        except Exception as error:
            raise InvalidInput(f"{param}: the picture cannot be decoded ({error})", param=param) from error
    return (height, width) if lies else (width, height)


def _is_ready(image: Image.Image, longest_side: int) -> bool:
    upright = image.getexif().get(_ORIENTATION, 1) == 1
    return image.format == "JPEG" and image.mode in ("RGB", "L") and upright and max(image.size) <= longest_side


def _encoded(image: Image.Image, longest_side: int) -> bytes:
    deep = image.mode.startswith("I")
    profile = image.info.get("icc_profile") if image.mode == "RGB" else None
    clear = image.has_transparency_data
    if deep:  # 16 bits of grey: plain conversion would clip them
        image = image.convert("I").point(lambda level: level / 256).convert("L")
    elif clear:
        image = image.convert("RGBA")
    # A JPEG comes at a half, a quarter or an eighth where that is enough to make it from.
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    image = ImageOps.exif_transpose(image)
    if clear and not deep:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    out = BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=QUALITY, subsampling=0, icc_profile=profile)
    return out.getvalue()
