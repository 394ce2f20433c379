"""What the abilities come to."""

from typing import Generic

from msgspec import Struct

from qwen3vl_compat.adapters.actions import Action
from qwen3vl_compat.adapters.calling.answers import Answer
from qwen3vl_compat.adapters.calling.steps import T
from qwen3vl_compat.adapters.grounding import Block, Box, Point, Size, Unit


class Result(Struct, frozen=True, kw_only=True):
    """What a task came to, and how."""

    prompt: str
    """Name and version of the prompt that made it."""
    answer: Answer
    """What it was read from, with its cost."""

    @property
    def complete(self) -> bool:
        """Whether the answer came to its own end."""
        return self.answer.finish_reason not in ("length", "content_filter")


class Reading(Result, frozen=True, kw_only=True, omit_defaults=True):
    """The text in a picture or document."""

    text: str
    blocks: tuple[Block, ...] = ()
    """Of HTML, the parts that say where they are."""
    unit: Unit | None = None
    """Of the blocks' places."""


class Description(Result, frozen=True, kw_only=True):
    """What is to be seen, or the answer to a question about it."""

    text: str


class Located(Result, frozen=True, kw_only=True):
    """Where things are: boxes or points, in pixels of the true picture."""

    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    size: Size
    """Of the picture, upright."""
    unit: Unit
    """`thousandth` (of width and height) where the picture lies at the server and nobody said its size."""


class Span(Struct, frozen=True):
    """Part of a video, in seconds."""

    start: float
    end: float


class Moments(Result, frozen=True, kw_only=True):
    """When something happens in a video."""

    spans: tuple[Span, ...]


class Extracted(Result, Generic[T], frozen=True, kw_only=True):
    """What a picture says, in the form that was asked for."""

    value: T


class Page(Result, frozen=True, kw_only=True):
    """HTML made after a picture."""

    html: str


class Decision(Result, frozen=True, kw_only=True):
    """What to do next on a screen; places are in pixels of the screenshot."""

    action: Action
    unit: Unit
