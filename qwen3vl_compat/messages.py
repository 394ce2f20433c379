"""What is asked: a request and its parts as pure values, the same for every wire and every engine."""

import math
from typing import Literal

from msgspec import Struct

Role = Literal["system", "user", "assistant", "tool"]


class Text(Struct, frozen=True, tag="text"):
    """Words. Nothing in them is ever taken for a control token."""

    text: str


class Link(Struct, frozen=True, tag="link"):
    """Where a medium lies: an http(s) URL, or the URI of one of our own files."""

    url: str


class Upload(Struct, frozen=True, tag="upload"):
    """A file that was uploaded before, by its id."""

    id: str


Detail = Literal["low", "medium", "high", "auto"]
"""How closely to look; `high` and `auto` are what the checkpoint looks at by default."""


class Media(Struct, frozen=True, kw_only=True, tag="media"):
    """A picture, video or document as it was received: undecoded and unchecked."""

    source: bytes | Link | Upload
    wanted: Literal["image", "video", "document", "any"] = "any"
    """What the field it came in is for; what it is, its first bytes tell."""
    mime_type: str = ""
    """What the sender said it is."""
    name: str = ""
    param: str = ""
    """The field it came in, for error messages."""
    detail: Detail = "auto"
    budget: int | None = None
    """Most tokens for each picture of it."""
    start: float | None = None
    """Seconds of a video to begin with."""
    end: float | None = None
    """Seconds of a video to end with."""
    fps: float | None = None
    """Frames to look at for each second of a video."""
    pages: tuple[int, int] | None = None
    """First and last page of a document, counted from 1."""
    start_param: str = ""
    """The field that said where to start, as `pages_param` says which pages."""
    pages_param: str = ""


class Frames(Struct, frozen=True, tag="frames"):
    """A video that came as pictures, so many for each second."""

    images: tuple[Media, ...]
    fps: float
    param: str = ""


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


class Video(Struct, frozen=True, tag="video"):
    """A checked video: pairs of frames, each with the mean of its two times in seconds."""

    pairs: tuple[Picture, ...]
    times: tuple[float, ...]


class Reasoning(Struct, frozen=True, tag="reasoning"):
    """What the assistant thought before it answered."""

    text: str


class ToolCall(Struct, frozen=True, tag="tool_call"):
    """A function the assistant asked for; `arguments` is JSON text, an object if the model kept to the form."""

    id: str
    name: str
    arguments: str


Received = Media | Frames
Content = Text | Received | Picture | Video


class ToolResult(Struct, frozen=True, tag="tool_result"):
    """What a function gave back, for the call of that id."""

    id: str
    name: str
    parts: tuple[Content, ...]


Part = Content | Reasoning | ToolCall | ToolResult


class Message(Struct, frozen=True):
    """One turn of the conversation; a turn of role `tool` holds one ToolResult."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def leaves(self) -> tuple[Part, ...]:
        """The parts, those inside tool results in their place."""
        return tuple(
            inner for part in self.parts for inner in (part.parts if isinstance(part, ToolResult) else (part,))
        )


class Tool(Struct, frozen=True, kw_only=True):
    """A function the model may call."""

    name: str
    description: str = ""
    parameters: str = ""
    """The arguments' JSON Schema, as JSON text; empty for a function without any."""
    strict: bool = False
    """Refuse a schema that cannot be kept to the letter."""
    param: str = ""
    """The field the schema came in, for error messages."""


