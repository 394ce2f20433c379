"""A received picture becomes uint8 patches on the model's grid, bit-identical to transformers' own image processor.

Reference: `Qwen2VLImageProcessorPil` of transformers 5.23, before its rescaling and normalisation, which the device
does later. Never imports torch or transformers.
"""

import hashlib
import math
import warnings
from collections.abc import Sequence
from functools import cache
from io import BytesIO

import msgspec
import numpy as np
import PIL
from PIL import Image, features

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.limits import LONGEST_SIDE, Bounds, VisionSpec
from qwen3vl_compat.media.sniff import is_whole_png, kind_of, size_of
from qwen3vl_compat.messages import Picture

USUAL = Bounds()
_RENDERING = "3"
"""Part of every digest: raise it when the same bytes come to give other patches."""
_FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF"}
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
_TURNED = {Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90}
_ORIENTATION = 0x0112


def grid_for(width: int, height: int, spec: VisionSpec, longest_side: int = LONGEST_SIDE) -> tuple[int, int]:
    """(rows, columns) of patches for a picture of this size in pixels, as the reference's `smart_resize` has them.

    The longer side is brought down to `longest_side` first; min_pixels may bring it up again.
    """
    if max(width, height) > longest_side:
        scale = longest_side / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    rows, columns = (side // spec.patch_size for side in _smart_size(height, width, spec))
    return rows, columns


def check_size(width: int, height: int, bounds: Bounds) -> None:
    """Refuse a picture of this size in pixels: `image_too_large`, `image_too_small`, `aspect_ratio`."""
    if width * height > bounds.pixels:
        fault, code = f"at most {bounds.pixels:,} pixels in all are accepted", "image_too_large"
    elif max(width, height) > bounds.longest:
        fault, code = f"each side may have at most {bounds.longest:,}", "image_too_large"
    elif max(width, height) > bounds.aspect * min(width, height):
        fault, code = f"one side may be at most {bounds.aspect} times the other", "aspect_ratio"
    elif min(width, height) < bounds.shortest:
        fault, code = f"each side must have at least {bounds.shortest}", "image_too_small"
    else:
        return
    raise InvalidRequest(f"the picture is {width} by {height} pixels; {fault}", code=code)


def announced_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels by a picture's header alone; InvalidRequest `invalid_image` if it tells none."""
    size = size_of(kind_of(data) or "", data)
    if size is None or 0 in size:
        raise undecodable()
    return size


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


def digest_of(data: bytes, spec: VisionSpec, *rendering: object) -> str:
    """A name, 64 hexadecimal digits, for the patches these bytes give in this rendering: same name, same patches."""
    digest = hashlib.sha256(repr((msgspec.structs.astuple(spec), rendering, _RENDERING, decoders())).encode())
    digest.update(data)
    return digest.hexdigest()


@cache
def decoders() -> str:
    """The versions of all that turns bytes into pixels."""
    parts = ("jpg", "libjpeg_turbo", "zlib", "webp")
    return " ".join([PIL.__version__, *(str(features.version(part)) for part in parts)])


def decode_image(
    data: bytes,
    spec: VisionSpec,
    bounds: Bounds = USUAL,
    *,
    longest_side: int = LONGEST_SIDE,
) -> Picture:
    """Check and decode a JPEG, PNG, WebP or GIF picture: upright, on white, resampled once, cut into patches.

    Of an animation, the first frame. InvalidRequest: those of `check_size`, and `invalid_image` for bytes that do not
    decode to their end. Allocates without bounds of its own: made for a process that has some.
    """
    try:
        image, width, height = opened_image(data, bounds, spec, longest_side)
        rows, columns = grid_for(width, height, spec, longest_side)
        shrinks = max(width, height) > longest_side
        kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
        patches = patches_of([fitted(image, rows, columns, spec, kernel)], spec)
    except InvalidRequest:
        raise
    except Exception:  # Pillow raises some twenty kinds for broken files, and their texts hold addresses and paths
        raise undecodable() from None
    return Picture(digest_of(data, spec, longest_side), patches, (1, rows, columns), width, height)


def undecodable() -> InvalidRequest:
    """The one refusal of pictures that do not decode."""
    return InvalidRequest("the picture cannot be decoded: it is damaged or cut short", code="invalid_image")


def opened_image(data: bytes, bounds: Bounds, spec: VisionSpec, longest_side: int) -> tuple[Image.Image, int, int]:
    """The picture upright in RGB on white, perhaps at a part of its size, and its full width and height in pixels.

    Its size is checked as our reader sees it, then as the decoder does.
    """
    kind = kind_of(data)
    if kind not in _FORMATS:
        raise undecodable()
    check_size(*announced_size(data), bounds)
    if kind == "png" and not is_whole_png(data):
        raise undecodable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(BytesIO(data), formats=[_FORMATS[kind]])
        width, height = image.size
        check_size(width, height, bounds)
        _draft(image, spec, longest_side)
        image.load()
        if kind == "png":
            _scale_clear(image, depth=data[24])
        turn = _turn(image)
    if turn is not None:
        image = image.transpose(turn)
        if turn in _TURNED:
            width, height = height, width
    return _on_white(image), width, height


def _scale_clear(image: Image.Image, depth: int) -> None:
    """Bring a PNG's one transparent colour to eight bits, as Pillow does its pixels: tRNS holds it at the file's depth.

    A palette's transparency is of another kind, and 16-bit grey keeps its depth.
    """
    clear: int | tuple[int, ...] | bytes | None = image.info.get("transparency")
    if depth == 8 or image.mode not in ("1", "L", "RGB") or not isinstance(clear, int | tuple):
        return

    def scaled(level: int) -> int:
        return level >> 8 if depth == 16 else level * 255 // (2**depth - 1)

    image.info["transparency"] = scaled(clear) if isinstance(clear, int) else tuple(map(scaled, clear))


def _draft(image: Image.Image, spec: VisionSpec, longest_side: int) -> None:
    """Let a JPEG far above our cap come at a half, a quarter or an eighth: still half as large again as it will be."""
    width, height = image.size
    if image.format == "JPEG" and max(width, height) > 3 * longest_side // 2:
        rows, columns = grid_for(width, height, spec, longest_side)
        image.draft(image.mode, (columns * spec.patch_size * 3 // 2, rows * spec.patch_size * 3 // 2))


def fitted(
    image: Image.Image, rows: int, columns: int, spec: VisionSpec, kernel: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """The picture at the size of its grid."""
    return image.resize((columns * spec.patch_size, rows * spec.patch_size), kernel)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets it upright, as its EXIF orientation asks; an EXIF block that cannot be read asks for nothing."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


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


def patches_of(frames: Sequence[Image.Image], spec: VisionSpec) -> bytes:
    """Patches of RGB frames that fill their grid, in the reference's order, [rows * columns, 3 * frames * side * side].

    That order is (row block, column block, row in block, column in block, channel, frame, y, x). A patch's line of
    pixels moves as one item of `side` bytes.
    """
    side, merge = spec.patch_size, spec.merge_size
    rows, columns = frames[0].height // side, frames[0].width // side
    planes = np.stack([np.asarray(band) for frame in frames for band in frame.split()])
    lines = planes.view(f"V{side}").reshape(len(frames), 3, rows // merge, merge, side, columns // merge, merge)
    return lines.transpose(2, 5, 3, 6, 1, 0, 4).tobytes()


def jpeg_of(picture: Picture, spec: VisionSpec) -> bytes:
    """A checked picture as it leaves the process: JPEG, quality 95, as large as the model would see it."""
    side, merge = spec.patch_size, spec.merge_size
    _, rows, columns = picture.grid
    shape = (rows // merge, columns // merge, merge, merge, 3, picture.frames, side, side)
    patches = np.frombuffer(picture.patches, np.uint8).reshape(shape)[:, :, :, :, :, 0]
    pixels = patches.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * side, columns * side, 3)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()
