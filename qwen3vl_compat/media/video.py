"""Which frames of a video the model sees, how large, and when: arithmetic only, as Qwen3-VL's own processor does it.

Reference: `Qwen3VLVideoProcessor` and `Qwen3VLProcessor` of transformers 5.23 with `cap_pixels_per_frame=True`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3vl_compat.media.limits import VideoSpec, VisionSpec

STAMP_TOKENS = 12
"""Tokens around a pair of frames at most: its time, and the marks of where it begins and ends."""


def frames_wanted(total: int, rate: float, fps: float, spec: VideoSpec) -> int:
    """How many of `total` frames at `rate` a second are looked at, when `fps` of each second are asked for."""
    return min(max(int(total / rate * fps), spec.min_frames), spec.max_frames, total)


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """`count` of the indices 0..total-1, evenly spread from the first to the last."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def sampled(times: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """`count` indices of frames shown at these times (rising, in seconds), evenly spread.

    A steady rate is sampled by index, as the reference does; of an unsteady one, the frames nearest to even times.
    """
    total = len(times)
    if total < 3 or count >= total:
        return evenly(total, min(count, total))
    first, last = float(times[0]), float(times[-1])
    if np.abs(times - np.linspace(first, last, total)).max() < (last - first) / (total - 1) / 2:
        return evenly(total, count)
    wanted = np.linspace(first, last, count)
    after = np.clip(np.searchsorted(times, wanted), 1, total - 1)
    nearest = np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)
    return np.unique(nearest)


def pair_times(times: Sequence[float]) -> tuple[float, ...]:
    """The mean of each two times in a row; an odd last one, or a single one, counts twice."""
    even = [*times, times[-1]] if len(times) % 2 else times
    return tuple((first + second) / 2 for first, second in zip(even[::2], even[1::2], strict=True))


def grid_of_frames(count: int, width: int, height: int, spec: VisionSpec) -> tuple[int, int]:
    """(rows, columns) of patches for each of `count` frames of this size in pixels."""
    video, factor = spec.video, spec.factor
    count = max(count, spec.temporal_patch_size)
    cap = min(video.frame_tokens * factor**2, video.max_pixels // count)
    most = max(cap, int(video.min_pixels * 1.05)) * count
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    times = round(count / spec.temporal_patch_size) * spec.temporal_patch_size
    if times * tall * wide > most:
        beta = math.sqrt(count * height * width / most)
        tall = max(factor, math.floor(height / beta / factor) * factor)
        wide = max(factor, math.floor(width / beta / factor) * factor)
    elif times * tall * wide < video.min_pixels:
        beta = math.sqrt(video.min_pixels / (count * height * width))
        tall, wide = math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return tall // spec.patch_size, wide // spec.patch_size