class ToolChoice(Struct, frozen=True, kw_only=True):
    """Whether tools may or must be called."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: tuple[str, ...] = ()
    """Only these; empty for all."""
    parallel: bool = True
    """Whether one answer may hold several calls."""


class OutputFormat(Struct, frozen=True, kw_only=True):
    """The form the visible answer must have."""

    kind: Literal["text", "json_object", "json_schema", "regex", "choice"] = "text"
    value: str = ""
    """The JSON Schema, the regex, or the choices as a JSON list."""
    strict: bool = False
    """Refuse a schema that cannot be kept to the letter."""
    param: str = ""
    """The field it came in, for error messages."""


class Thinking(Struct, frozen=True, kw_only=True):
    """Whether and how long a model that can think does so."""

    enabled: bool | None = None
    """None leaves it to the chat template."""
    budget: int | None = None
    """Tokens after which the thought is closed; None for no bound of its own, 0 for no thought."""
    shown: bool = True
    """Whether the thoughts are sent; they are paid for either way."""


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are chosen; None leaves it to the checkpoint's own generation settings."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """0 keeps every token."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    """Divides the logits of tokens in the prompt or the answer, or multiplies negative ones (Keskar et al., 2019)."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens in the answer, once."""
    frequency_penalty: float = 0.0
    """Taken off the logits of tokens in the answer, for each time they are in it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these tokens."""
    logprobs: int | None = None
    """Send the log-probability of each token of the visible answer, and of so many of the likeliest."""
    max_tokens: int | None = None
    min_tokens: int = 0
    """The end, and stop tokens, cannot be chosen before."""
    ignore_eos: bool = False
    """Go on after the end until max_tokens."""
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    seed: int | None = None


class Caller(Struct, frozen=True):
    """On whose behalf a request runs: the tenant's id and the public part of the key."""

    tenant: str
    key: str


class Idempotency(Struct, frozen=True):
    """The key under which a request is carried out once, and what tells it from others: SHA-256, in hexadecimal."""

    key_hash: str
    fingerprint: str


class Freshness(Struct, frozen=True, kw_only=True):
    """Whether an answer may be one that was given before, and may be kept to be given again."""

    read: bool = True
    keep: bool = True
    max_age: float | None = None
    """Seconds since it was made, at most; whoever names them wants it although another would come out differently."""


Cached = Literal["off", "miss", "hit"]


class Request(Struct, frozen=True, kw_only=True):
    """One generation, complete: what was asked, how to sample, and how the answer is wanted."""

    id: str
    created: int
    """When it arrived, Unix seconds."""
    model: str
    messages: tuple[Message, ...]
    alias: str = ""
    """The name by which the model was asked for, if that is not its own."""
    sampling: Sampling = Sampling()
    raw: bool = False
    """Each message is a prompt of its own, and read by the model as it stands, without its chat template."""
    echo: bool = False
    """The answer is to begin with its prompt."""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    format: OutputFormat = OutputFormat()
    thinking: Thinking = Thinking()
    choices: int = 1
    stream: bool = False
    stream_usage: bool = False
    """Send the token counts in a chunk of their own at the end of the stream (OpenAI's `include_usage`)."""
    ignored: tuple[str, ...] = ()
    """Fields that were accepted and have no effect here."""
    caller: Caller = Caller("", "")
    wire: str = ""
    """The API it came by: `openai`, `google` or `anthropic`."""
    idempotency: Idempotency | None = None
    seconds: float = math.inf
    """It may take so long, from when it is begun."""
    freshness: Freshness = Freshness()
    cache: Cached = "off"
    """What the cache had to say: `off` where it was not asked."""
    moderation: str = ""
    """What moderators had to say and let pass, as the ledger writes it."""

    @property
    def called(self) -> str:
        """The model as the client calls it, and as answers do."""
        return self.alias or self.model

    @property
    def field(self) -> str:
        """The field that its words came in, for error messages."""
        return "prompt" if self.raw else "messages"


class ModelInfo(Struct, frozen=True, kw_only=True):
    """A served model as clients list it; limits in tokens."""

    id: str
    created: int
    context: int
    max_output: int
    revision: str = ""
    digest: str = ""
    """Of all that its answers depend on beside the request; hexadecimal digits."""
    greedy: bool = False
    """Whether it draws nothing where a request names no temperature."""


class FileInfo(Struct, frozen=True, kw_only=True):
    """An uploaded file as its owner sees it; times in milliseconds since 1970, `sha256` in hexadecimal digits."""

    id: str
    filename: str
    mime_type: str
    bytes: int
    sha256: str
    purpose: str
    created_at: int
    expires_at: int
