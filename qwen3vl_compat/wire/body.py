"""Bytes of a request body to a checked JSON object, and the rules for its fields."""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest

DEEPEST = 64
"""Levels of nesting a body may have."""

MOST_VALUES = 500_000
"""Commas and opening brackets a body may hold, those inside its texts included."""

Json = dict[str, Any]
T = TypeVar("T")


class Rule(Struct, frozen=True):
    """What becomes of a field: honoured, harmless (accepted without effect) or refused by name, and why."""

    kind: Literal["honoured", "harmless", "refused"]
    note: str = ""
    neutral: tuple[Any, ...] = ()
    """Values of a refused field that ask for nothing and pass, besides null."""


Rules = Mapping[str, Rule]
HONOURED, HARMLESS = Rule("honoured"), Rule("harmless")


def refused(note: str, *neutral: Any) -> Rule:
    """A field that cannot be left out without changing what was asked."""
    return Rule("refused", note, neutral)


def decode_object(body: bytes) -> Json:
    """Parse a request body strictly: one JSON object in UTF-8, no duplicate keys, no NaN, at most 64 levels deep."""
    # Base64 holds none of these, so pictures do not count; a body of a million tiny values takes gigabytes to parse.
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise _not_json(f"the body holds more than {MOST_VALUES} values")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"the body is not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _not_json(f"the body is not JSON: line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _not_json(f"the body is nested deeper than {DEEPEST} levels") from None
    except ValueError:
        raise _not_json("the body holds a number too long to be read") from None
    if not isinstance(value, dict):
        raise _not_json("the body must be a JSON object")
    _check_values(value)  # pyright: ignore[reportUnknownArgumentType]
    return value  # pyright: ignore[reportUnknownVariableType]


def _not_json(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        once: set[str] = set()
        twice = next(key for key, _ in pairs if key in once or once.add(key))
        raise InvalidRequest(f"the key {shown(twice)} appears twice in one object", code="duplicate_key")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _not_json("the body holds a number too large to be read")
    return number


def _refuse_constant(name: str) -> float:
    raise _not_json(f"{name} is not JSON")


def _check_values(value: Json) -> None:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for item in level:
            children: Any = ()
            if isinstance(item, dict):
                children = (*item.keys(), *item.values())  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType,reportUnknownMemberType]
            elif isinstance(item, list):
                children = item  # pyright: ignore[reportUnknownVariableType]
            elif isinstance(item, str):
                _check_text(item)
            below.extend(children)  # pyright: ignore[reportUnknownArgumentType]
        level = below
        if not level:
            return
    raise _not_json(f"the body is nested deeper than {DEEPEST} levels")


def _check_text(text: str) -> None:
    # PostgreSQL cannot store NUL and UTF-8 has no form for half a surrogate pair; base64 is ASCII and passes quickly.
    if "\0" in text or (not text.isascii() and re.search("[\ud800-\udfff]", text)):
        raise _not_json("the body holds a NUL or an unpaired surrogate in a string")


def shown(name: str) -> str:
    """A client's own word, short and harmless enough to be said back to it."""
    plain = "".join(character if character.isprintable() else "?" for character in name[:60])
    return f"'{plain}'"


def sort_fields(value: Json, rules: Rules, path: str, ignored: list[str]) -> tuple[Json, list[str]]:
    """Keep the honoured fields, note the harmless in `ignored`, refuse the refused; also returns the unknown names."""
    kept: Json = {}
    unknown: list[str] = []
    for name, item in value.items():
        where, rule = f"{path}.{name}" if path else name, rules.get(name)
        if rule is None:
            unknown.append(name)
        elif rule.kind == "honoured":
            if item is not None:
                kept[name] = item
        elif rule.kind == "harmless":
            ignored.append(where)
        elif not _asks_nothing(item, rule):
            raise InvalidRequest(f"{where}: {rule.note}", param=where, code="unsupported_parameter")
    return kept, unknown


def _asks_nothing(item: Any, rule: Rule) -> bool:
    return item is None or any(item == value and type(item) is type(value) for value in rule.neutral)


_AT = re.compile(r" - at `(?P<path>[^`]*)`$")
_LACKING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_TYPES = re.compile(r"`(?P<names>\w+(?: \| \w+)*)`")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}


def _in_words(types: re.Match[str]) -> str:
    names = [name for name in types["names"].split(" | ") if name != "null"] or ["null"]
    return " or ".join(_WORDS.get(name, name) for name in names)


def lacking(path: str, more: str = "") -> InvalidRequest:
    """What is said of a field that must be there; `more` tells what stands in it."""
    return InvalidRequest(f"{path}: is required{more}", param=path, code="missing_required_parameter")


def convert(value: Any, form: type[T], path: str, *, strict: bool = True) -> T:
    """Read `value` as `form`; a mismatch is an InvalidRequest that names the field under `path`.

    None is what a field that was not given comes to, as null is one; in a list it is a null.
    """
    try:
        return msgspec.convert(value, form, strict=strict)
    except msgspec.ValidationError as error:
        text = str(error)
    found = _AT.search(text)
    inner = found["path"].removeprefix("$") if found else ""
    param, text = (path + inner).lstrip(".") or None, _AT.sub("", text)
    if value is None and param and not param.endswith("]"):
        raise lacking(param)
    if missing := _LACKING.fullmatch(text):
        raise lacking(f"{param}.{missing['name']}" if param else missing["name"])
    reason = _TYPES.sub(_in_words, text).replace("`", "'")
    raise InvalidRequest(f"{param}: {reason}" if param else reason, param=param)


def optional(fields: Json, name: str, form: type[T], path: str) -> T | None:
    """A field under `path` as `form`, or None if it is not given."""
    value = fields.get(name)
    return None if value is None else convert(value, form, f"{path}.{name}")


def within(value: float | None, low: float, high: float, param: str) -> None:
    """Refuse a number outside low..high."""
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{param}: must be between {low} and {high}", param=param)


Bounds = Mapping[str, tuple[float, float]]
"""The least and most of numbers, by the names of a Struct's attributes."""


def check_bounds(fields: Struct, bounds: Bounds, path: str = "") -> None:
    """Refuse numbers outside of their bounds; what a Struct has not is not looked at."""
    for name, (low, high) in bounds.items():
        value = getattr(fields, name, None)
        if value is not None and not low <= value <= high:
            said = dict(zip(fields.__struct_fields__, fields.__struct_encode_fields__, strict=True))[name]
            within(value, low, high, f"{path}.{said}" if path else said)


_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n\f\v")


def decode_base64(text: str, param: str) -> bytes:
    """Base64 in either alphabet, with or without padding, white space allowed; anything else is refused."""
    cleaned = text.translate(_URL_SAFE)
    if "=" not in cleaned[-2:]:
        cleaned += "=" * (-len(cleaned) % 4)
    try:
        data = base64.b64decode(cleaned.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidRequest(f"{param}: not valid base64", param=param, code="invalid_base64") from None
    if not data:
        raise InvalidRequest(f"{param}: is empty", param=param, code="invalid_base64")
    return data
