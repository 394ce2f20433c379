"""A received picture becomes uint8 patches on the model's grid, bit-identical to transformers' own image processor.

Reference: `Qwen2VLImageProcessorPil` of transformers 5.23, before its rescaling and normalisation, which the device
does later. Never imports torch or transformers.
"""

import hashlib
import math
import threading
import warnings
from functools import cache
from io import BytesIO

import numpy as np
import PIL
from msgspec import Struct
from PIL import Image, features

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.sniff import NAMES, is_whole_png, kind_of, size_of
from qwen3vl_compat.messages import Picture

LONGEST_SIDE = 2048
"""Pixels that a picture's longer side keeps at most."""
PIXEL_LIMIT = 50_000_000
"""Pixels a picture may announce; more are refused before anything is decoded."""
SMALLEST_SIDE = 4
"""Pixels a side must have at least: less shows nothing, however far it is enlarged."""
ASPECT_LIMIT = 200
"""How many times longer one side may be than the other; the reference's own limit."""

_RENDERING = "1"
"""Part of every digest: raise it when the same bytes come to give other patches."""
_FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation."""
_ORIENTATION = 0x0112

_quiet = threading.Lock()
"""`warnings.catch_warnings` changes the whole process; held only while headers are read, never while pixels are."""


class VisionSpec(Struct, frozen=True, kw_only=True):
    """How a checkpoint looks at pictures (its `preprocessor_config.json`): sides in pixels, budgets in pixels."""

    min_pixels: int
    max_pixels: int
    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def factor(self) -> int:
        """Pixels of a token's side; both sides of every grid are multiples of it."""
        return self.patch_size * self.merge_size

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """How many tokens a grid (times, rows, columns of patches) takes in the prompt."""
        times, rows, columns = grid
        return times * rows * columns // self.merge_size**2


