"""What is wrong with a setting, in the words of whoever set it: msgspec tells its own paths, types and patterns."""

import re
from collections.abc import Sequence
from typing import cast

from msgspec import Struct, ValidationError, inspect

_STEP = re.compile(r"\.(\w+)|\[([0-9]+|\.\.\.)\]")
_NO_FIELD = re.compile(r"Object contains unknown field (.*)", re.DOTALL)
_LACKING = re.compile(r"Object missing required field (.*)", re.DOTALL)
_NO_CHOICE = re.compile(r"Invalid enum value (.*)", re.DOTALL)

Steps = Sequence[tuple[str, str]]
"""A path: at each step the name of a field, or else the place in a list."""


def fault_of(error: ValidationError, form: type[Struct], given: object = None) -> str:
    """As `ledger.synchronous: must be one of NORMAL, FULL, not 'fast'`, for what `form` does not take of `given`."""
    why, at, place = str(error).replace("`", "").rpartition(" - at $")
    if not at:  # it is about the whole
        why, place = place, ""
    steps: Steps = _STEP.findall(place)
    node = _type_at(form, steps)
    field, why = _fault(why, node)
    if why.startswith("must be ") and ", not " not in why:
        why += _quoted(given, steps, node)
    name = ".".join([*(name for name, _ in steps if name), *filter(None, (field,))])
    number = next((f" (number {int(place) + 1})" for _, place in steps if place.isdecimal()), "")
    return f"{name}{number}: {why}"


def _quoted(given: object, steps: Steps, node: inspect.Type) -> str:
    """The text that stands for a list or a table, or in a list, none of which is ever secret."""
    if not (steps and steps[-1][1]) and not isinstance(_bare(node), inspect.DictType | inspect.VarTupleType):
        return ""
    for name, place in steps:
        if isinstance(given, dict):
            given = cast("dict[str, object]", given).get(name)
        elif isinstance(given, list) and place.isdecimal():
            given = cast("list[object]", given)[int(place)]
    return f", not '{given[:80]}'" if isinstance(given, str) else ""


def expected_of(form: type[Struct], name: str) -> str:
    """What may stand in a field, in words; empty where its type says it all."""
    return _words(_type_at(form, [(name, "")]))


def _fault(why: str, node: inspect.Type) -> tuple[str, str]:
    """The field of a table that is meant, if it is one, and what is wrong."""
    fields = {field.encode_name: field.type for field in node.fields} if isinstance(node, inspect.StructType) else {}
    own, colon, said = why.partition(": ")
    if colon and own in fields:  # the table's own words
        return own, said
    if found := _NO_FIELD.fullmatch(why):
        return found[1], f"there is no such setting; there are {', '.join(fields)}"
    if found := _LACKING.fullmatch(why):
        words = _words(fields[found[1]])
        return found[1], f"must be given: {words}" if words else "must be given"
    if words := _words(node):
        found = _NO_CHOICE.fullmatch(why)
        return "", f"must be {words}, not {found[1]}" if found else f"must be {words}"
    return "", why[:1].lower() + why[1:]


def _type_at(form: type[Struct], steps: Steps) -> inspect.Type:
    node = inspect.type_info(form)
    for name, _ in steps:
        match _bare(node):
            case inspect.StructType(fields=fields):
                node = next((field.type for field in fields if field.encode_name == name), inspect.AnyType())
            case inspect.VarTupleType(item_type=item) | inspect.DictType(value_type=item):
                node = item
            case other:
                return other
    return node


def _bare(node: inspect.Type) -> inspect.Type:
    return node.type if isinstance(node, inspect.Metadata) else node


def _words(node: inspect.Type) -> str:
    """What may stand there, where it is described or chosen from a list."""
    match node:
        case inspect.Metadata():
            extra = cast("dict[str, str]", node.extra_json_schema or {})  # pyright: ignore[reportUnknownMemberType]
            return extra.get("description") or _words(node.type)
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.VarTupleType(item_type=item) if (words := _words(item)).startswith("one of "):
            return f"a list of {words.removeprefix('one of ')}"
        case _:
            return ""
