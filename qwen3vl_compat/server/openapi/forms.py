"""Bodies of requests as JSON Schema, made from what the wires read them by: their tables of fields and their Structs.

A table says of every field whether it is honoured, harmless or refused, a Struct of which type it is. Only what a wire
reads by hand is said again here: which kind of object stands in which field.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.wire.body import Bounds, Json, Rule, Rules

REF = "#/components/schemas/{name}"
TEXT: Json = {"type": "string"}
WHOLE: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
FLAG: Json = {"type": "boolean"}
OBJECT: Json = {"type": "object"}
ANY: Json = {}

Type = Json | str | list[Any] | tuple[Any, ...]
"""A schema; the name of a kind of object; a list of what its brackets hold, with `...` at least one; any of several."""


class Kind(Struct, frozen=True):
    """One kind of object: the Struct that reads it, types that the Struct does not know, and what must be there."""

    form: type[Struct] | None = None
    types: Mapping[str, Type] = {}
    required: tuple[str, ...] = ()
    bounds: Bounds = {}
    shapes: tuple[Json, ...] = ()
    """One of these holds as well."""


def by_word(field: str, **needed: str | tuple[str, ...]) -> tuple[Json, ...]:
    """Shapes of an object: what must be there with each word in this field."""
    fields = {word: (names,) if isinstance(names, str) else names for word, names in needed.items()}
    return tuple(
        {"properties": {field: {"enum": [word]}}, "required": [field, *names]} for word, names in fields.items()
    )


def exactly_one(*names: str) -> tuple[Json, ...]:
    """Shapes of an object that has one of these fields, and none of the others."""
    return tuple(
        {"required": [name], "properties": {other: {"type": "null"} for other in names if other != name}}
        for name in names
    )


def one_of(*words: str) -> Json:
    """One of these words."""
    return {"type": "string", "enum": list(words)}


def ref(name: str) -> Json:
    """A component by its name."""
    return {"$ref": REF.format(name=name)}


def schemas_of(*forms: type[Struct]) -> dict[str, Json]:
    """The components of Structs, under their own names."""
    _, components = msgspec.json.schema_components(forms, ref_template=REF)
    return components


def forms_of(
    prefix: str, rules: Mapping[str, Rules], kinds: Mapping[str, Kind], *, closed: bool = False
) -> dict[str, Json]:
    """The components `prefix.kind`, one for each table of fields; AssertionError for a field that no table has.

    `closed` says that a field which is in no table is refused.
    """
    assert kinds.keys() <= rules.keys(), kinds.keys() - rules.keys()
    made = {_name(prefix, kind): _form(prefix, rules[kind], kinds.get(kind, Kind())) for kind in rules}
    return closed_forms(made) if closed else made


def closed_forms(forms: Mapping[str, Json]) -> dict[str, Json]:
    """The same objects without any other fields."""
    return {name: {**form, "additionalProperties": False} for name, form in forms.items()}


def _name(prefix: str, kind: str) -> str:
    return f"{prefix}.{kind.replace(' ', '_')}"


def _form(prefix: str, rules: Rules, kind: Kind) -> Json:
    own: Json = _own(kind.form) if kind.form is not None else {"properties": {}, "required": []}
    types: dict[str, Json] = own["properties"] | {name: _typed(prefix, each) for name, each in kind.types.items()}
    assert types.keys() <= rules.keys(), types.keys() - rules.keys()
    if kind.form is not None:
        for name, said in zip(kind.form.__struct_fields__, kind.form.__struct_encode_fields__, strict=True):
            if name in kind.bounds:
                types[said] = _bounded(types[said], *kind.bounds[name])
    required = [*own["required"], *kind.required]
    needed = {*required, *(name for shape in kind.shapes for name in shape["required"])}
    properties = {name: _property(rule, types.get(name, ANY), name in needed) for name, rule in rules.items()}
    made: Json = {"type": "object", "properties": properties} | ({"required": required} if required else {})
    return made | ({"anyOf": list(kind.shapes)} if kind.shapes else {})


def _bounded(schema: Json, low: float, high: float) -> Json:
    """A number's schema with its bounds, null aside."""
    if "anyOf" in schema:
        inner = [each if each == {"type": "null"} else _bounded(each, low, high) for each in schema["anyOf"]]
        return schema | {"anyOf": inner}
    return schema | {"minimum": low, "maximum": high}


def _own(form: type[Struct]) -> Json:
    return schemas_of(form)[form.__name__]


def _typed(prefix: str, said: Type) -> Json:
    match said:
        case str():
            return ref(_name(prefix, said))
        case list():
            least = {"minItems": 1} if said[-1] is ... else {}
            return {"type": "array", "items": _typed(prefix, said[0])} | least
        case tuple():
            return {"anyOf": [_typed(prefix, each) for each in said]}
        case _:
            return said


def _property(rule: Rule, schema: Json, required: bool) -> Json:
    """A field as what becomes of it says; null asks for nothing wherever a field need not be there."""
    match rule.kind:
        case "honoured":
            return schema if required or not schema else {"anyOf": [schema, {"type": "null"}]}
        case "harmless":
            return {"description": "Accepted without effect."}
        case "refused":
            return {"enum": [*rule.neutral, None], "description": f"Refused otherwise: {rule.note}."}
