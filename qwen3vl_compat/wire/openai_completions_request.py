"""OpenAI's completions, the way in: a body as a Request whose messages are prompts, and what becomes of each field."""

from collections.abc import Mapping
from typing import Any

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Message, Request, Text
from qwen3vl_compat.wire.asked import MOST_LOGPROBS
from qwen3vl_compat.wire.body import (
    HARMLESS,
    HONOURED,
    Json,
    Rules,
    convert,
    decode_object,
    refused,
    sort_fields,
    within,
)
from qwen3vl_compat.wire.fields import OPENAI
from qwen3vl_compat.wire.openai_sampling import Sampled, StreamOptions, sampling_of

MOST_PROMPTS = 32
DEFAULT_TOKENS = 16
"""As many as OpenAI's own service makes where a request does not say."""

_FORM = refused("the form of an answer is for /v1/chat/completions")
_CHAT = refused("use /v1/chat/completions")
_NO_TEMPLATE = refused("completions are made without a template; use /v1/chat/completions")

COMPLETIONS: Mapping[str, Rules] = {
    "request": {
        "model": HONOURED,
        "prompt": HONOURED,
        "stream": HONOURED,
        "stream_options": HONOURED,
        "n": HONOURED,
        "best_of": HONOURED,
        "echo": HONOURED,
        "logprobs": HONOURED,
        "max_tokens": HONOURED,
        "temperature": HONOURED,
        "top_p": HONOURED,
        "stop": HONOURED,
        "seed": HONOURED,
        "frequency_penalty": HONOURED,
        "presence_penalty": HONOURED,
        "logit_bias": HONOURED,
        "repetition_penalty": HONOURED,
        "top_k": HONOURED,
        "min_p": HONOURED,
        "min_tokens": HONOURED,
        "ignore_eos": HONOURED,
        "stop_token_ids": HONOURED,
        "user": HARMLESS,
        "suffix": refused("what stands behind a text is not read; put it into the prompt", ""),
        "messages": _CHAT,
        "tools": refused("completions call no functions; use /v1/chat/completions", []),
        "max_completion_tokens": refused("use max_tokens"),
        "response_format": _FORM,
        "regex": _FORM,
        "choice": _FORM,
        "guided_json": _FORM,
        "guided_regex": _FORM,
        "guided_choice": _FORM,
        "guided_grammar": _FORM,
        "structured_outputs": _FORM,
        "reasoning_effort": _NO_TEMPLATE,
        "chat_template": _NO_TEMPLATE,
        "add_special_tokens": refused("prompts are read as they stand", False),
        "prompt_embeds": refused("embeddings are not accepted as a prompt"),
        "prompt_logprobs": refused("the prompt's are not told"),
        "priority": refused("is not for a request to choose", 0),
    },
    "stream_options": OPENAI["stream_options"],
}
"""What becomes of every field of `/v1/completions`; an unlisted one is ignored and named."""


class Body(Sampled, kw_only=True):
    """The honoured fields."""

    prompt: str | list[str]
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = None
    max_tokens: int = DEFAULT_TOKENS


def decode_request(body: bytes, *, request_id: str, now: int) -> Request:
    """The body of a completion as a Request; every fault is an InvalidRequest that names the field."""
    ignored: list[str] = []
    fields = _known(decode_object(body), "request", "", ignored)
    for name in ("model", "prompt"):
        if name not in fields:
            raise InvalidRequest(f"{name}: is required", param=name, code="missing_required_parameter")
    _refuse_tokens(fields["prompt"])
    top = convert(fields, Body, "")
    options = convert(_known(top.stream_options or {}, "stream_options", "stream_options", ignored), StreamOptions, "")
    within(top.logprobs, 0, MOST_LOGPROBS, "logprobs")
    sampling = sampling_of(top, limit=top.max_tokens, logprobs=top.logprobs)
    if top.best_of not in (None, 1, top.n):
        raise _refused("best_of", "no more answers are made than are given; it must be 1 or equal n")
    if top.echo and top.logprobs is not None:
        raise _refused("logprobs", "those of a prompt are not told; leave out echo")
    return Request(
        id=request_id,
        created=now,
        model=top.model,
        messages=_prompts(top.prompt),
        raw=True,
        echo=top.echo,
        sampling=sampling,
        choices=top.n,
        stream=top.stream,
        stream_usage=bool(options.include_usage),
        ignored=tuple(ignored),
    )


def _known(value: Json, kind: str, path: str, ignored: list[str]) -> Json:
    kept, unknown = sort_fields(value, COMPLETIONS[kind], path, ignored)
    ignored.extend(f"{path}.{name}" if path else name for name in unknown)
    return kept


def _refuse_tokens(prompt: Any) -> None:
    """Moderators read words, and so do engines: numbers are neither."""
    if isinstance(prompt, list) and any(isinstance(item, int | list) for item in prompt):  # pyright: ignore[reportUnknownVariableType]
        raise _refused("prompt", "token ids are not accepted; send the text itself")


def _prompts(prompt: str | list[str]) -> tuple[Message, ...]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise InvalidRequest(f"prompt: must be a text, or a list of 1 to {MOST_PROMPTS}", param="prompt")
    for place, text in enumerate(prompts):
        if not text:
            where = "prompt" if isinstance(prompt, str) else f"prompt[{place}]"
            raise InvalidRequest(f"{where}: must not be empty", param=where)
    return tuple(Message("user", (Text(text),)) for text in prompts)


def _refused(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {why}", param=name, code="unsupported_parameter")
