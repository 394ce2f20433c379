"""Media: counted before anything is fetched, checked before anything is decoded, decoded in processes of their own."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest, NotFound
from qwen3vl_compat.media.fetch import FetchFailed
from qwen3vl_compat.media.image import announced_size, check_size, grid_for
from qwen3vl_compat.media.limits import Bounds, VisionSpec
from qwen3vl_compat.media.render import Medium, Renderer, Rendering, beyond, within_tokens
from qwen3vl_compat.media.room import Room, Take
from qwen3vl_compat.media.sandbox import Sandbox
from qwen3vl_compat.media.sniff import NAMES, kind_of
from qwen3vl_compat.messages import Content, Frames, Link, Media, Message, Part, Received, Request, ToolResult, Upload
from qwen3vl_compat.settings import MediaLimits

log = logging.getLogger(__name__)

T = TypeVar("T")

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
AT_ONCE = 2
"""Media of one request that are fetched, or decoded, at the same time."""


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
Limits = Callable[[str], MediaLimits]
"""What a tenant may send."""


class Sources(Struct, frozen=True):
    """Where media come from that are not in the request itself."""

    fetch: Fetch
    files: Files


class MediaPolicy:
    """The step that turns each received medium of a request into checked pictures, videos and words.

    `context` bounds, in tokens, what all pictures of a request may take, and all videos.
    """

    def __init__(
        self, spec: VisionSpec, context: int, sandbox: Sandbox, room: Room, limits_of: Limits, sources: Sources
    ) -> None:
        self._spec, self._context, self._sandbox = spec, context, sandbox
        self._room, self._limits_of, self._sources = room, limits_of, sources

    @asynccontextmanager
    async def prepared(self, request: Request) -> AsyncGenerator[Request]:
        """The same request with checked media, and room for them until the end.

        InvalidRequest names the field; Overloaded where other requests' media fill the memory.
        """
        received = [part for message in request.messages for part in message.leaves if isinstance(part, Received)]
        if not received:
            yield request
            return
        with self._room.taking() as take:
            made = await self._made(request.caller.tenant, received, take)
            yield replace(request, messages=tuple(_with(message, made) for message in request.messages))

    async def _made(self, tenant: str, received: Sequence[Received], take: Take) -> Mapping[int, tuple[Content, ...]]:
        """What stands in each medium's place, by the identity of what was received."""
        limits = self._limits_of(tenant)
        _count([_wanted(part) for part in received], received, limits)
        _count_frames(received, limits, self._sources.files.owns)
        async with AsyncExitStack() as opened:
            source = _Source(tenant, limits, self._sources, opened, take)
            media = await _each(source.media, received)
            kinds = [_kind(part, found) for part, found in zip(received, media, strict=True)]
            _count(kinds, received, limits)
            self._check(media, limits)
            renderer = self._renderer(kinds.count("video"), limits, take)

            async def shown(part: Received, found: Sequence[Medium]) -> tuple[Content, ...]:
                with _naming(part):
                    if isinstance(part, Frames):
                        return (await renderer.frames(found, part.fps),)
                    return await renderer.render(found[0])

            return dict(zip(map(id, received), await _each(shown, received, media), strict=True))

    def _check(self, media: Sequence[Sequence[Medium]], limits: MediaLimits) -> None:
        """Refuse pictures that are too large, or too much together, by what their headers say."""
        pixels = tokens = 0
        for found in media:
            for medium in found:
                if isinstance(medium.content, bytes) and medium.kind in PICTURES:
                    with _naming(medium.asked):
                        width, height = announced_size(medium.content)
                        check_size(width, height, bounds_of(limits))
                    pixels += width * height
                    spec = self._spec.at(medium.asked.detail, medium.asked.budget)
                    grid = grid_for(width, height, spec, limits.longest_side)
                    tokens += spec.tokens((1, *grid)) if len(found) == 1 else 0
        if pixels > limits.max_total_pixels:
            most = f"at most {limits.max_total_pixels:,} are accepted"
            fault = f"The pictures have {pixels:,} pixels together; {most}."
            raise InvalidRequest(fault, param=media[-1][-1].asked.param or None, code="too_many_pixels")
        if tokens > self._context:
            raise beyond(self._context, "pictures", media[-1][-1].asked.param)

    def _renderer(self, videos: int, limits: MediaLimits, take: Take) -> Renderer:
        """All videos together get half of the context at most."""
        rendering = Rendering(
            spec=within_tokens(self._spec, limits.max_frames, self._context // 2 // max(1, videos)),
            bounds=bounds_of(limits),
            longest_side=limits.longest_side,
            tokens=self._context,
            fps=limits.fps,
            pages=limits.max_pages,
            pages_in_all=limits.max_pdf_pages,
            text=limits.pdf_text,
        )
        return Renderer(self._sandbox, rendering, take)


class _Source:
    """Where one request's media come from: the request itself, a URL, or a file of the tenant's."""

    def __init__(self, tenant: str, limits: MediaLimits, sources: Sources, opened: AsyncExitStack, take: Take) -> None:
        self._tenant, self._limits, self._opened, self._take = tenant, limits, opened, take
        self._fetch, self._files = sources.fetch, sources.files
        self._room = limits.max_fetched_bytes
        self._uploads: dict[str, tuple[bytes | Path, str, str]] = {}
        self._opening = asyncio.Lock()

    async def media(self, part: Received) -> list[Medium]:
        """What a part holds, as many as a list of frames has, each of a kind its field may hold."""
        return [await self._medium(each) for each in (part.images if isinstance(part, Frames) else (part,))]

    async def _medium(self, asked: Media) -> Medium:
        with _naming(asked):
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
            log.info("media could not be fetched for tenant %s: %s", self._tenant, failed.reason)
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
            noun = NOUNS[_NOUN_OF[kind]].removeprefix("a ")
            hint = "; a larger one can be uploaded as a file" if inline and kind in VIDEOS else ""
            code = f"{CODES[_NOUN_OF[kind]]}_too_large"
            raise InvalidRequest(f"the {noun} has {size:,} bytes; at most {limit:,} are accepted{hint}", code=code)


_NOUN_OF = {kind: wanted for wanted, kinds in WANTED.items() if wanted != "any" for kind in kinds}


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def bounds_of(limits: MediaLimits) -> Bounds:
    """What one picture may be."""
    return Bounds(pixels=limits.max_pixels, shortest=limits.min_side, longest=limits.max_side, aspect=limits.max_aspect)


def _wanted(part: Received) -> str:
    return "video" if isinstance(part, Frames) else part.wanted


def _kind(part: Received, found: Sequence[Medium]) -> str:
    return "video" if isinstance(part, Frames) else _NOUN_OF[found[0].kind]


def _count(kinds: Sequence[str], parts: Sequence[Received], limits: MediaLimits) -> None:
    """Refuse too many of one kind; those not known yet count as what there may be most of."""
    most = {"image": limits.max_images, "video": limits.max_videos, "document": limits.max_pages}
    for kind, limit in (*most.items(), ("any", max(most.values()))):
        found = [part for part, its_kind in zip(parts, kinds, strict=True) if its_kind == kind]
        if len(found) > limit:
            noun = {"image": "picture", "video": "video", "document": "document"}.get(kind, "file")
            held = f"{len(found)} {noun}{'s' if len(found) > 1 else ''}"
            fault = f"The request holds {held}; at most {limit} are accepted."
            raise InvalidRequest(fault, param=found[limit].param or None, code="too_many_media")


def _count_frames(parts: Sequence[Received], limits: MediaLimits, owns: Callable[[str], bool]) -> None:
    """Refuse too many frames in the lists of a request, or too many URLs, before any is looked at."""
    frames = urls = 0
    for part in parts:
        images = part.images if isinstance(part, Frames) else ()
        frames += len(images)
        urls += sum(isinstance(image.source, Link) and not owns(image.source.url) for image in images)
        for count, most, what in ((frames, limits.max_frames, "frames"), (urls, limits.max_images, "URLs of frames")):
            if count > most:
                fault = f"{part.param}: at most {most} {what} are accepted in one request"
                raise InvalidRequest(fault, param=part.param, code="too_many_media")


@contextmanager
def _naming(part: Received) -> Generator[None]:
    """Let every refusal name the field."""
    try:
        yield
    except InvalidRequest as error:
        named = {"pages": part.pages_param, "start": part.start_param} if isinstance(part, Media) else {}
        param = named.get(error.param or "") or part.param
        if error.param not in (None, "pages", "start") or not param:
            raise
        raise InvalidRequest(f"{param}: {error.message}", param=param, code=error.code) from None


async def _each(work: Callable[..., Awaitable[T]], *arguments: Sequence[Any]) -> list[T]:
    """`work` for all, a few at a time; the first failure ends the others."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(*each: Any) -> T:
        async with turns:
            return await work(*each)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*each)) for each in zip(*arguments, strict=True)]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _with(message: Message, made: Mapping[int, tuple[Content, ...]]) -> Message:
    def shown(parts: Iterable[Part]) -> Iterable[Part]:
        for part in parts:
            if isinstance(part, ToolResult):
                yield replace(part, parts=tuple(shown(part.parts)))
            else:
                yield from made.get(id(part), (part,))

    return replace(message, parts=tuple(shown(message.parts)))
