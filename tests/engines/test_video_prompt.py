"""Videos in a prompt are transformers' own, token for token: golden files made once with torchvision."""

import hashlib
import json
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.local.checkpoint import Checkpoint, read_checkpoint
from qwen3vl_compat.engines.local.prompt import PromptBuilder
from qwen3vl_compat.media.image import fitted, grid_for
from qwen3vl_compat.media.limits import VideoSpec
from qwen3vl_compat.media.video import evenly, frames_wanted, grid_of_frames, pair_times
from qwen3vl_compat.messages import Message, Part, Picture, Request, Text, Video
from tests.golden.make_video import drawn
from tests.serving import ROOT

GOLDEN = ROOT / "tests" / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "video.json").read_text(encoding="utf-8"))["cases"]
ASKED = [case for case in CASES if "raises" not in case and "num_frames" not in case["sampling"]]
"""What a request can ask for: it names no number of frames."""


@cache
def checkpoint() -> Checkpoint:
    return read_checkpoint(str(MODEL), "")


def spec_of(case: dict[str, Any]) -> Any:
    size = case["size"]
    video = VideoSpec(min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"]) if size else VideoSpec()
    return replace(checkpoint().spec, video=video)


def rate_of(video: dict[str, Any]) -> float:
    """Frames a second; 24 where the processor was told nothing."""
    return video["fps"] if video.get("metadata", True) else 24.0


def indices_of(case: dict[str, Any], video: dict[str, Any]) -> list[int]:
    if not case["do_sample_frames"]:
        return list(video.get("indices") or range(video["frames"]))
    fps = case["sampling"].get("fps") or 2.0
    return evenly(video["frames"], frames_wanted(video["frames"], rate_of(video), fps, VideoSpec())).tolist()


def shown(case: dict[str, Any], video: dict[str, Any]) -> Video:
    spec, indices = spec_of(case), indices_of(case, video)
    rows, columns = grid_of_frames(len(indices), video["width"], video["height"], spec)
    times = pair_times([index / rate_of(video) for index in indices])
    pair = Picture("", b"", (1, rows, columns), 0, 0, frames=2)
    return Video((pair,) * len(times), times)


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case["name"])
def test_ids_times_grids_and_positions_are_the_processors(case: dict[str, Any]) -> None:
    videos = [shown(case, video) for video in case["videos"]]
    for video, wanted in zip(videos, case["videos_expected"], strict=True):
        assert [f"<{seconds:.1f} seconds>" for seconds in video.times] == wanted["timestamps"]
        assert [len(video.pairs), *video.pairs[0].grid[1:]] == wanted["grid"]
    pictures = [
        Picture("", b"", (1, *grid_for(each["width"], each["height"], checkpoint().spec)), 0, 0)
        for each in case["pictures"]
    ]
    waiting = {"video": iter(videos), "image": iter(pictures)}

    def part(each: dict[str, Any]) -> Part:
        return Text(each["text"]) if each["type"] == "text" else next(waiting[each["type"]])

    messages = tuple(
        Message(each["role"], (Text(each["content"]),) if isinstance(each["content"], str)
                else tuple(map(part, each["content"])))
        for each in case["messages"]
    )  # fmt: skip
    prompt = PromptBuilder(checkpoint()).build(Request(id="r", created=0, model="m", messages=messages))
    assert [[token, len(list(run))] for token, run in groupby(prompt.ids.tolist())] == case["ids"]
    assert prompt.shift == case["shift"]
    assert hashlib.sha256(prompt.positions.astype("<i8").tobytes()).hexdigest() == case["positions_sha256"]
    slots = sum(rows * columns // 4 for video in videos for _, rows, columns in (pair.grid for pair in video.pairs))
    assert prompt.usage.prompt_video == slots


@pytest.mark.parametrize("case", [case for case in CASES if "pixels" in case], ids=lambda case: case["name"])
def test_frames_are_resized_as_the_processor_does(case: dict[str, Any]) -> None:
    """torch's kernel and Pillow's round differently: by one level of 255, in at most one of 100 places."""
    golden = np.load(GOLDEN / "video.npz")[case["name"]]
    (video,) = case["videos"]
    spec, indices = spec_of(case), indices_of(case, video)
    rows, columns = grid_of_frames(len(indices), video["width"], video["height"], spec)
    for place, index in enumerate(indices):
        frame = Image.fromarray(drawn(video["look"], index, video["width"], video["height"]))
        ours = np.asarray(fitted(frame, rows, columns, spec)).astype(int)
        apart = np.abs(ours - golden[place])
        assert apart.max() <= 1
        assert apart.mean() <= 0.01
