"""Media: counted before anything is fetched, checked before anything is decoded, decoded in processes of their own."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from importlib.metadata import version
from typing import Any, TypeVar

from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.image import announced_size, check_size, decoders, grid_for
from qwen3vl_compat.media.limits import Bounds, VisionSpec
from qwen3vl_compat.media.render import Medium, Renderer, Rendering, beyond, within_tokens
from qwen3vl_compat.media.room import Room
from qwen3vl_compat.media.sandbox import Sandbox
from qwen3vl_compat.messages import Content, Frames, Link, Message, Part, Received, Request, ToolResult
from qwen3vl_compat.policies.sources import NOUN_OF, PICTURES, Source, Sources, naming
from qwen3vl_compat.settings import MediaLimits

T = TypeVar("T")

AT_ONCE = 2
"""Media of one request that are fetched, or decoded, at the same time."""

Limits = Callable[[str], Awaitable[MediaLimits]]
"""What a tenant may send."""


class Gathered:
    """A request whose media have come and are judged by their first bytes, and none of which is decoded yet."""

    def __init__(
        self,
        request: Request,
        received: Sequence[Received] = (),
        media: Sequence[Sequence[Medium]] = (),
        renderer: Renderer | None = None,
    ) -> None:
        self.request = request
        self._received, self._media, self._renderer = received, media, renderer

    @property
    def lasting(self) -> bool:
        """Whether all of it lies in the request itself: what a URL or a file's id leads to is another day's."""
        return all(isinstance(medium.asked.source, bytes) for found in self._media for medium in found)

    @property
    def size(self) -> int:
        """Bytes that `looks` has to read."""
        contents = (medium.content for found in self._media for medium in found if not medium.sha256)
        return sum(len(content) for content in contents if isinstance(content, bytes))

    def looks(self) -> list[object]:
        """What tells these media, as the model is shown them, from any others: plain values. Reads them all."""
        if self._renderer is None:
            return []
        shown = zip(self._received, self._media, strict=True)
        looks = [[part.fps if isinstance(part, Frames) else None, *map(_look, found)] for part, found in shown]
        return [_decoders(), self._renderer.how, looks]

    async def rendered(self) -> Request:
        """The request with checked pictures, videos and words in their place; InvalidRequest names the field."""
        renderer = self._renderer
        if renderer is None:
            return self.request

        async def shown(part: Received, found: Sequence[Medium]) -> tuple[Content, ...]:
            with naming(part):
                if isinstance(part, Frames):
                    return (await renderer.frames(found, part.fps),)
                return await renderer.render(found[0])

        made = dict(zip(map(id, self._received), await _each(shown, self._received, self._media), strict=True))
        return replace(self.request, messages=tuple(_with(message, made) for message in self.request.messages))


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
        """The same request with checked media, and room for them until the end; raises as `gathered`."""
        async with self.gathered(request) as gathered:
            yield await gathered.rendered()

    @asynccontextmanager
    async def gathered(self, request: Request) -> AsyncGenerator[Gathered]:
        """The request with its media fetched, opened and counted, and room for them until the end.

        InvalidRequest names the field; Overloaded where other requests' media fill the memory.
        """
        received = [part for message in request.messages for part in message.leaves if isinstance(part, Received)]
        if not received:
            yield Gathered(request)
            return
        tenant = request.caller.tenant
        limits = await self._limits_of(tenant)
        _count([_wanted(part) for part in received], received, limits)
        _count_frames(received, limits, self._sources.files.owns)
        with self._room.taking(tenant) as take:
            async with AsyncExitStack() as opened:
                source = Source(request, limits, self._sources, opened, take)
                media = await _each(source.media, received)
                kinds = [_kind(part, found) for part, found in zip(received, media, strict=True)]
                _count(kinds, received, limits)
                self._check(media, limits)
                rendering = self._rendering(kinds.count("video"), limits)
                yield Gathered(request, received, media, Renderer(self._sandbox, rendering, take, tenant))

    def _check(self, media: Sequence[Sequence[Medium]], limits: MediaLimits) -> None:
        """Refuse pictures that are too large, or too much together, by what their headers say."""
        pixels = tokens = 0
        for found in media:
            for medium in found:
                if isinstance(medium.content, bytes) and medium.kind in PICTURES:
                    with naming(medium.asked):
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

    def _rendering(self, videos: int, limits: MediaLimits) -> Rendering:
        """All videos together get half of the context at most."""
        return Rendering(
            spec=within_tokens(self._spec, limits.max_frames, self._context // 2 // max(1, videos)),
            bounds=bounds_of(limits),
            longest_side=limits.longest_side,
            tokens=self._context,
            fps=limits.fps,
            pages=limits.max_pages,
            pages_in_all=limits.max_pdf_pages,
            text=limits.pdf_text,
        )


@cache
def _decoders() -> str:
    return f"{decoders()} {version('av')} {version('pypdfium2')}"


def _look(medium: Medium) -> list[object]:
    asked = medium.asked
    return [medium.digest, medium.kind, asked.detail, asked.budget, asked.start, asked.end, asked.fps, asked.pages,
            asked.name if medium.kind == "pdf" else ""]  # fmt: skip


def bounds_of(limits: MediaLimits) -> Bounds:
    """What one picture may be."""
    return Bounds(pixels=limits.max_pixels, shortest=limits.min_side, longest=limits.max_side, aspect=limits.max_aspect)


def _wanted(part: Received) -> str:
    return "video" if isinstance(part, Frames) else part.wanted


def _kind(part: Received, found: Sequence[Medium]) -> str:
    return "video" if isinstance(part, Frames) else NOUN_OF[found[0].kind]


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
    return replace(message, parts=tuple(_shown(message.parts, made)))


def _shown(parts: Iterable[Part], made: Mapping[int, tuple[Content, ...]]) -> Iterable[Part]:
    # At top level: an inner function that calls itself holds what it sees, pictures too, until the collector comes.
    for part in parts:
        if isinstance(part, ToolResult):
            yield replace(part, parts=tuple(_shown(part.parts, made)))
        else:
            yield from made.get(id(part), (part,))
