"""What a request's media may be together: counted over the whole request, read once, held until it is over."""

import gc
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.errors import InvalidRequest, Overloaded
from qwen3vl_compat.media.fetch import FetchFailed
from qwen3vl_compat.media.limits import VideoSpec, VisionSpec
from qwen3vl_compat.media.room import Room
from qwen3vl_compat.media.sandbox import Sandbox
from qwen3vl_compat.messages import Frames, Link, Media, Message, Request, Upload, Video
from qwen3vl_compat.policies.media import MediaPolicy
from qwen3vl_compat.policies.sources import Sources
from qwen3vl_compat.settings import MediaLimits
from tests.media.crafted import drawing, encoded
from tests.media.films import film, pdf_of, steady

SPEC = VisionSpec(min_pixels=1024, max_pixels=16_777_216, video=VideoSpec(min_pixels=2048, max_pixels=786_432))
PICTURE = SAMPLE.read_bytes()
TOKENS = 12

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    made = Sandbox()
    await made.start()
    yield made
    await made.close()


class Lying(Struct):
    """Uploaded files that lie in a folder."""

    folder: Path
    opened: list[str]
    now: int = 0
    most: int = 0

    def owns(self, url: str) -> bool:
        return url.startswith("https://here/")

    @asynccontextmanager
    async def open(self, tenant: str, reference: str) -> AsyncGenerator[Any]:
        self.opened.append(reference)
        self.now += 1
        self.most = max(self.most, self.now)
        yield Lain(self.folder / reference.rpartition("/")[2])
        self.now -= 1


class Lain(Struct):
    path: Path
    sha256: str = "0" * 64


