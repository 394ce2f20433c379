"""The right frames of a video file come out of the children, upright and at their true times."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.limits import VideoSpec, VisionSpec
from qwen3vl_compat.media.render import Medium, Renderer, Rendering
from qwen3vl_compat.media.sandbox import Sandbox
from qwen3vl_compat.media.video import evenly, pair_times
from qwen3vl_compat.messages import Media, Picture, Video
from tests.media.crafted import drawing, encoded
from tests.media.films import film, long_film, steady

SPEC = VisionSpec(min_pixels=65_536, max_pixels=16_777_216, video=VideoSpec(min_pixels=4096, max_pixels=25_165_824))
"""Qwen3-VL's own budgets."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    made = Sandbox()
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def renderer(sandbox: Sandbox) -> Renderer:
    return Renderer(sandbox, Rendering(spec=SPEC))


async def played(renderer: Renderer, data: bytes, kind: str = "mp4", **asked: Any) -> Video:
    (video,) = await renderer.render(Medium(Media(source=data, **asked), data, kind))
    assert isinstance(video, Video)
    return video


def plain(level: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def levels(video: Video) -> list[int]:
    """The grey of each frame."""
    found: list[int] = []
    for pair in video.pairs:
        frames = np.frombuffer(pair.patches, np.uint8).reshape(-1, 3, 2, 256)
        found += [round(float(frames[:, :, place].mean())) for place in (0, 1)]
    return found


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mp4", {}),
        ("mp4", {"codec": "mpeg4"}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("mp4", {"codec": "libx264", "options": {"bf": "3"}}),
        ("webm", {"container": "webm", "codec": "libvpx"}),
        ("webm", {"container": "webm", "codec": "libvpx-vp9"}),
        ("webm", {"container": "matroska"}),
    ],
)
@pytest.mark.parametrize("rate", [5, 25])
async def test_the_right_frames_at_their_times(
    renderer: Renderer, kind: str, options: dict[str, Any], rate: int
) -> None:
    total = 3 * rate
    data = film(steady([plain(40 + 2 * number) for number in range(total)], rate), rate=rate, **options)
    video = await played(renderer, data, kind)
    chosen = evenly(total, 6)
    assert video.times == pytest.approx(pair_times([index / rate for index in chosen]), abs=0.002)
    assert np.abs(np.array(levels(video)) - (40 + 2 * chosen)).max() <= (5 if "codec" in options else 2)
    assert len({pair.digest for pair in video.pairs}) == 3


async def test_an_unsteady_rate_gives_true_times(renderer: Renderer) -> None:
    times = [0, 0.04, 0.08, 0.12, 3.0, 3.04, 6.5, 9.0, 9.04, 9.08]
    data = film([(plain(20 * number), at) for number, at in enumerate(times)], ticks=1000)
    video = await played(renderer, data, fps=0.5)
    assert video.times == pytest.approx((1.5, 4.77, 9.08))  # of 0, 3, 3.04, 6.5 and 9.08
    assert np.abs(np.array(levels(video)) - [0, 80, 100, 120, 180, 180]).max() <= 3


async def test_a_part_of_a_video(renderer: Renderer) -> None:
    data = film(steady([plain(2 * number) for number in range(100)], 10), rate=10)
    video = await played(renderer, data, start=4.0, end=6.0, fps=1.0)
    assert video.times == pytest.approx((4.35, 5.65))
    assert np.abs(np.array(levels(video)) - [80, 94, 106, 120]).max() <= 2
    late = await played(renderer, data, start=9.0)
    assert 9.0 <= late.times[0] <= late.times[-1] <= 9.9
    with pytest.raises(InvalidRequest, match=r"lasts 9\.9 seconds"):
        await played(renderer, data, start=60.0)


