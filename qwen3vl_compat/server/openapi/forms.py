"""Bodies of requests as JSON Schema, made from what the wires read them by: their tables of fields and their Structs.

A table says of every field whether it is honoured, harmless or refused, a Struct of which type it is. Only what a wire
reads by hand is said again here: which kind of object stands in which field.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from qwen3vl_compat.wire.body import Json, Rule, Rules

REF = "#/components/schemas/{name}"
TEXT: Json = {"type": "string"}
WHOLE: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
FLAG: Json = {"type": "boolean"}
OBJECT: Json = {"type": "object"}
ANY: Json = {}

Type = Json | str | list[Any] | tuple[Any, ...]
"""A schema; the name of a kind of object; a list of what is in its brackets; or any of several."""


class Kind(Struct, frozen=True):
    """One kind of object: the Struct that reads it, types that the Struct does not know, and what must be there."""

    form: type[Struct] | None = None
    types: Mapping[str, Type] = {}
    required: tuple[str, ...] = ()


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


def forms_of(prefix: str, rules: Mapping[str, Rules], kinds: Mapping[str, Kind]) -> dict[str, Json]:
    """The components `prefix.kind`, one for each table of fields; AssertionError for a field that no table has."""
    assert kinds.keys() <= rules.keys(), kinds.keys() - rules.keys()
    return {_name(prefix, kind): _form(prefix, rules[kind], kinds.get(kind, Kind())) for kind in rules}


def _name(prefix: str, kind: str) -> str:
    return f"{prefix}.{kind.replace(' ', '_')}"


def _form(prefix: str, rules: Rules, kind: Kind) -> Json:
    own: Json = _own(kind.form) if kind.form is not None else {"properties": {}, "required": []}
    types: dict[str, Json] = own["properties"] | {name: _typed(prefix, each) for name, each in kind.types.items()}
    assert types.keys() <= rules.keys(), types.keys() - rules.keys()
    required = [*own["required"], *kind.required]
    properties = {name: _property(rule, types.get(name, ANY), name in required) for name, rule in rules.items()}
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def _own(form: type[Struct]) -> Json:
    return schemas_of(form)[form.__name__]


def _typed(prefix: str, said: Type) -> Json:
    match said:
        case str():
            return ref(_name(prefix, said))
        case list():
            return {"type": "array", "items": _typed(prefix, said[0])}
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
