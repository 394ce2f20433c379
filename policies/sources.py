"""Where media come from: the request itself, a URL, or a file of the tenant's. Each is judged by its first bytes."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest, NotFound
from qwen3vl_compat.media.fetch import FetchFailed
from qwen3vl_compat.media.render import Medium
from qwen3vl_compat.media.room import Take
from qwen3vl_compat.media.sniff import NAMES, kind_of
from qwen3vl_compat.messages import Frames, Link, Media, Received, Request, Upload
from qwen3vl_compat.settings import MediaLimits

log = logging.getLogger(__name__)

_HOST = re.compile(r"[a-z0-9._:-]{1,253}")

PICTURES, VIDEOS = ("jpeg", "png", "webp", "gif"), ("mp4", "webm")
WANTED: Mapping[str, tuple[str, ...]] = {
    "image": PICTURES,
    "video": VIDEOS,
    "document": ("pdf",),
    "any": (*PICTURES, *VIDEOS, "pdf"),
}
"""Kinds of files a field may hold."""
NOUNS = {"image": "a picture", "video": "a video", "document": "a document", "any": "a file"}
SHORT = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "gif": "GIF", "mp4": "MP4", "webm": "WebM/MKV", "pdf": "PDF"}
CODES = {"image": "image", "video": "video", "document": "file", "any": "file"}
"""Middle of the error codes `invalid_..._format`, `invalid_..._url`."""
NOUN_OF = {kind: wanted for wanted, kinds in WANTED.items() if wanted != "any" for kind in kinds}


class OpenedFile(Protocol):
    """An uploaded file, for as long as it is open."""

    @property
    def path(self) -> Path:
        """Where its bytes lie."""
        ...

    @property
    def sha256(self) -> str:
        """Of its bytes, in hexadecimal digits."""
        ...


class Files(Protocol):
    """Where uploaded files are found."""

    def owns(self, url: str, /) -> bool:
        """Whether this is an uploaded file's URI, and nothing to be fetched."""
        ...

    def open(self, tenant: str, reference: str, /) -> AbstractAsyncContextManager[OpenedFile]:
        """A tenant's file by its id or URI; NotFound if there is none or it is another's."""
        ...


Fetch = Callable[[str, int], Awaitable[bytes]]
"""The body behind a URL, at most so many bytes; raises FetchFailed."""


class Sources(Struct, frozen=True):
    """Where media come from that are not in the request itself."""

    fetch: Fetch
    files: Files


