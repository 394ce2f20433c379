"""What is asked: a request and its parts as pure values, the same for every wire and every engine."""

from typing import Literal

from msgspec import Struct

Role = Literal["system", "user", "assistant"]


class Text(Struct, frozen=True, tag="text"):
    """Words. Nothing in them is ever taken for a control token."""

    text: str


class Image(Struct, frozen=True, tag="image"):
    """A picture as it was received: undecoded and unchecked. `mime_type` is what the sender said, not what it is."""

    data: bytes
    mime_type: str = ""
    param: str = ""
    """The field it came in, for error messages."""


class Picture(Struct, frozen=True, tag="picture"):
    """A checked picture, or a pair of a video's frames, on the model's grid.

    `patches` holds uint8 in the image processor's patch order, [rows * columns, channels * frames * side * side]: one
    frame, which is doubled in time later, or two; `grid` is (1, rows, columns) in patches; width and height are those
    of the upright original.
    """

    digest: str
    patches: bytes
    grid: tuple[int, int, int]
    width: int
    height: int
    frames: int = 1


Part = Text | Image | Picture


class Message(Struct, frozen=True):
    """One turn of the conversation."""

    role: Role
    parts: tuple[Part, ...]


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are chosen; None leaves it to the checkpoint's own generation settings."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Caller(Struct, frozen=True):
    """On whose behalf a request runs: the tenant's id and the public part of the key."""

    tenant: str
    key: str


class Request(Struct, frozen=True, kw_only=True):
    """One generation, complete: what was asked, how to sample, and how the answer is wanted."""

    id: str
    created: int
    """When it arrived, Unix seconds."""
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    choices: int = 1
    stream: bool = False
    stream_usage: bool = False
    """Send the token counts in a chunk of their own at the end of the stream (OpenAI's `include_usage`)."""
    ignored: tuple[str, ...] = ()
    """Fields that were accepted and have no effect here."""
    caller: Caller = Caller("", "")


class ModelInfo(Struct, frozen=True, kw_only=True):
    """A served model as clients list it; limits in tokens."""

    id: str
    created: int
    context: int
    max_output: int
    revision: str = ""
