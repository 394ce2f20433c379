"""Google's schemas in JSON Schema's words: nothing in them is passed over."""

from typing import Any

import pytest

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.wire.google_schema import json_schema


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"type": "STRING"}, {"type": "string"}),
        ({"type": "TYPE_UNSPECIFIED"}, {}),
        ({"type": "STRING", "nullable": True}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"type": "STRING", "format": "enum", "enum": ["a"]}, {"type": "string", "enum": ["a"]}),
        ({"type": "ARRAY", "minItems": "3", "max_items": 4}, {"type": "array", "minItems": 3, "maxItems": 4}),
        ({"type": "STRING", "minLength": "1"}, {"type": "string", "minLength": 1}),
        ({"uniqueItems": True}, {"uniqueItems": True}),
        ({"const": 5}, {"const": 5}),
        ({"not": {"type": "STRING"}}, {"not": {"type": "string"}}),
        ({"oneOf": [{"type": "STRING"}, {"type": "NULL"}]}, {"oneOf": [{"type": "string"}, {"type": "null"}]}),
        ({"allOf": [{"minimum": 1}]}, {"allOf": [{"minimum": 1}]}),
        ({"exclusiveMinimum": 1, "multipleOf": 2}, {"exclusiveMinimum": 1, "multipleOf": 2}),
        ({"type": "STRING", "example": "x", "title": "T"}, {"type": "string", "title": "T"}),
        (
            {"properties": {"b": {"type": "STRING"}, "a": {"one_of": [{}]}}, "propertyOrdering": ["a", "b"]},
            {"properties": {"a": {"oneOf": [{}]}, "b": {"type": "string"}}},
        ),
        (
            {"ref": "#/$defs/a", "defs": {"a": {"type": "OBJECT"}}},
            {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
        ),
    ],
)  # fmt: skip
def test_a_schema_in_json_schema_s_words(given: Any, made: Any) -> None:
    assert json_schema(given, "s") == made


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"patternProperties": {}}, "s.patternProperties"),
        ({"if": {}}, "s.if"),
        ({"items": {"what": 1}}, "s.items.what"),
        ({"anyOf": [{}, {"dependentRequired": {}}]}, "s.anyOf[1].dependentRequired"),
        ({"minItems": "three"}, "s.minItems"),
        ({"type": "TEXT"}, "s.type"),
        ({"not": 5}, "s.not"),
    ],
)
def test_what_neither_has_is_refused_by_name(given: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        json_schema(given, "s")
    assert refused.value.param == param
