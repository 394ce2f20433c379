"""Google's generateContent, the way in: a body as a Request."""

import re
from collections.abc import Container
from typing import Any

from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Request, Sampling
from qwen3vl_compat.wire import google_media, google_tools
from qwen3vl_compat.wire.asked import MOST_CHOICES, MOST_LOGPROBS, MOST_TOKENS, check_stops
from qwen3vl_compat.wire.body import Bounds, Json, check_bounds, convert, decode_object, shown
from qwen3vl_compat.wire.fields import GOOGLE
from qwen3vl_compat.wire.google_contents import decode_content, decode_system, known

VERBATIM = {"args", "response", "partMetadata", "labels", "parameters", "parametersJsonSchema", "responseSchema",
            "responseJsonSchema"}  # fmt: skip
"""Fields whose inside is the user's own and keeps its spelling."""


NAMES = frozenset(name for rules in GOOGLE.values() for name in rules)
CONFIG = "generationConfig"


class Config(Struct, rename="camel"):
    """The fields that are read as they are."""

    temperature: float | None = None
    top_p: float | None = None
    candidate_count: int = 1
    max_output_tokens: int | None = None
    stop_sequences: list[str] = []
    seed: int | None = None
    top_k: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None


BOUNDS: Bounds = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, MOST_TOKENS),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logprobs": (0, MOST_LOGPROBS),
    "candidate_count": (1, MOST_CHOICES),
    "max_output_tokens": (1, MOST_TOKENS),
    "seed": (-(2**63), 2**63 - 1),
}


def decode_request(body: bytes, *, model: str, request_id: str, now: int, stream: bool = False) -> Request:
    """The body of a generateContent call as a Request; snake_case and camelCase are both read, at every depth."""
    return _request(camel_case(decode_object(body), NAMES), model, request_id, now, stream)


def decode_count(body: bytes, *, model: str, request_id: str, now: int) -> Request:
    """The body of a countTokens call, which holds contents or a whole generateContentRequest, as a Request."""
    ignored: list[str] = []
    fields = known(camel_case(decode_object(body), NAMES), "countTokens", "", ignored)
    inner = fields.pop("generateContentRequest", None)
    if inner is None:
        return _request(fields, model, request_id, now, False)
    if fields:
        raise InvalidRequest("contents and generateContentRequest exclude each other", param="generateContentRequest")
    return _request(convert(inner, Json, "generateContentRequest"), model, request_id, now, False)


def _request(value: Json, model: str, request_id: str, now: int, stream: bool) -> Request:
    ignored: list[str] = []
    fields = known(value, "request", "", ignored)
    given = known(convert(fields.get("generationConfig", {}), Json, CONFIG), CONFIG, CONFIG, ignored)
    form = google_tools.output_format(
        convert(given.pop("responseMimeType", ""), str, f"{CONFIG}.responseMimeType"),
        given.pop("responseSchema", None),
        given.pop("responseJsonSchema", None),
    )
    thinking = google_tools.thinking(given.pop("thinkingConfig", None), known, ignored)
    closely = google_media.resolution(
        given.pop("mediaResolution", "MEDIA_RESOLUTION_UNSPECIFIED"), f"{CONFIG}.mediaResolution"
    )
    told = convert(given.pop("responseLogprobs", False), bool, f"{CONFIG}.responseLogprobs")
    config = _config(given)
    if config.logprobs is not None and not told:
        raise InvalidRequest(f"{CONFIG}.logprobs: responseLogprobs must be true", param=f"{CONFIG}.logprobs")
    if not fields.get("contents"):
        raise InvalidRequest("contents: must hold at least one content", param="contents")
    turns = convert(fields["contents"], list[Json], "contents")
    messages = [
        message for place, turn in enumerate(turns) for message in decode_content(turn, f"contents[{place}]", ignored)
    ]
    if "systemInstruction" in fields:
        messages.insert(0, decode_system(fields["systemInstruction"], ignored))
    tools = google_tools.declared(convert(fields.get("tools", []), list[Json], "tools"), known, ignored)
    return Request(
        id=request_id,
        created=now,
        model=model,
        messages=google_media.looked_at(messages, closely),
        sampling=Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
            logprobs=(config.logprobs or 0) if told else None,
            max_tokens=config.max_output_tokens,
            stop=tuple(config.stop_sequences),
            seed=config.seed,
        ),
        tools=tools,
        tool_choice=google_tools.tool_choice(fields.get("toolConfig"), tools, known, ignored),
        format=form,
        thinking=thinking,
        choices=config.candidate_count,
        stream=stream,
        ignored=tuple(ignored),
    )


def camel_case(value: Json, names: Container[str]) -> Json:
    """The same object with these names in camelCase, save inside fields that are the user's own.

    Other keys stay as they are spelt, to be told so.
    """
    result: Json = {}
    for key, item in value.items():
        name = re.sub(r"(?<=[A-Za-z0-9])_([a-z0-9])", lambda found: found[1].upper(), key)
        name = name if name in names else key
        if name in result:
            raise InvalidRequest(f"the key {shown(name)} appears twice in one object", code="duplicate_key")
        result[name] = item if name in VERBATIM else _camel_inside(item, names)
    return result


def _camel_inside(item: Any, names: Container[str]) -> Any:
    if isinstance(item, dict):
        return camel_case(item, names)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(item, list):
        return [_camel_inside(one, names) for one in item]  # pyright: ignore[reportUnknownVariableType]
    return item


def _config(fields: Json) -> Config:
    for name, item in fields.items():
        if isinstance(item, bool):  # lax reading would take true for 1
            raise InvalidRequest(f"{CONFIG}.{name}: must not be true or false", param=f"{CONFIG}.{name}")
    config = convert(fields, Config, CONFIG, strict=False)
    check_bounds(config, BOUNDS, CONFIG)
    check_stops(config.stop_sequences, f"{CONFIG}.stopSequences")
    return config
