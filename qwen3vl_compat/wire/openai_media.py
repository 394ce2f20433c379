"""Pictures, videos and documents in OpenAI's messages: data: and http(s) URLs, ids of files, lists of frames."""

import re
from collections.abc import Callable, Mapping
from typing import Literal

from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Detail, Frames, Link, Media, Upload
from qwen3vl_compat.wire.asked import MOST_FPS, MOST_SECONDS, UPLOADED, check_end, page_range
from qwen3vl_compat.wire.body import Json, convert, decode_base64, optional, within

LONGEST_MEDIA_TYPE = 512
"""Characters a data: URL may have before its comma."""
PIXELS_OF_A_TOKEN = 32 * 32
"""Of Qwen3-VL's grid, to read its own `max_pixels`."""
DETAILS: Mapping[str, Detail] = {"low": "low", "medium": "medium", "high": "high", "auto": "auto", "original": "high"}

_DATA_URL = re.compile(r"data:(?P<mime>[^,;]*)(?P<rest>(;[^,;]*)*),", re.IGNORECASE)
_HTTP = re.compile(r"\s*https?:", re.IGNORECASE)
_FRAMES = "video/jpeg"
"""The media type under which several pictures in base64, divided by commas, are a video."""


def source_of(url: str, where: str, wanted: Literal["image", "video", "file"]) -> tuple[bytes | Link | Upload, str]:
    """What a URL holds or leads to, and the media type it names; an uploaded file's id or name will do for one.

    InvalidRequest `invalid_..._url`, `invalid_base64`.
    """
    if _HTTP.match(url):
        return Link(url), ""
    if UPLOADED.fullmatch(url):
        return Upload(url), ""
    comma = url.find(",", 0, LONGEST_MEDIA_TYPE)
    found = _DATA_URL.match(url[: comma + 1])
    if found is None or not found["rest"].lower().endswith(";base64"):
        example = {"image": "image/jpeg", "video": "video/mp4", "file": "application/pdf"}[wanted]
        known = f"an http(s) URL, the id of an uploaded file, or a data: URL in base64, data:{example};base64,..."
        message = f"{where}: must be {known}"
        raise InvalidRequest(message, param=where, code=f"invalid_{wanted}_url")
    return decode_base64(url[found.end() :], where), found["mime"].lower()


def image(fields: Json, path: str) -> Media:
    """An `image_url`."""
    where = f"{path}.url"
    source, mime = source_of(convert(fields.get("url"), str, where), where, "image")
    detail, budget = closely(fields, path)
    return Media(source=source, wanted="image", mime_type=mime, param=where, detail=detail, budget=budget)


def video(fields: Json, path: str) -> Media | Frames:
    """A `video_url`: a file, or with the type video/jpeg a list of pictures."""
    where = f"{path}.url"
    url = convert(fields.get("url"), str, where)
    fps = _fps(fields, path)
    if url[: len(_FRAMES) + 5].lower() == f"data:{_FRAMES}":
        head, _, rest = url.partition(",")
        source_of(f"{head},AA==", where, "video")
        return _framed([f"data:image/jpeg;base64,{each}" for each in rest.split(",")], where, fps, fields)
    source, mime = source_of(url, where, "video")
    return replace(_watched(fields, path), source=source, wanted="video", mime_type=mime, param=where)


def frames(fields: Json, path: str) -> Frames:
    """A `video` part: the URLs of its frames in order."""
    where = f"{path}.video"
    return _framed(convert(fields.get("video"), list[str], where), where, _fps(fields, path), fields)


def file(fields: Json, path: str) -> Media:
    """A `file`: an uploaded one by its id, or one that came along."""
    given = [name for name in ("file_id", "file_data", "file_url") if name in fields]
    if len(given) != 1:
        raise InvalidRequest(f"{path}: must hold exactly one of file_id, file_data, file_url", param=path)
    where = f"{path}.{given[0]}"
    text = convert(fields[given[0]], str, where)
    source: bytes | Link | Upload
    mime = ""
    if given == ["file_id"]:
        source = Upload(text)
    elif given == ["file_data"] and not _HTTP.match(text) and text[:5].lower() != "data:":
        source = decode_base64(text, where)
    else:
        source, mime = source_of(text, where, "file")
    return replace(
        _watched(fields, path),
        source=source,
        mime_type=mime,
        name=_name(convert(fields.get("filename", ""), str, f"{path}.filename")),
        param=where,
        pages=page_range(fields.get("pages"), f"{path}.pages"),
        pages_param=f"{path}.pages",
    )


def _watched(fields: Json, path: str) -> Media:
    """How closely a medium is to be looked at, and which part of it if it is a video; the rest is to be filled in."""
    detail, budget = closely(fields, path)
    start, end = optional(fields, "start", float, path), optional(fields, "end", float, path)
    within(start, 0, MOST_SECONDS, f"{path}.start")
    check_end(start, end, f"{path}.end")
    return Media(
        source=b"", detail=detail, budget=budget, start=start, end=end, fps=_fps(fields, path),
        start_param=f"{path}.start",
    )  # fmt: skip


READERS: Mapping[str, Callable[[Json, str], Media | Frames]] = {"image_url": image, "video_url": video, "file": file}
"""What reads the inside of each kind of part."""


def _framed(urls: list[str], where: str, fps: float | None, fields: Json) -> Frames:
    if not urls:
        raise InvalidRequest(f"{where}: must hold at least one frame", param=where)
    detail, budget = closely(fields, where)
    images: list[Media] = []
    for place, url in enumerate(urls):
        at = f"{where}[{place}]"
        source, mime = source_of(url, at, "image")
        images.append(Media(source=source, wanted="image", mime_type=mime, param=at, detail=detail, budget=budget))
    return Frames(tuple(images), fps or 2.0, where)


def closely(fields: Json, path: str) -> tuple[Detail, int | None]:
    """How closely to look: by name, or by the model's own most pixels."""
    name = convert(fields.get("detail", "auto"), str, f"{path}.detail")
    if name not in DETAILS:
        raise InvalidRequest(f"{path}.detail: must be one of {', '.join(DETAILS)}", param=f"{path}.detail")
    pixels = optional(fields, "max_pixels", int, path)
    within(pixels, 1, 10**12, f"{path}.max_pixels")
    return DETAILS[name], None if pixels is None else max(1, pixels // PIXELS_OF_A_TOKEN)


def _fps(fields: Json, path: str) -> float | None:
    fps = optional(fields, "fps", float, path)
    within(fps, 0.001, MOST_FPS, f"{path}.fps")
    return fps


def _name(text: str) -> str:
    """A file's name without its folders, short enough to be said to the model."""
    return re.split(r"[/\\]", text)[-1][:200].strip()
