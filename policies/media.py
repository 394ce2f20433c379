"""Media: counted before anything is fetched, checked before anything is decoded, decoded in processes of their own."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.image import announced_size, check_size, grid_for
from qwen3vl_compat.media.limits import Bounds, VisionSpec
from qwen3vl_compat.media.render import Medium, Renderer, Rendering, beyond, within_tokens
from qwen3vl_compat.media.room import Room, Take
from qwen3vl_compat.media.sandbox import Sandbox
from qwen3vl_compat.messages import Content, Frames, Link, Message, Part, Received, Request, ToolResult
from qwen3vl_compat.policies.sources import NOUN_OF, PICTURES, Source, Sources, naming
from qwen3vl_compat.settings import MediaLimits

T = TypeVar("T")

AT_ONCE = 2
"""Media of one request that are fetched, or decoded, at the same time."""

Limits = Callable[[str], Awaitable[MediaLimits]]
"""What a tenant may send."""


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
        limits = await self._limits_of(tenant)
        _count([_wanted(part) for part in received], received, limits)
        _count_frames(received, limits, self._sources.files.owns)
        async with AsyncExitStack() as opened:
            source = Source(tenant, limits, self._sources, opened, take)
            media = await _each(source.media, received)
            kinds = [_kind(part, found) for part, found in zip(received, media, strict=True)]
            _count(kinds, received, limits)
            self._check(media, limits)
            renderer = self._renderer(kinds.count("video"), limits, take)

            async def shown(part: Received, found: Sequence[Medium]) -> tuple[Content, ...]:
                with naming(part):
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
    def shown(parts: Iterable[Part]) -> Iterable[Part]:
        for part in parts:
            if isinstance(part, ToolResult):
                yield replace(part, parts=tuple(shown(part.parts)))
            else:
                yield from made.get(id(part), (part,))

    return replace(message, parts=tuple(shown(message.parts)))