class Source:
    """Where one request's media come from: the request itself, a URL, or a file of the tenant's."""

    def __init__(
        self, request: Request, limits: MediaLimits, sources: Sources, opened: AsyncExitStack, take: Take
    ) -> None:
        self._request, self._tenant = request.id, request.caller.tenant
        self._limits, self._opened, self._take = limits, opened, take
        self._fetch, self._files = sources.fetch, sources.files
        self._room = limits.max_fetched_bytes
        self._uploads: dict[str, tuple[bytes | Path, str, str]] = {}
        self._opening = asyncio.Lock()

    async def media(self, part: Received) -> list[Medium]:
        """What a part holds, as many as a list of frames has, each of a kind its field may hold."""
        return [await self._medium(each) for each in (part.images if isinstance(part, Frames) else (part,))]

    async def _medium(self, asked: Media) -> Medium:
        with naming(asked):
            match asked.source:
                case bytes(content):
                    self._take(len(content))
                    medium = Medium(asked, content, self._kind_of(asked, content))
                case Link(url) if not self._files.owns(url):
                    content = await self._fetched(url, asked)
                    medium = Medium(asked, content, self._kind_of(asked, content))
                case Link(reference) | Upload(reference):
                    return await self._uploaded(asked, reference)
            self._check_size(medium.kind, len(content), inline=True)
        return medium

    async def _uploaded(self, asked: Media, reference: str) -> Medium:
        """Opened once, however often it is referred to; what it is must fit every time."""
        async with self._opening:
            if reference not in self._uploads:
                self._uploads[reference] = await self._opened_upload(asked, reference)
        content, kind, sha256 = self._uploads[reference]
        self._check_kind(asked, kind)
        return Medium(asked, content, kind, sha256)

    async def _opened_upload(self, asked: Media, reference: str) -> tuple[bytes | Path, str, str]:
        """Content, kind and SHA-256. Videos and documents stay where they are, open until the end of the request."""
        async with AsyncExitStack() as held:
            try:
                file = await held.enter_async_context(self._files.open(self._tenant, reference))
            except NotFound as error:
                raise NotFound(f"{asked.param}: {error.message}", param=asked.param, code=error.code) from None
            size = file.path.stat().st_size
            kind = self._kind_of(asked, await asyncio.to_thread(_head, file.path))
            self._check_size(kind, size, inline=False)
            if kind not in PICTURES:
                self._opened.push_async_exit(held.pop_all())
                return file.path, kind, file.sha256
            self._room -= size
            if self._room < 0:
                most = f"at most {self._limits.max_fetched_bytes:,} are accepted"
                fault = f"the uploaded pictures have more bytes together; {most}"
                raise InvalidRequest(fault, code="too_many_media")
            self._take(size)
            return await asyncio.to_thread(file.path.read_bytes), kind, file.sha256

    async def _fetched(self, url: str, asked: Media) -> bytes:
        most = {
            "image": self._limits.max_image_bytes,
            "document": self._limits.max_pdf_bytes,
            "video": self._limits.max_inline_video_bytes,
        }
        limit = most.get(asked.wanted, max(most.values()))
        limit, self._room = min(limit, self._room), self._room - min(limit, self._room)
        try:
            content = await self._fetch(url, limit)
        except FetchFailed as failed:
            log.info(
                "media could not be fetched from %s for request %s of tenant %s: %s",
                _host_of(url), self._request, self._tenant, failed.reason,
            )  # fmt: skip
            raise InvalidRequest("could not fetch media", code=f"invalid_{CODES[asked.wanted]}_url") from None
        self._room += limit - len(content)
        self._take(len(content))
        return content

    def _kind_of(self, asked: Media, head: bytes) -> str:
        kind = kind_of(head)
        self._check_kind(asked, kind)
        return kind or ""

    def _check_kind(self, asked: Media, kind: str | None) -> None:
        """Refuse a kind of file that this field may not hold or this tenant may not send."""
        accepted = [each for each in WANTED[asked.wanted] if each in self._limits.types]
        if kind is None or kind not in accepted:
            what = f"is {NAMES[kind]}" if kind else "is of no known kind"
            listed = " or ".join(", ".join(SHORT[each] for each in accepted).rsplit(", ", 1)) or "nothing"
            fault = f"the file {what}; {NOUNS[asked.wanted]} must be {listed}"
            raise InvalidRequest(fault, code=f"invalid_{CODES[asked.wanted]}_format")

    def _check_size(self, kind: str, size: int, *, inline: bool) -> None:
        video = self._limits.max_inline_video_bytes if inline else self._limits.max_video_bytes
        most = {"pdf": self._limits.max_pdf_bytes, "mp4": video, "webm": video}
        limit = most.get(kind, self._limits.max_image_bytes)
        if size > limit:
            noun = NOUNS[NOUN_OF[kind]].removeprefix("a ")
            hint = "; a larger one can be uploaded as a file" if inline and kind in VIDEOS else ""
            code = f"{CODES[NOUN_OF[kind]]}_too_large"
            raise InvalidRequest(f"the {noun} has {size:,} bytes; at most {limit:,} are accepted{hint}", code=code)


def _host_of(url: str) -> str:
    """For the log: without credentials, path and query, which may be secret."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    return host if _HOST.fullmatch(host) else "?"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


@contextmanager
def naming(part: Received) -> Generator[None]:
    """Let every refusal name the field."""
    try:
        yield
    except InvalidRequest as error:
        named = {"pages": part.pages_param, "start": part.start_param} if isinstance(part, Media) else {}
        param = named.get(error.param or "") or part.param
        if error.param not in (None, "pages", "start") or not param:
            raise
        raise InvalidRequest(f"{param}: {error.message}", param=param, code=error.code) from None
