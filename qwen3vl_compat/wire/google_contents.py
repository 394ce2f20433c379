"""The contents of Google's requests: roles, parts, calls and what functions gave back."""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Content, Message, Part, Reasoning, Received, Role, Text, ToolCall, ToolResult
from qwen3vl_compat.wire import google_media
from qwen3vl_compat.wire.asked import check_name
from qwen3vl_compat.wire.body import Json, convert, shown, sort_fields
from qwen3vl_compat.wire.fields import GOOGLE

ROLES: Mapping[str, Role] = {"user": "user", "model": "assistant", "function": "user"}


def known(value: Json, kind: str, path: str, ignored: list[str]) -> Json:
    """The honoured fields; those this API does not define are refused, as Google does."""
    kept, unknown = sort_fields(value, GOOGLE[kind], path, ignored)
    if unknown:
        where = f"{path}.{unknown[0][:60]}" if path else unknown[0][:60]
        at = f" at '{path}'" if path else ""
        raise InvalidRequest(f"Unknown name {shown(unknown[0])}{at}: no such field", param=where)
    return kept


def decode_content(item: Json, path: str, ignored: list[str]) -> Iterator[Message]:
    """One content as messages: what functions gave back stands in messages of its own."""
    fields = known(item, "content", path, ignored)
    name = fields.get("role", "user")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise InvalidRequest(f"{path}.role: must be user, model or function", param=f"{path}.role")
    parts = _parts(fields, path, ignored)
    if role != "user" and any(isinstance(part, Received) for part in parts):
        raise InvalidRequest(f"{path}.parts: only user contents may hold media", param=f"{path}.parts")
    if role != "assistant" and any(isinstance(part, ToolCall | Reasoning) for part in parts):
        raise InvalidRequest(f"{path}.parts: only model contents may hold calls or thoughts", param=f"{path}.parts")
    if role == "assistant" and any(isinstance(part, ToolResult) for part in parts):
        raise InvalidRequest(f"{path}.parts: a model content may not hold a functionResponse", param=f"{path}.parts")
    for is_result, group in groupby(parts, lambda part: isinstance(part, ToolResult)):
        if is_result:
            yield from (Message("tool", (part,)) for part in group)
        else:
            yield Message(role, tuple(group))


def decode_system(value: Any, ignored: list[str]) -> Message:
    """The system instruction as a message; words only."""
    path = "systemInstruction"
    if isinstance(value, str):
        return Message("system", (Text(value),))
    parts = _parts(known(convert(value, Json, path), "content", path, ignored), path, ignored)
    if not all(isinstance(part, Text) for part in parts):
        raise InvalidRequest(f"{path}.parts: may hold text only", param=f"{path}.parts")
    return Message("system", parts)


def _parts(fields: Json, path: str, ignored: list[str]) -> tuple[Part, ...]:
    where = f"{path}.parts"
    parts = fields.get("parts")
    if isinstance(parts, dict):  # proto-JSON readers take one part for a list of one
        parts = [parts]  # pyright: ignore[reportUnknownVariableType]
    items = convert(parts or [], list[Json], where)
    if not items:
        raise InvalidRequest(f"{where}: must hold at least one part", param=where)
    return tuple(_part(item, f"{where}[{place}]", ignored) for place, item in enumerate(items))


_KINDS = ("text", "inlineData", "fileData", "functionCall", "functionResponse")


def _part(item: Json, path: str, ignored: list[str]) -> Part:
    fields = known(item, "part", path, ignored)
    kinds = [kind for kind in _KINDS if kind in fields]
    if len(kinds) != 1:
        raise InvalidRequest(f"{path}: must hold one of {', '.join(_KINDS)}", param=path)
    thought = convert(fields.get("thought", False), bool, f"{path}.thought")
    where = f"{path}.{kinds[0]}"
    if kinds == ["text"]:
        text = convert(fields["text"], str, where)
        return Reasoning(text) if thought else Text(text)
    inner = convert(fields[kinds[0]], Json, where)
    match kinds[0]:
        case "functionCall":
            return _call(known(inner, "functionCall", where, ignored), where)
        case "functionResponse":
            return _result(known(inner, "functionResponse", where, ignored), where, ignored)
        case _:
            return google_media.medium(fields, path, known, ignored)


def _call(fields: Json, path: str) -> ToolCall:
    name = check_name(convert(fields.get("name"), str, f"{path}.name"), f"{path}.name")
    arguments = convert(fields.get("args", {}), Json, f"{path}.args")
    number = convert(fields.get("id", ""), str, f"{path}.id")
    return ToolCall(number, name, json.dumps(arguments, ensure_ascii=False))


def _result(fields: Json, path: str, ignored: list[str]) -> ToolResult:
    name = check_name(convert(fields.get("name"), str, f"{path}.name"), f"{path}.name")
    response = convert(fields.get("response", {}), Json, f"{path}.response")
    parts: list[Content] = [Text(json.dumps(response, ensure_ascii=False))]
    for place, item in enumerate(convert(fields.get("parts", []), list[Json], f"{path}.parts")):
        where = f"{path}.parts[{place}]"
        parts.append(google_media.medium(known(item, "responsePart", where, ignored), where, known, ignored))
    return ToolResult(convert(fields.get("id", ""), str, f"{path}.id"), name, tuple(parts))
