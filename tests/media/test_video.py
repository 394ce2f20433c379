"""Frames are chosen, timed and sized as Qwen3-VL's own processor has them; true times where it would guess."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.frames import ALL_PIXELS, FRAME_PIXELS, PART_PIXELS, SHOWN, _parts
from qwen3vl_compat.media.jobs import Shot
from qwen3vl_compat.media.limits import VideoSpec, VisionSpec
from qwen3vl_compat.media.render import within_tokens
from qwen3vl_compat.media.video import evenly, frames_wanted, grid_of_frames, pair_times, sampled

SPEC = VisionSpec(min_pixels=65_536, max_pixels=16_777_216, video=VideoSpec(min_pixels=4096, max_pixels=25_165_824))
"""Qwen3-VL's own budgets."""


@given(
    count=st.integers(2, 768),
    width=st.integers(16, 4000),
    height=st.integers(16, 4000),
    spec=st.sampled_from([SPEC, replace(SPEC, video=VideoSpec())]),
)
def test_grids_are_the_references(count: int, width: int, height: int, spec: VisionSpec) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    video = spec.video
    each = max(min(768 * 1024, video.max_pixels // count), int(video.min_pixels * 1.05))
    tall, wide = smart_resize(count, height, width, 2, 32, video.min_pixels, each * count)
    assert grid_of_frames(count, width, height, spec) == (tall // 16, wide // 16)


@given(total=st.integers(1, 5000), rate=st.sampled_from([1, 5, 23.976, 25, 29.97, 30, 60]), fps=st.floats(0.1, 10))
def test_steady_videos_are_sampled_by_index(total: int, rate: float, fps: float) -> None:
    count = frames_wanted(total, rate, fps, SPEC.video)
    assert count == min(max(int(total / rate * fps), 4), 768, total)
    times = np.round(np.arange(total) / rate, 3)  # as WebM keeps them
    assert np.array_equal(sampled(times, count), np.linspace(0, total - 1, count).round().astype(int))
    assert np.array_equal(evenly(total, count), sampled(times, count))


def test_unsteady_videos_are_sampled_by_time() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 5.0, 10.0])
    assert times[sampled(times, 3)].tolist() == [0.0, 5.0, 10.0]


@pytest.mark.parametrize(
    ("times", "pairs"),
    [((3.0,), (3.0,)), ((0.0, 1.0), (0.5,)), ((0.0, 1.0, 4.0), (0.5, 4.0)), ((0.0, 0.5, 1.0, 1.5), (0.25, 1.25))],
)
def test_a_pair_is_told_by_its_mean_time(times: Sequence[float], pairs: Sequence[float]) -> None:
    assert pair_times(times) == tuple(pairs)


@given(tokens=st.integers(30, 100_000), frames=st.integers(2, 4096), seconds=st.integers(1, 10_000))
def test_a_video_takes_no_more_tokens_than_it_is_given(tokens: int, frames: int, seconds: int) -> None:
    spec = within_tokens(SPEC, frames, tokens)
    count = frames_wanted(seconds * 25, 25.0, 2.0, spec.video)
    rows, columns = grid_of_frames(count, 640, 360, spec)
    taken = (count + 1) // 2 * (rows * columns // 4 + 12)
    assert count <= frames
    assert taken <= max(1.3 * tokens, 2 * (rows * columns // 4 + 12))


HD = 1920 * 1080


def parts_of(total: int, gop: int, count: int, pixels: int = HD) -> tuple[tuple[Shot, ...], ...]:
    stamps = np.arange(total) * 512
    return _parts(stamps, np.arange(total) / 25, stamps[::gop], evenly(total, count), pixels)


def test_a_short_video_is_one_job() -> None:
    (part,) = parts_of(250, 250, 20)
    assert [shot.stamp // 512 for shot in part] == evenly(250, 20).tolist()
    assert {shot.key for shot in part} == {0}


def test_a_long_video_is_several_jobs_of_bounded_cost() -> None:
    parts = parts_of(10_000, 250, 80)
    assert len(parts) > 3
    assert all(len(part) % 2 == 0 for part in parts[:-1])
    costs = [cost_of((part,)) * HD for part in parts]
    assert max(costs) <= FRAME_PIXELS
    assert sorted(costs)[len(costs) // 2] <= 1.5 * PART_PIXELS


def test_two_hours_are_shown_by_their_key_frames() -> None:
    parts = parts_of(180_000, 250, 768)
    shots = [shot for part in parts for shot in part]
    assert sum(shot.key == shot.stamp for shot in shots) > 0.9 * len(shots)
    assert shots[0].seconds < 10
    assert shots[-1].seconds > 7180
    assert max(np.diff([shot.seconds for shot in shots])) < 21
    assert len(shots) > 700


def test_a_frame_too_far_from_its_key_frame_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="key frames are too far apart"):
        parts_of(180_000, 180_000, 2)
    assert FRAME_PIXELS / HD < 180_000


def cost_of(parts: tuple[tuple[Shot, ...], ...]) -> int:
    """Frames decoded by all jobs together, or what takes as long."""
    total = 0
    for part in parts:
        before = -1
        for shot in part:
            total += shot.stamp // 512 - max(shot.key // 512 - 1, before) + SHOWN
            before = shot.stamp // 512
    return total


@pytest.mark.parametrize(("minutes", "gop"), [(60, 1500), (120, 500), (120, 1500), (10, 250), (1, 1500), (1, 250)])
def test_what_a_video_costs_is_bounded_however_rare_its_key_frames_are(minutes: int, gop: int) -> None:
    wanted = min(768, minutes * 120)
    parts = parts_of(minutes * 1500, gop, wanted)
    assert cost_of(parts) * HD <= 1.3 * ALL_PIXELS
    assert all(cost_of((part,)) * HD <= FRAME_PIXELS for part in parts)
    assert sum(map(len, parts)) >= wanted / 16


def test_a_long_video_with_one_key_frame_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="encode it with more"):
        parts_of(7500, 9000, 600)
