"""Google's Schema, an OpenAPI dialect, as JSON Schema: types in small letters, nullable, properties in order."""

from typing import Any

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.wire.body import Json, convert, shown

TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_PLAIN = (
    "title", "description", "format", "enum", "minimum", "maximum", *_COUNTS, "pattern", "default", "required",
    "const", "multipleOf", "exclusiveMinimum", "exclusiveMaximum", "uniqueItems",
)  # fmt: skip
"""Keywords that mean the same; the last ones are JSON Schema's alone, to be kept to or refused like any others."""
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_KNOWN = {
    *_PLAIN, *_LISTS, "type", "nullable", "propertyOrdering", "items", "additionalProperties", "not", "properties",
    "$defs", "$ref", "example",
}  # fmt: skip
_SPELT = {
    "any_of": "anyOf", "one_of": "oneOf", "all_of": "allOf", "min_items": "minItems", "max_items": "maxItems",
    "min_length": "minLength", "max_length": "maxLength", "min_properties": "minProperties",
    "max_properties": "maxProperties", "property_ordering": "propertyOrdering", "prefix_items": "prefixItems",
    "additional_properties": "additionalProperties", "defs": "$defs", "ref": "$ref",
}  # fmt: skip


def json_schema(value: Any, path: str) -> Any:
    """The schema in JSON Schema's words; InvalidRequest for a keyword that neither has."""
    given = convert(value, Json, path)
    fields = {_SPELT.get(name, name): item for name, item in given.items() if item is not None}
    if unknown := fields.keys() - _KNOWN:
        raise InvalidRequest(f"{path}.{min(unknown)}: there is no such keyword", param=f"{path}.{min(unknown)}")
    made: Json = {name: fields[name] for name in _PLAIN if name in fields}
    for name in _COUNTS:  # int64, which proto-JSON writes as text
        if isinstance(made.get(name), str):
            made[name] = convert(made[name], int, f"{path}.{name}", strict=False)
    if made.get("format") == "enum":
        del made["format"]
    made |= _kind(fields.get("type"), f"{path}.type") | _below(fields, path)
    if "properties" in made and "propertyOrdering" in fields:
        order = convert(fields["propertyOrdering"], list[str], f"{path}.propertyOrdering")
        inner = made["properties"]
        made["properties"] = {name: inner[name] for name in (*order, *inner) if name in inner}
    return {"anyOf": [made, {"type": "null"}]} if fields.get("nullable") is True else made


def _kind(value: Any, path: str) -> Json:
    if value is None or value == "TYPE_UNSPECIFIED":
        return {}
    kind = convert(value, str, path).lower()
    if kind not in TYPES:
        raise InvalidRequest(f"{path}: {shown(kind)} is no type", param=path)
    return {"type": kind}


def _below(fields: Json, path: str) -> Json:
    """The schemas inside."""
    made: Json = {"$ref": fields["$ref"]} if "$ref" in fields else {}
    for name in ("items", "additionalProperties", "not"):
        if name in fields:
            inner = fields[name]
            made[name] = inner if isinstance(inner, bool) else json_schema(inner, f"{path}.{name}")
    for name in _LISTS:
        if name in fields:
            several = convert(fields[name], list[Any], f"{path}.{name}")
            made[name] = [json_schema(each, f"{path}.{name}[{place}]") for place, each in enumerate(several)]
    for name in ("properties", "$defs"):
        if name in fields:
            named = convert(fields[name], Json, f"{path}.{name}")
            made[name] = {key: json_schema(each, f"{path}.{name}.{key}") for key, each in named.items()}
    return made
