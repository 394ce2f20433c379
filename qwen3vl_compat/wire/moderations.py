"""OpenAI's moderations, `POST /v1/moderations`: both halves, for a server that is asked and one that asks."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Content, Media, Message, Request, Text
from qwen3vl_compat.wire import openai_media
from qwen3vl_compat.wire.body import Json, convert, decode_object, shown, sort_fields
from qwen3vl_compat.wire.fields import MODERATIONS

MOST_INPUTS = 256
"""Texts, or parts, in one request."""
USUAL_MODEL = "omni-moderation-latest"
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
"""OpenAI's own, which its clients expect in every answer."""


class Result(Struct, frozen=True):
    """What is said of one input; a score for every category that was looked for, 0 to 1."""

    flagged: bool
    categories: Sequence[str] = ()
    scores: Mapping[str, float] = {}


# -------------------------------------------------------------------------------------------------------- who is asked


def decode_request(body: bytes, *, request_id: str, now: int) -> Request:
    """One message for each result there is to be: each text of a list, or all parts of one together."""
    fields, ignored = decode_object(body), list[str]()
    kept = _known(fields, "request", "", ignored)
    model = convert(kept.get("model", USUAL_MODEL), str, "model")
    if not 1 <= len(model) <= 200:
        raise InvalidRequest("model: must have 1 to 200 characters", param="model")
    return Request(
        id=request_id, created=now, model=model, messages=_inputs(kept.get("input"), ignored), ignored=tuple(ignored)
    )


def _inputs(value: Any, ignored: list[str]) -> tuple[Message, ...]:
    if value is None:
        raise InvalidRequest("input: is required", param="input", code="missing_required_parameter")
    if isinstance(value, str):
        return (_said(value, "input"),)
    if not isinstance(value, list):
        raise InvalidRequest("input: must be a string, a list of strings, or a list of parts", param="input")
    items = convert(value, list[Any], "input")
    if not 1 <= len(items) <= MOST_INPUTS:
        raise InvalidRequest(f"input: must hold 1 to {MOST_INPUTS} texts or parts", param="input")
    if isinstance(items[0], str):
        texts = [convert(item, str, f"input[{place}]") for place, item in enumerate(items)]
        return tuple(_said(text, f"input[{place}]") for place, text in enumerate(texts))
    return (Message("user", tuple(_part(item, f"input[{place}]", ignored) for place, item in enumerate(items))),)


def _said(text: str, path: str) -> Message:
    if not text:
        raise InvalidRequest(f"{path}: must not be empty", param=path)
    return Message("user", (Text(text),))


def _part(value: Any, path: str, ignored: list[str]) -> Content:
    fields = _known(convert(value, Json, path), "part", path, ignored)
    match fields.get("type"):
        case "text":
            return Text(convert(fields.get("text"), str, f"{path}.text"))
        case "image_url":
            where = f"{path}.image_url"
            return _image(_known(convert(fields.get("image_url"), Json, where), "image_url", where, ignored), where)
        case _:
            raise InvalidRequest(f"{path}.type: must be text or image_url", param=f"{path}.type")


def _image(fields: Json, path: str) -> Media:
    return openai_media.image(fields, path)


def _known(value: Json, kind: str, path: str, ignored: list[str]) -> Json:
    kept, unknown = sort_fields(value, MODERATIONS[kind], path, ignored)
    ignored.extend(f"{path}.{shown(name)}" if path else name for name in unknown)
    return kept


def encode_answer(request: Request, results: Sequence[Result], *, pictures: bool) -> bytes:
    """A result for each message of the request; `pictures`: they were looked at too."""
    judged = [_result(message, result, pictures) for message, result in zip(request.messages, results, strict=True)]
    return msgspec.json.encode({"id": f"modr-{request.id}", "model": request.model, "results": judged})


def _result(message: Message, result: Result, pictures: bool) -> Json:
    applied = ["text"] if any(isinstance(part, Text) for part in message.parts) else []
    applied += ["image"] if pictures and any(isinstance(part, Media) for part in message.parts) else []
    names = dict.fromkeys((*CATEGORIES, *result.scores, *result.categories))
    scores = {name: result.scores.get(name, float(name in result.categories)) for name in names}
    return {
        "flagged": result.flagged,
        "categories": {name: name in result.categories for name in names},
        "category_scores": scores,
        "category_applied_input_types": {name: applied if name in result.scores else [] for name in names},
    }


# ------------------------------------------------------------------------------------------------------------ who asks


def encode_request(model: str, texts: Sequence[str], pictures: Sequence[bytes]) -> bytes:
    """A question about texts and pictures (JPEG) together; without pictures, about each text."""
    if not pictures:
        return msgspec.json.encode({"model": model, "input": texts})
    parts: list[Json] = [{"type": "text", "text": text} for text in texts]
    for picture in pictures:
        url = f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return msgspec.json.encode({"model": model, "input": parts})


class _Told(Struct):
    flagged: bool
    categories: dict[str, bool] = {}
    category_scores: dict[str, float] = {}


class _Answer(Struct):
    results: list[_Told]


def decode_answer(body: bytes) -> list[Result]:
    """What another server says; ValueError if that is not of this form, or says nothing."""
    found = msgspec.json.decode(body, type=_Answer).results  # its errors are ValueErrors
    if not found:
        raise ValueError("no results")
    return [
        Result(each.flagged, [name for name, flagged in each.categories.items() if flagged], each.category_scores)
        for each in found
    ]
