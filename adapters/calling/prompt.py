"""What a caller asks: words, pictures, videos and documents, and the turns between, as messages of the wire."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.adapters.calling.failures import InvalidInput
from qwen3vl_compat.adapters.calling.files import NewFile, RemoteFile, uploaded
from qwen3vl_compat.adapters.calling.pictures import prepared
from qwen3vl_compat.adapters.calling.sending import Sending
from qwen3vl_compat.adapters.calling.steps import Steps, work
from qwen3vl_compat.messages import Content, Detail, Link, Media, Message, Text, Upload

INLINE_BYTES = 8 * 2**20
"""Of media that travel in the request itself; what goes beyond is uploaded before."""
UPLOAD_LIFE_S = 3600
"""How long the server keeps what was uploaded for one request."""
_HEAD = 64


class _Look(Struct, frozen=True, kw_only=True):
    detail: Detail = "auto"
    """How closely to look."""
    start: float | None = None
    """Seconds of a video to begin with."""
    end: float | None = None
    fps: float | None = None
    """Frames of a video to look at for each second."""
    pages: tuple[int, int] | None = None
    """First and last page of a document, counted from 1."""
    name: str = ""
    """What to call it; a file has its own name."""


Source = str | Path | bytes | RemoteFile
"""A medium's path or bytes, an http(s) URL that the server fetches, or an uploaded file or its id."""


class Attachment(_Look, frozen=True):
    """A picture, video or PDF; what it is, its first bytes tell."""

    source: Source


Prompt = str | Sequence[str | Path | Attachment | Message]
"""What is said in one turn; Messages among it are the turns between, as an answer's `message` and `tool_result`."""


class Asked(Struct, frozen=True):
    """One turn of the user's, with the name of the argument that each attachment came in."""

    parts: tuple[str | tuple[str, Attachment], ...]


def turns(prompt: Prompt, image_path: str | Path | None) -> list[Asked | Message]:
    """The conversation, turn by turn; raises InvalidInput for what is none."""
    if isinstance(prompt, str):
        before = () if image_path is None else (("image_path", Attachment(image_path)),)
        return [Asked((*before, prompt))]
    if image_path is not None:
        raise InvalidInput("image_path: put it into the prompt, which is a list", param="image_path")
    if not prompt:
        raise InvalidInput("prompt: is empty", param="prompt")
    found: list[Asked | Message] = []
    for place, item in enumerate(prompt):
        if isinstance(item, Message):
            found.append(item)
            continue
        said = item if isinstance(item, str) else (f"prompt[{place}]", _attachment(item, f"prompt[{place}]"))
        if found and isinstance(last := found[-1], Asked):
            found[-1] = Asked((*last.parts, said))
        else:
            found.append(Asked((said,)))
    return found


def _attachment(item: object, param: str) -> Attachment:
    if isinstance(item, Path):
        return Attachment(item)
    if not isinstance(item, Attachment):
        raise InvalidInput(f"{param}: must be text, a Path, an Attachment or a Message", param=param)
    return item


def gathered(
    conversation: Sequence[Asked | Message], longest_side: int, sending: Sending
) -> Steps[tuple[Message, ...]]:
    """The messages to send: pictures prepared, files read, and uploaded where they are large.

    `longest_side` is in pixels; 0 leaves pictures as they are.
    """
    messages: list[Message] = []
    room = INLINE_BYTES
    for turn in conversation:
        if isinstance(turn, Message):
            messages.append(turn)
            continue
        parts: list[Content] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append(Text(part))
                continue
            media = yield from _media(*part, longest_side)
            if isinstance(media, _Found):
                media = yield from _carried(media, room, sending)
                room -= len(media.source) if isinstance(media.source, bytes) else 0
            parts.append(media)
        messages.append(Message("user", tuple(parts)))
    return tuple(messages)


def _media(param: str, attachment: Attachment, longest_side: int) -> "Steps[Media | _Found]":
    """A medium as it is named in the request, or a file that has to get there still."""
    media = Media(
        source=b"", name=attachment.name, param=param, detail=attachment.detail, start=attachment.start,
        end=attachment.end, fps=attachment.fps, pages=attachment.pages,
    )  # fmt: skip
    source = located(attachment.source)
    if isinstance(source, Link | Upload):
        return replace(media, source=source)
    return (yield from work(partial(_looked_at, media, source, longest_side)))


def _carried(found: "_Found", room: int, sending: Sending) -> Steps[Media]:
    """The medium inside of the request, which may hold `room` bytes of it, or uploaded."""
    if found.file.size <= room:
        return replace(found.media, source=(yield from work(found.file.read)))
    file = yield from uploaded(found.file, UPLOAD_LIFE_S, sending)
    return replace(found.media, source=Upload(file.id))


def located(source: Source) -> Path | bytes | Link | Upload:
    """Where a medium lies: here, or where only the server reads it."""
    match source:
        case RemoteFile():
            return Upload(source.id)
        case str() if re.match(r"https?://", source, re.IGNORECASE):
            return Link(source)
        case str() if re.fullmatch(r"file-[0-9a-f]{24}", source):
            return Upload(source)
        case str():
            return Path(source)
        case _:
            return source


class _Found(Struct, frozen=True):
    media: Media
    file: NewFile


def _looked_at(media: Media, source: Path | bytes, longest_side: int) -> _Found:
    """What a file is; a picture is made ready. What is of no known kind is left for the server to name."""
    file = NewFile.of(source, media.param)
    media = replace(media, name=media.name or file.name)
    if (kind := _kind(file.head(_HEAD))) is not None:
        return _Found(replace(media, wanted=kind[0], mime_type=kind[1]), file)
    picture = prepared(file.read(), longest_side, media.param) if longest_side else None
    if picture is None:
        return _Found(replace(media, mime_type="application/octet-stream"), file)
    return _Found(
        replace(media, wanted="image", mime_type="image/jpeg"), replace(file, source=picture, size=len(picture))
    )


def _kind(head: bytes) -> tuple[Literal["document", "video"], str] | None:
    """What its first bytes say a file is, unless it may be a picture."""
    if head.startswith(b"%PDF-"):
        return "document", "application/pdf"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video", "video/webm"
    # Pictures of the same family: AVIF, HEIC.
    if head[4:8] == b"ftyp" and head[8:11] not in (b"avi", b"hei", b"hev", b"mif", b"msf"):
        return "video", "video/mp4"
    return None
