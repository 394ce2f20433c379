"""Pictures, videos and documents in Google's contents: inline data, files and URLs, and how closely to look at them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Detail, Link, Media, Message, Part, ToolResult, Upload
from qwen3vl_compat.wire.asked import MOST_FPS, UPLOADED, check_end, page_range
from qwen3vl_compat.wire.body import Json, convert, decode_base64, optional, within

RESOLUTIONS: Mapping[str, Detail] = {
    "MEDIA_RESOLUTION_UNSPECIFIED": "auto",
    "MEDIA_RESOLUTION_LOW": "low",
    "MEDIA_RESOLUTION_MEDIUM": "medium",
    "MEDIA_RESOLUTION_HIGH": "high",
    "MEDIA_RESOLUTION_ULTRA_HIGH": "high",
}
MOST_BUDGET = 10_000_000

Known = Callable[[Json, str, str, list[str]], Json]

_SECONDS = re.compile(r"(\d{1,7}(?:\.\d{1,9})?)s")
_FILE = re.compile(rf"files/[A-Za-z0-9_-]{{1,64}}|{UPLOADED.pattern}")


def medium(part: Json, path: str, known: Known, ignored: list[str]) -> Media:
    """A part's `inlineData` or `fileData`, with what is said beside it; `part` holds known fields only."""
    kind = "inlineData" if "inlineData" in part else "fileData"
    where = f"{path}.{kind}"
    inner = convert(part.get(kind), Json, where)
    source: bytes | Link | Upload
    if kind == "inlineData":
        fields, param = known(inner, "blob", where, ignored), f"{where}.data"
        source = decode_base64(convert(fields.get("data"), str, param), param)
    else:
        fields, param = known(inner, "fileData", where, ignored), f"{where}.fileUri"
        source = _address(convert(fields.get("fileUri"), str, param), param)
    detail, budget = _resolution(part.get("mediaResolution"), f"{path}.mediaResolution", known, ignored)
    clip = known(convert(part.get("videoMetadata", {}), Json, where), "videoMetadata", f"{path}.videoMetadata", ignored)
    start = _offset(clip.get("startOffset"), f"{path}.videoMetadata.startOffset")
    end = _offset(clip.get("endOffset"), f"{path}.videoMetadata.endOffset")
    check_end(start, end, f"{path}.videoMetadata.endOffset")
    fps = optional(clip, "fps", float, f"{path}.videoMetadata")
    within(fps, 0.001, MOST_FPS, f"{path}.videoMetadata.fps")
    return Media(
        source=source,
        mime_type=convert(fields.get("mimeType", ""), str, f"{where}.mimeType").lower(),
        name=convert(fields.get("displayName", ""), str, f"{where}.displayName")[:200],
        param=param,
        detail=detail,
        budget=budget,
        start=start,
        end=end,
        fps=fps,
        pages=_pages(part.get("documentMetadata"), f"{path}.documentMetadata", known, ignored),
        start_param=f"{path}.videoMetadata.startOffset",
        pages_param=f"{path}.documentMetadata",
    )


def resolution(value: Any, path: str) -> Detail:
    """How closely to look, by Google's names."""
    if not isinstance(value, str) or value not in RESOLUTIONS:
        raise InvalidRequest(f"{path}: must be one of {', '.join(RESOLUTIONS)}", param=path)
    return RESOLUTIONS[value]


def looked_at(messages: Sequence[Message], detail: Detail) -> tuple[Message, ...]:
    """The same messages, media that do not say how closely they are to be looked at being looked at so."""

    def shown(part: Any) -> Any:
        match part:
            case Media(detail="auto", budget=None):
                return replace(part, detail=detail)
            case ToolResult():
                return replace(part, parts=tuple(map(shown, part.parts)))
            case _:
                return part

    def parts(message: Message) -> tuple[Part, ...]:
        return tuple(map(shown, message.parts))

    return tuple(replace(message, parts=parts(message)) for message in messages)


def _address(uri: str, path: str) -> Link | Upload:
    """An uploaded file's name, or the URI of one, or anything that may be fetched."""
    if _FILE.fullmatch(uri):
        return Upload(uri)
    if not re.match(r"\s*https?:", uri, re.IGNORECASE):
        raise InvalidRequest(f"{path}: must be an http(s) URL or the name of an uploaded file", param=path)
    return Link(uri)


def _resolution(value: Any, path: str, known: Known, ignored: list[str]) -> tuple[Detail, int | None]:
    if value is None or isinstance(value, str):
        return ("auto" if value is None else resolution(value, path)), None
    fields = known(convert(value, Json, path), "mediaResolution", path, ignored)
    level = resolution(fields.get("level", "MEDIA_RESOLUTION_UNSPECIFIED"), f"{path}.level")
    budget = optional(fields, "numTokens", int, path)
    within(budget, 1, MOST_BUDGET, f"{path}.numTokens")
    return level, budget


def _offset(value: Any, path: str) -> float | None:
    """A duration as proto-JSON writes it, `1.5s`."""
    if value is None:
        return None
    found = _SECONDS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidRequest(f"{path}: must be a number of seconds as '12.5s'", param=path)
    return float(found[1])


def _pages(value: Any, path: str, known: Known, ignored: list[str]) -> tuple[int, int] | None:
    if value is None:
        return None
    fields = known(convert(value, Json, path), "documentMetadata", path, ignored)
    first = convert(fields.get("startPage", 1), int, f"{path}.startPage")
    last = convert(fields.get("endPage", 999_999), int, f"{path}.endPage")
    return page_range(f"{first}-{last}", path)
