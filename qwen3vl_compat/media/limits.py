"""What a medium may be and how closely it is looked at: the values a checkpoint and an operator give."""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.messages import Detail

LONGEST_SIDE = 2048
"""Pixels that a picture's longer side keeps at most."""

Kind = Literal["jpeg", "png", "webp", "gif", "mp4", "webm", "pdf"]
"""What can be looked at, as `sniff` names it."""

DETAILS = {"low": 256, "medium": 1024}
"""Most tokens of one picture at these details; the others leave it to the checkpoint."""


class VideoSpec(Struct, frozen=True, kw_only=True):
    """How a checkpoint looks at videos (its `video_preprocessor_config.json`); the defaults are transformers' own.

    The pixels are those of all frames together; both bounds count a pair of frames twice.
    """

    min_pixels: int = 128 * 32 * 32
    max_pixels: int = 768 * 32 * 32
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    frame_tokens: int = 768
    """Most of the model's tokens one frame may take."""


class VisionSpec(Struct, frozen=True, kw_only=True):
    """How a checkpoint looks at pictures (its `preprocessor_config.json`): sides in pixels, budgets in pixels."""

    min_pixels: int
    max_pixels: int
    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2
    video: VideoSpec = VideoSpec()

    @property
    def factor(self) -> int:
        """Pixels of a token's side; both sides of every grid are multiples of it."""
        return self.patch_size * self.merge_size

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """How many tokens a grid (times, rows, columns of patches) takes in the prompt."""
        times, rows, columns = grid
        return times * rows * columns // self.merge_size**2

    def at(self, detail: Detail, budget: int | None = None) -> "VisionSpec":
        """The same with the budgets a request asks for: only less than before, never below the least."""
        tokens = budget or DETAILS.get(detail)
        if tokens is None:
            return self
        most = max(self.min_pixels, min(self.max_pixels, tokens * self.factor**2))
        video = replace(self.video, frame_tokens=min(self.video.frame_tokens, tokens))
        return replace(self, max_pixels=most, video=video)


class Bounds(Struct, frozen=True, kw_only=True):
    """What a picture may be, in pixels, before it is brought to the grid."""

    pixels: int = 50_000_000
    shortest: int = 4
    """Less shows nothing, however far it is enlarged."""
    longest: int = 30_000
    aspect: int = 200
    """How many times longer one side may be than the other; the reference's own limit."""
