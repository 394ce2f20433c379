"""From a medium's bytes to what the model is shown of it: the jobs a picture, a video or a document takes."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.jobs import ClipJob, Footage, FramesJob, Job, LookJob, PagesJob, PictureJob, Pictures
from qwen3vl_compat.media.limits import LONGEST_SIDE, Bounds, VisionSpec
from qwen3vl_compat.media.room import Take
from qwen3vl_compat.media.sandbox import Sandbox
from qwen3vl_compat.media.video import STAMP_TOKENS, grid_of_frames, pair_times
from qwen3vl_compat.messages import Content, Media, Picture, Text, Video

FRAMES_TOGETHER = 16
"""Of a video that came as pictures, in one job; an even number."""


class Medium(Struct, frozen=True):
    """A medium that has come: what it was asked for, its bytes or its file, and what kind of file it is."""

    asked: Media
    content: bytes | Path
    kind: str
    sha256: str = ""
    """Of its bytes, in hexadecimal digits, where it is known already."""

    @property
    def digest(self) -> str:
        """Of its bytes, in hexadecimal digits."""
        if self.sha256:
            return self.sha256
        assert isinstance(self.content, bytes)
        return hashlib.sha256(self.content).hexdigest()


class Rendering(Struct, frozen=True, kw_only=True):
    """How media are looked at: the checkpoint's way within an operator's bounds."""

    spec: VisionSpec
    bounds: Bounds = Bounds()
    longest_side: int = LONGEST_SIDE
    tokens: int = 2**20
    """Most that all documents of a request may take."""
    fps: float = 2.0
    pages: int = 100
    """Most of all documents of a request; `pages_in_all` of one, asked for or not."""
    pages_in_all: int = 500
    text: bool = False


def within_tokens(spec: VisionSpec, max_frames: int, tokens: int) -> VisionSpec:
    """The same with videos that take at most so many frames and, with the marks between them, so many tokens."""
    pair = spec.temporal_patch_size
    frames = min(spec.video.max_frames, max_frames, max(pair, tokens // (2 * STAMP_TOKENS) * pair))
    room = max(1, tokens - frames // pair * STAMP_TOKENS) * spec.factor**2 * pair
    most = min(spec.video.max_pixels, room)
    video = replace(
        spec.video,
        max_frames=frames,
        min_frames=min(spec.video.min_frames, frames),
        max_pixels=most,
        min_pixels=min(spec.video.min_pixels, most),
    )
    return replace(spec, video=video)


def beyond(context: int, what: str, param: str | None = None) -> InvalidRequest:
    """The refusal of media that alone leave no room in a context of so many tokens."""
    return InvalidRequest(
        f"Input tokens exceed the configured limit of {context} tokens: the {what} alone take more "
        "(context_length_exceeded)",
        param=param,
        code="context_length_exceeded",
    )


class Renderer:
    """Runs the jobs of one request; every fault is the sandbox's InvalidRequest, without a field."""

    def __init__(
        self, sandbox: Sandbox, rendering: Rendering, take: Take = lambda size: None, tenant: str = ""
    ) -> None:
        """`take` is told of all that is kept, in bytes; the tenant's jobs wait for their turn together."""
        self._sandbox, self.how, self._take, self._tenant = sandbox, rendering, take, tenant
        self._pages = self._tokens = 0  # of all documents so far

    async def render(self, medium: Medium) -> tuple[Content, ...]:
        """What stands in the medium's place."""
        match medium.kind:
            case "pdf":
                return await self._document(medium)
            case "mp4" | "webm":
                return (await self._video(medium),)
            case _:
                return (await self._picture(medium),)

    def spec_for(self, asked: Media) -> VisionSpec:
        """The checkpoint's way of looking, as closely as this one is to be looked at."""
        return self.how.spec.at(asked.detail, asked.budget)

    async def _pictures(self, job: Job, content: bytes | Path) -> Pictures:
        reply = await self._sandbox.run(job, content, self._tenant)
        assert isinstance(reply, Pictures)
        self._take(sum(len(picture.patches) for picture in reply.pictures))
        return reply

    async def _picture(self, medium: Medium) -> Picture:
        how = self.how
        job = PictureJob(spec=self.spec_for(medium.asked), bounds=how.bounds, longest_side=how.longest_side)
        return (await self._pictures(job, medium.content)).pictures[0]

    async def _video(self, medium: Medium) -> Video:
        """Seen through once for its frames' times, then decoded in as many jobs as those frames cost."""
        asked, spec = medium.asked, self.spec_for(medium.asked)
        look = LookJob(
            container=medium.kind,
            spec=spec,
            bounds=self.how.bounds,
            fps=asked.fps or self.how.fps,
            start=asked.start,
            end=asked.end,
        )
        footage = await self._sandbox.run(look, medium.content, self._tenant)
        assert isinstance(footage, Footage)
        times = [shot.seconds for part in footage.parts for shot in part]
        grid = grid_of_frames(len(times), footage.width, footage.height, spec)
        digest = await asyncio.to_thread(lambda: medium.digest)
        pairs: list[Picture] = []
        for part in footage.parts:
            job = ClipJob(container=medium.kind, spec=spec, grid=grid, digest=digest, shots=part)
            pairs += (await self._pictures(job, medium.content)).pictures
        return Video(tuple(pairs), pair_times(times))

    async def frames(self, images: Sequence[Medium], fps: float) -> Video:
        """A video that came as pictures, so many a second: as many jobs as those take, the first one sets the grid."""
        spec = self.spec_for(images[0].asked)
        pairs: list[Picture] = []
        for first in range(0, len(images), FRAMES_TOGETHER):
            contents = [image.content for image in images[first : first + FRAMES_TOGETHER]]
            content = b"".join(each for each in contents if isinstance(each, bytes))
            job = FramesJob(
                spec=spec,
                bounds=self.how.bounds,
                lengths=tuple(len(each) for each in contents if isinstance(each, bytes)),
                count=len(images),
                first=first,
                grid=pairs[0].grid[1:] if pairs else None,
            )
            pairs += (await self._pictures(job, content)).pictures
        return Video(tuple(pairs), pair_times([place / fps for place in range(len(images))]))

    async def _document(self, medium: Medium) -> tuple[Content, ...]:
        """Pages, each behind its number."""
        first, last = medium.asked.pages or (1, None)
        digest = await asyncio.to_thread(lambda: medium.digest)
        name = f"{medium.asked.name}, page" if medium.asked.name else "Page"
        parts: list[Content] = []
        wanted = first
        while wanted:
            job = PagesJob(
                spec=self.spec_for(medium.asked),
                first=wanted,
                last=last,
                most=self.how.pages,
                most_in_all=self.how.pages_in_all,
                text=self.how.text,
                digest=digest,
            )
            reply = await self._pictures(job, medium.content)
            if wanted == first:
                self._pages += reply.last - first + 1
            self._tokens += sum(job.spec.tokens(picture.grid) for picture in reply.pictures)
            if self._pages > self.how.pages:
                fault = f"the documents have more than {self.how.pages} pages together; ask for fewer"
                raise InvalidRequest(fault, code="too_many_pages")
            if self._tokens > self.how.tokens:
                raise beyond(self.how.tokens, "documents")
            for number, picture, text in zip(reply.numbers, reply.pictures, reply.texts, strict=True):
                parts += [Text(f"{name} {number}:\n"), picture, Text(f"\n{text}\n" if text else "\n")]
            wanted = reply.numbers[-1] + 1 if reply.numbers[-1] < reply.last else 0
        return tuple(parts)
