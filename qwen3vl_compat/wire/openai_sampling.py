"""What chats and completions of OpenAI's ask for in the same words: how many answers, how they are drawn and sent."""

from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Sampling
from qwen3vl_compat.wire.asked import MOST_BIASES, MOST_CHOICES, MOST_TOKENS, check_stops
from qwen3vl_compat.wire.body import Bounds, Json, check_bounds, within


class Sampled(Struct, kw_only=True):
    """The fields of both."""

    model: str
    stream: bool = False
    stream_options: Json | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: str | list[str] | None = None
    stop_token_ids: list[int] = []
    seed: int | None = None


class StreamOptions(Struct):
    """What a stream is to tell beside the answer."""

    include_usage: bool | None = None


BOUNDS: Bounds = {
    "n": (1, MOST_CHOICES),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, MOST_TOKENS),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (1, MOST_TOKENS),
    "max_completion_tokens": (1, MOST_TOKENS),
    "min_tokens": (0, MOST_TOKENS),
}
"""Of the fields of chats and completions, as far as they mean the same in both."""


def sampling_of(asked: Sampled, *, limit: int | None, logprobs: int | None) -> Sampling:
    """How tokens are chosen; `limit` is the most an answer may have."""
    check_bounds(asked, BOUNDS)
    within(len(asked.stop_token_ids), 0, MOST_BIASES, "stop_token_ids")
    within(asked.min_tokens, 0, limit or MOST_TOKENS, "min_tokens")
    stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=None if asked.top_k is None else max(0, asked.top_k),
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=_biases(asked.logit_bias),
        logprobs=logprobs,
        max_tokens=limit,
        min_tokens=asked.min_tokens,
        ignore_eos=asked.ignore_eos,
        stop=check_stops(stops, "stop"),
        stop_tokens=tuple(asked.stop_token_ids),
        seed=asked.seed,
    )


def _biases(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if len(given) > MOST_BIASES:
        raise InvalidRequest(f"logit_bias: at most {MOST_BIASES} tokens", param="logit_bias")
    for name, value in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise InvalidRequest("logit_bias: the keys must be token ids", param="logit_bias")
        within(value, -100, 100, f"logit_bias.{name}")
    return tuple((int(name), value) for name, value in given.items())