@pytest.mark.parametrize(("start", "end"), [(40.0, 50.0), (31.0, 55.0), (40.0, 70.0), (59.9, 59.95), (7.0, None)])
async def test_a_part_begins_with_what_is_on_the_screen(renderer: Renderer, start: float, end: float | None) -> None:
    """A frame every minute: each stays until the next one comes."""
    data = film([(plain(50 * number), 60.0 * number) for number in range(4)], ticks=1000)
    video = await played(renderer, data, start=start, end=end)
    assert levels(video)[0] == pytest.approx(50 * (start // 60), abs=2)
    later = [60.0 * number for number in range(4) if start < 60 * number <= (end or 200)]
    assert video.times == pytest.approx(pair_times([start, *later]), abs=0.002)


async def test_a_part_has_as_many_frames_as_its_seconds_ask_for(renderer: Renderer) -> None:
    data = film(steady([plain(number // 3) for number in range(600)], 10), rate=10, options={"preset": "ultrafast"})
    video = await played(renderer, data, start=40.0, end=50.0)
    assert len(video.pairs) == 10
    assert 40 <= video.times[0] <= video.times[-1] <= 50


async def test_two_hours_are_decoded_at_their_true_times(renderer: Renderer) -> None:
    """Each minute has a grey of its own."""
    data = long_film([plain(2 * minute) for minute in range(120)], 60)
    video = await played(renderer, data)
    assert len(video.pairs) > 350
    assert video.times[0] < 20
    assert video.times[-1] > 7180
    middles = [level / 2 for level in np.array(levels(video)).reshape(-1, 2).mean(axis=1)]
    assert np.abs(np.array(middles) - (np.array(video.times) - 30) / 60).max() < 1


async def test_a_single_frame_is_doubled_and_an_odd_last_one_repeated(renderer: Renderer) -> None:
    one = await played(renderer, film(steady([plain(100)], 25)))
    assert (one.times, levels(one)) == ((0.0,), [100, 100])
    three = await played(renderer, film(steady([plain(level) for level in (50, 100, 150)], 1), rate=1))
    assert three.times == (0.5, 2.0)
    assert np.abs(np.array(levels(three)) - [50, 100, 150, 150]).max() <= 2


async def test_a_telephone_held_upright(renderer: Renderer) -> None:
    """Its film lies on the side, and a matrix says so."""
    data = film(steady([plain(100, (128, 64))] * 4, 4), rate=4)
    at = data.index(b"tkhd") + 4 + 4 + 36
    upright = b"\0\0\0\0\0\1\0\0\0\0\0\0\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0"
    turned = data[:at] + upright + data[at + 36 :]
    plainly, video = await played(renderer, data), await played(renderer, turned)
    assert plainly.pairs[0].grid == (1, *reversed(video.pairs[0].grid[1:]))
    assert video.pairs[0].height > video.pairs[0].width
    left, right = plain(0, (64, 64)), plain(200, (128, 64))
    right.paste(left)
    data = film(steady([right] * 4, 4), rate=4)
    data = data[: data.index(b"tkhd") + 44] + upright + data[data.index(b"tkhd") + 80 :]
    patches = np.frombuffer((await played(renderer, data)).pairs[0].patches, np.uint8)
    rows = patches.reshape(-1, 768 * 2).mean(axis=1)
    assert rows[: len(rows) // 2].mean() < 50, "the left side comes to be above"
    assert rows[len(rows) // 2 :].mean() > 150


async def test_a_list_of_frames(renderer: Renderer) -> None:
    images = [encoded(plain(50 * number), "PNG") for number in range(5)]
    video = await renderer.frames([Medium(Media(source=image), image, "png") for image in images], 2.0)
    assert video.times == (0.25, 1.25, 2.0)
    assert levels(video) == [0, 50, 100, 150, 200, 200]


async def test_many_frames_are_capped(renderer: Renderer) -> None:
    data = film(steady([plain(number % 200) for number in range(2000)], 25), options={"preset": "ultrafast"})
    video = await played(renderer, data, fps=60.0)
    assert len(video.pairs) == 768 // 2
    assert video.times[0] == pytest.approx(0.06, abs=0.03)
    assert video.times[-1] == pytest.approx(79.93, abs=0.05)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
async def test_frames_are_those_of_a_reader_that_decodes_them_all(renderer: Renderer, kind: str) -> None:
    options: dict[str, Any] = {} if kind == "mp4" else {"container": "webm", "codec": "libvpx-vp9"}
    data = film(steady([drawing(320, 256, seed=number) for number in range(60)], 30), rate=30, gop=30, **options)
    whole, (piece,) = (
        await played(renderer, data, kind, fps=60.0),
        (await played(renderer, data, kind, fps=0.1)).pairs[:1],
    )
    assert len(whole.pairs) == 30
    assert isinstance(piece, Picture)
    first = np.frombuffer(piece.patches, np.uint8).reshape(-1, 3, 2, 256)[:, :, 0]
    assert np.array_equal(first, np.frombuffer(whole.pairs[0].patches, np.uint8).reshape(-1, 3, 2, 256)[:, :, 0])
