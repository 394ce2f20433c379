"""The model and its engine."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from qwen3vl_compat.settings.types import Positive, Seconds


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Which model is served, under which name, by which engine and where."""

    path: str = ""
    """A checkpoint folder or hub name; empty is the bundled demonstration model."""
    name: Annotated[str, Meta(min_length=1, max_length=200)] = "qwen3-vl"
    aliases: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=200)], str],
        Meta(description="a table of names and models, in a variable name=model,..."),
    ] = msgspec.field(default_factory=dict[str, str])
    """Other names that clients may use for it, by name; `gpt-*` is all that begin so."""
    revision: str = ""
    engine: str = "local"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto is the checkpoint's own on a GPU and float32 on a CPU."""
    compile: bool = True
    """Compile the decode step on a CPU, behind the running server; the result is kept in the state folder."""
    default_max_tokens: Annotated[int, Meta(ge=0)] = 0
    """Room for an answer when the request names none, tokens; 0 is 4,096, or 32,768 for a thinking model."""
    max_model_len: Annotated[int, Meta(ge=0)] = 0
    """Tokens of prompt and answer together; 0 is all the checkpoint reads, as far as the memory goes."""
    yarn: Annotated[float, Meta(ge=1, le=16)] = 1.0
    """Factor by which YaRN stretches the checkpoint's native length: 4 makes a million of 262,144."""
    max_waiting: Positive = 256
    """Requests that may wait for the engine, tenants in turn; beyond that 503, first for the tenant that has most."""
    max_wait: Seconds = 120
    """A request that has waited this long is refused with 503."""
    max_rows: Annotated[int, Meta(ge=4, le=1024)] = 32
    """Answers that can be in the making at once."""
    kv_memory: Annotated[float, Meta(gt=0)] = 2.0
    """GiB for keys and values on a CPU."""
    kv_share: Annotated[float, Meta(gt=0, lt=1)] = 0.85
    """Share of a GPU's memory left free by the weights that keys, values and pictures may take."""
    kv_block: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Tokens in a block of keys and values: what later prompts share is whole blocks."""
    vision_memory: Annotated[float, Meta(gt=0)] = 0.5
    """GiB for the embeddings of pictures that may be asked about again."""
    piece_tokens: Annotated[int, Meta(ge=16)] = 2048
    """Most prompt tokens computed in one step."""
    piece_seconds: Seconds = 0.1
    """A step's share of prompts is cut so that answers under way wait no longer than about this for its tokens, and as
    long again for its pictures; one picture is never cut."""
    stalled: Seconds = 60
    """The server is not ready when a step takes longer than this."""
    take_idle: Seconds = 30
    """A reader that takes none of its events for this long is given up."""
    close_early: bool = True
    """Bring an answer bound to JSON to its end shortly before max_tokens cuts it, and say so in its details."""
    rambling: Annotated[int, Meta(ge=0)] = 0
    """End an answer whose last so many tokens are one stretch of at most a quarter of that, over and over; 0: never."""
    pause: Annotated[float, Meta(ge=0, le=60)] = 0
    """Seconds the scripted engine takes for a token."""