class Tried:
    """A policy over a folder of files and a web that has one picture."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.folder, self.sandbox = folder, sandbox
        self.files, self.room, self.context = Lying(folder, []), Room(2**30), 32_768
        self.fetched: list[str] = []

    async def fetch(self, url: str, limit: int) -> bytes:
        self.fetched.append(url)
        return PICTURE

    async def __call__(self, *parts: Any, **limits: Any) -> tuple[Any, ...]:
        """What becomes of the parts of one message."""

        async def limits_of(tenant: str) -> MediaLimits:
            return MediaLimits(**limits)

        sources = Sources(self.fetch, self.files)
        policy = MediaPolicy(SPEC, self.context, self.sandbox, self.room, limits_of, sources)
        request = Request(id="r", created=0, model="m", messages=(Message(role="user", parts=parts),))
        async with policy.prepared(request) as checked:
            self.held = self.room.held
            return checked.messages[0].parts


@pytest.fixture
def tried(sandbox: Sandbox, tmp_path: Path) -> Tried:
    for name, data in {
        "a.png": PICTURE,
        "a.pdf": pdf_of([drawing(64, 64, seed=page) for page in range(6)]),
        "a.mp4": film(steady([drawing(64, 64, seed=number) for number in range(4)], 2), rate=2),
    }.items():
        (tmp_path / name).write_bytes(data)
    return Tried(sandbox, tmp_path)


async def refusal(work: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        await work
    return refused.value


def frames(count: int, source: Any) -> Frames:
    return Frames(images=(Media(source=source, wanted="image"),) * count, fps=2.0, param="video")


async def test_an_upload_is_opened_once_and_a_picture_not_held(tried: Tried) -> None:
    video, again = await tried(*[frames(40, Upload("a.png"))] * 2)
    assert isinstance(video, Video)
    assert len(video.pairs) == len(again.pairs) == 20
    assert tried.files.opened == ["a.png"]
    await tried(Media(source=Upload("a.pdf")), Media(source=Upload("a.pdf")), Media(source=Upload("a.mp4")))
    assert tried.files.opened == ["a.png", "a.pdf", "a.mp4"]
    assert tried.files.now == 0
    assert tried.files.most == 2


async def test_uploaded_pictures_have_a_bound_together(tried: Tried) -> None:
    for number in range(4):
        (tried.folder / f"{number}.png").write_bytes(PICTURE)
    parts = [Media(source=Upload(f"{number}.png")) for number in range(4)]
    assert len(await tried(*parts, max_fetched_bytes=4 * len(PICTURE))) == 4
    assert (await refusal(tried(*parts, max_fetched_bytes=4 * len(PICTURE) - 1))).code == "too_many_media"


async def test_what_an_upload_is_must_fit_wherever_it_stands(tried: Tried) -> None:
    parts = [Media(source=Upload("a.png")), Media(source=Upload("a.png"), wanted="video", param="here")]
    refused = await refusal(tried(*parts))
    assert (refused.code, refused.param) == ("invalid_video_format", "here")


async def test_frames_are_counted_over_the_whole_request_before_any_is_read(tried: Tried) -> None:
    assert (await refusal(tried(*[frames(30, Upload("a.png"))] * 2, max_frames=59))).code == "too_many_media"
    assert (await refusal(tried(frames(101, Link("https://there/a.png"))))).code == "too_many_media"
    assert (tried.files.opened, tried.fetched) == ([], [])
    await tried(frames(101, Link("https://here/a.png")))
    await tried(*[frames(30, Upload("a.png"))] * 2, max_frames=60)


async def test_pages_are_counted_over_the_whole_request(tried: Tried) -> None:
    parts = [Media(source=Upload("a.pdf"), pages=(1, 3)), Media(source=Upload("a.pdf"), pages=(4, 6))]
    assert len(await tried(*parts, max_pages=6)) == 18
    refused = await refusal(tried(*parts, max_pages=5))
    assert refused.code == "too_many_pages"
    assert "more than 5 pages together" in refused.message


async def test_pages_that_fill_the_context_are_not_drawn_to_the_end(tried: Tried) -> None:
    tried.context = 40
    data = pdf_of([drawing(128, 128, seed=page) for page in range(60)])
    refused = await refusal(tried(Media(source=data)))
    assert refused.code == "context_length_exceeded"
    tried.context = 60 * 16
    await tried(Media(source=data))


async def test_a_long_list_of_frames_is_what_a_short_one_is(tried: Tried) -> None:
    images = tuple(Media(source=encoded(drawing(64, 64, seed=number), "PNG"), wanted="image") for number in range(37))
    (long,) = await tried(Frames(images=images, fps=2.0, param="video"))
    (short,) = await tried(Frames(images=images[32:36], fps=2.0, param="video"))
    assert len(long.pairs) == 19
    assert [pair.patches for pair in long.pairs[16:18]] == [pair.patches for pair in short.pairs]
    assert len({pair.digest for pair in long.pairs}) == 19


async def test_media_take_room_until_the_request_is_over(tried: Tried) -> None:
    part = Media(source=PICTURE)
    (shown,) = await tried(part)
    assert tried.held == len(PICTURE) + len(shown.patches)
    assert tried.room.held == 0
    tried.room.most = 2 * tried.held - 1
    with pytest.raises(Overloaded, match="no memory"):
        await tried(part, part)
    assert tried.room.held == 0
    await tried(part)
    refused = await refusal(tried(replace(part, source=b"words", param="x")))
    assert (refused.param, tried.room.held) == ("x", 0)


async def test_nothing_waits_for_the_collector(tried: Tried) -> None:
    """It comes seldom, and megabytes of pictures would lie there until it does."""
    gc.collect()
    gc.disable()
    try:
        (shown,) = await tried(Media(source=PICTURE))
        assert sys.getrefcount(shown) == 2  # this function's, and the call's
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://me:secret@Pictures.example.org:443/secret.png?secret=1#secret", "pictures.example.org"),
        ("http://[2001:db8::1]/secret", "2001:db8::1"),
        ("http://[secret/", "?"),
        ("http:secret", "?"),
    ],
)
async def test_the_log_says_whose_media_could_not_be_fetched_and_from_where(
    tried: Tried, caplog: pytest.LogCaptureFixture, url: str, host: str
) -> None:
    async def fail(url: str, limit: int) -> bytes:
        raise FetchFailed("status 404")

    tried.fetch = fail  # type: ignore[method-assign]
    with caplog.at_level("INFO", "qwen3vl_compat.policies.sources"):
        await refusal(tried(Media(source=Link(url), wanted="image")))
    assert caplog.messages == [f"media could not be fetched from {host} for request r of tenant : status 404"]