def grid_for(
    width: int, height: int, spec: VisionSpec, longest_side: int = LONGEST_SIDE, param: str | None = None
) -> tuple[int, int]:
    """(rows, columns) of patches for a picture of this size in pixels, as the reference's `smart_resize` has them.

    The longer side is brought down to `longest_side` first; min_pixels may bring it up again.
    InvalidRequest: `aspect_ratio`, `image_too_small`.
    """
    if max(width, height) > ASPECT_LIMIT * min(width, height):
        limit = f"one side may be at most {ASPECT_LIMIT} times the other"
        raise InvalidRequest(f"The picture is {width} by {height} pixels; {limit}.", param=param, code="aspect_ratio")
    if min(width, height) < SMALLEST_SIDE:
        limit = f"each side must have at least {SMALLEST_SIDE}"
        raise InvalidRequest(
            f"The picture is {width} by {height} pixels; {limit}.", param=param, code="image_too_small"
        )
    if max(width, height) > longest_side:
        scale = longest_side / max(width, height)
        width, height = round(width * scale), round(height * scale)
    rows, columns = (side // spec.patch_size for side in _smart_size(height, width, spec))
    return rows, columns


def _smart_size(height: int, width: int, spec: VisionSpec) -> tuple[int, int]:
    """The reference's arithmetic to the letter: sides in pixels, rounded half to even, then fitted to the budgets."""
    factor = spec.factor
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if tall * wide > spec.max_pixels:
        beta = math.sqrt((height * width) / spec.max_pixels)
        tall, wide = math.floor(height / beta / factor) * factor, math.floor(width / beta / factor) * factor
    elif tall * wide < spec.min_pixels:
        beta = math.sqrt(spec.min_pixels / (height * width))
        tall, wide = math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return max(factor, tall), max(factor, wide)


def digest_of(data: bytes, spec: VisionSpec, longest_side: int = LONGEST_SIDE) -> str:
    """A name, 64 hexadecimal digits, for the patches these bytes give: same name, same patches."""
    shape = (spec.min_pixels, spec.max_pixels, spec.patch_size, spec.merge_size, longest_side, _RENDERING, _decoders())
    digest = hashlib.sha256(repr(shape).encode())
    digest.update(data)
    return digest.hexdigest()


@cache
def _decoders() -> str:
    """The versions of all that turns bytes into pixels."""
    parts = ("jpg", "libjpeg_turbo", "zlib", "webp")
    return " ".join([PIL.__version__, *(str(features.version(part)) for part in parts)])


def announced_tokens(data: bytes, spec: VisionSpec) -> int:
    """Tokens a picture will take by what its header says; 0 for one that will be refused, which says why itself."""
    kind = kind_of(data)
    size = size_of(kind, data) if kind in _FORMATS else None
    try:
        return spec.tokens((1, *grid_for(*size, spec))) if size and all(size) else 0
    except InvalidRequest:
        return 0


def decode_image(data: bytes, spec: VisionSpec, param: str | None = None, longest_side: int = LONGEST_SIDE) -> Picture:
    """Check and decode a JPEG, PNG or WebP picture: upright, on white, resampled once, cut into patches.

    Of an animation, the first frame. `param` names the field in error messages. InvalidRequest: `invalid_image_format`,
    `image_too_large`, `image_too_small`, `aspect_ratio`, and `invalid_image` for bytes that do not decode to their end.
    """
    kind = kind_of(data)
    if kind not in _FORMATS:
        what = f"is {NAMES[kind]}" if kind else "is of no known kind"
        message = f"The file {what}; a picture must be JPEG, PNG or WebP."
        raise InvalidRequest(message, param=param, code="invalid_image_format")
    announced = size_of(kind, data)
    if announced is None or 0 in announced:
        raise _undecodable(param)
    _check_pixels(announced, param)
    if kind == "png" and not is_whole_png(data):
        raise _undecodable(param)
    try:
        image = _upright(_opened(data, _FORMATS[kind], param))
        width, height = image.size
        rows, columns = grid_for(width, height, spec, longest_side, param)
        target = (columns * spec.patch_size, rows * spec.patch_size)
        shrinks = max(width, height) > longest_side
        kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
        patches = _patches(_on_white(image).resize(target, kernel), spec)
    except InvalidRequest:
        raise
    except Exception:  # Pillow raises some twenty kinds for broken files, and their texts hold addresses and paths
        raise _undecodable(param) from None
    return Picture(digest_of(data, spec, longest_side), patches, (1, rows, columns), width, height)


def _undecodable(param: str | None) -> InvalidRequest:
    return InvalidRequest(
        "The picture cannot be decoded: it is damaged or cut short.", param=param, code="invalid_image"
    )


def _check_pixels(size: tuple[int, int], param: str | None) -> None:
    width, height = size
    if width * height > PIXEL_LIMIT:
        message = f"The picture is {width} by {height} pixels; at most {PIXEL_LIMIT:,} in all are accepted."
        raise InvalidRequest(message, param=param, code="image_too_large")


def _opened(data: bytes, form: str, param: str | None) -> Image.Image:
    """The picture with its pixels loaded; its size is checked again, as the decoder and not our reader sees it."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(BytesIO(data), formats=[form])
    _check_pixels(image.size, param)
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turned or mirrored as its EXIF orientation asks; an EXIF block that cannot be read asks for nothing."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        except Exception:
            turn = None
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white, and 16-bit grey keeps its upper byte as Pillow does for 16-bit colour."""
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        clear = image.info.get("transparency")
        grey = np.where(levels == clear, 255, levels >> 8) if isinstance(clear, int) else levels >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _patches(image: Image.Image, spec: VisionSpec) -> bytes:
    """Patches of an RGB picture that fills its grid, in the reference's order, [rows * columns, 3 * side * side].

    That order is (row block, column block, row in block, column in block, channel, y, x). A patch's line of pixels
    moves as one item of `side` bytes.
    """
    side, merge = spec.patch_size, spec.merge_size
    rows, columns = image.height // side, image.width // side
    planes = np.stack([np.asarray(band) for band in image.split()])
    lines = planes.view(f"V{side}").reshape(3, rows // merge, merge, side, columns // merge, merge)
    return lines.transpose(1, 4, 2, 5, 0, 3).tobytes()
