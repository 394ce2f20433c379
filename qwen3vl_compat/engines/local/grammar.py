"""What an answer must look like, as a grammar in llguidance's Lark dialect; plain Python.

Two kinds: one that holds from the beginning of the visible answer (an output format, a forced tool, or a format with
tools beside it), and one that holds from a `<tool_call>` that the model has chosen to write until its closing tag.
"""

import json
from typing import Any

from qwen3vl_compat.engines.local.dialect import Tags
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import OutputFormat, Request, Tool

LONGEST_STRING, MOST_ITEMS = 8_192, 1_024
"""Characters of a string and items of a list whose schema sets no bound. (A bound takes 3 KB for each character.)"""
LARGEST_NUMBER, LARGEST_INTEGER = 10.0**15, 2**53 - 1
"""Of either sign, where a schema sets no bound: what every reader of JSON keeps exactly. (Exponents know none.)"""
SPACE = r"(\n {0,16}| ?)"
"""White space between the parts of a JSON text: a blank, or a line break and an indent; no room to ramble."""
LONGEST_SCHEMA, LONGEST_REGEX, MOST_CHOICES, LONGEST_CHOICE = 200_000, 16_000, 1_000, 2_000
"""Characters, and choices."""

_HEAD = "%llguidance {}\n"
_OPEN, _CLOSE = '"\\n{\\"name\\": \\""', '"}\\n"'


class Grammar:
    """A grammar's text and the field it came from."""

    def __init__(self, text: str, param: str) -> None:
        self.text, self.param = _HEAD + text, param


def grammars_of(request: Request, tags: Tags) -> tuple[Grammar | None, Grammar | None]:
    """The grammar of the whole answer, or else that of the calls in it, as far as there is any."""
    answer = answer_grammar(request, tags)
    return answer, call_grammar(request, tags) if answer is None else None


def answer_grammar(request: Request, tags: Tags) -> Grammar | None:
    """The grammar of the whole visible answer, if it is bound to one."""
    tools = _callable(request, tags)
    forced = request.tool_choice.mode == "required"
    bound = request.format.kind != "text" and not forced
    if not (forced or bound):
        return None
    rules: list[str] = []
    if bound:
        rules.append(f"answer: {_format(request.format)}")
    if tools:
        more = '("\\n" call)*' if request.tool_choice.parallel else ""
        call = f"call: <[{tags.call}]> body <[{tags.end_call}]>"
        rules += [f"calls: call {more}", call, *_bodies(tools)]
    starts = [name for name, there in (("answer", bound), ("calls", tools)) if there]
    return Grammar("\n".join((f"start: {' | '.join(starts)}", *rules)), _param(request, bound, tools))


def call_grammar(request: Request, tags: Tags) -> Grammar | None:
    """The grammar of what follows a `<tool_call>`, where tools may be called."""
    tools = _callable(request, tags)
    if not tools:
        return None
    return Grammar("\n".join((f"start: body <[{tags.end_call}]>", *_bodies(tools))), _param(request, False, tools))


def _param(request: Request, bound: bool, tools: list[Tool]) -> str:
    """The one field a fault must be in, as far as that is known beforehand."""
    if bound:
        return request.format.param
    return tools[0].param if len(tools) == 1 else "tools"


def _callable(request: Request, tags: Tags) -> list[Tool]:
    choice = request.tool_choice
    if not request.tools or choice.mode == "none":
        return []
    if tags.call is None or tags.end_call is None:
        raise InvalidRequest("tools: this model has no tokens for tool calls", param="tools")
    return [tool for tool in request.tools if not choice.names or tool.name in choice.names]


def _bodies(tools: list[Tool]) -> list[str]:
    names = " | ".join(f"tool{place}" for place in range(len(tools)))
    rules = [f"body: {_OPEN} ({names}) {_CLOSE}"]
    for place, tool in enumerate(tools):
        schema = _schema(tool.parameters, tool.param) if tool.parameters else {"additionalProperties": False}
        if tool.strict and (fault := _unkeepable(schema)):
            raise _refused(tool.param, f"this cannot be kept to: {fault}")
        head = _quoted(json.dumps(tool.name, ensure_ascii=False)[1:] + ', "arguments": ')
        arguments = _json(_object(schema, tool.param), strict=tool.strict)
        rules += [f"tool{place}: {head} arguments{place}", f"arguments{place}: {arguments}"]
    return rules


def _object(schema: Any, param: str) -> dict[str, Any]:
    """Arguments are an object, also where a schema forgets to say so."""
    if not isinstance(schema, dict):
        return {"type": "object"}
    made: dict[str, Any] = dict(schema)
    kinds: Any = made.get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise _refused(param, "the type of a function's arguments must be object")
    return made | {"type": "object"}


def _format(form: OutputFormat) -> str:
    match form.kind:
        case "json_schema":
            schema = _schema(form.value, form.param)
            if schema is False:
                raise _refused(form.param, "no value satisfies it")
            if form.strict and (fault := _unkeepable(schema)):
                raise _refused(form.param, f"this cannot be kept to: {fault}")
            return _json(schema, strict=form.strict)
        case "regex":
            if not 0 < len(form.value) <= LONGEST_REGEX:
                raise _refused(form.param, f"must have 1 to {LONGEST_REGEX} characters")
            return f"/{_lark_regex(form.value)}/"
        case "choice":
            choices: list[str] = json.loads(form.value)
            if not 0 < len(choices) <= MOST_CHOICES or not all(0 < len(each) <= LONGEST_CHOICE for each in choices):
                raise _refused(form.param, f"must hold 1 to {MOST_CHOICES} texts of 1 to {LONGEST_CHOICE} characters")
            return " | ".join(map(_quoted, choices))
        case _:
            return _json({"type": "object"}, strict=False)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # which a grammar must not hold as it is


def _lark_regex(regex: str) -> str:
    """The regex between slashes: those in it escaped, line ends spelt out."""
    pieces: list[str] = []
    escaped = False
    for character in regex:
        if character == "/" and not escaped:
            pieces.append("\\")
        pieces.append({"\n": "n" if escaped else "\\n", "\r": "r" if escaped else "\\r"}.get(character, character))
        escaped = character == "\\" and not escaped
    return "".join(pieces)


def _schema(text: str, param: str) -> Any:
    if len(text) > LONGEST_SCHEMA:
        raise _refused(param, f"the schema has more than {LONGEST_SCHEMA} characters")
    return json.loads(text)


def _refused(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {reason}", param=param or None, code="invalid_schema")


def _json(schema: Any, *, strict: bool) -> str:
    schema = {} if schema is True else schema
    options = {"whitespace_pattern": SPACE, "lenient": not strict, "coerce_one_of": not strict}
    return f"%json {json.dumps(bounded(schema) | {'x-guidance': options}, ensure_ascii=False)}"


_ONE = ("additionalProperties", "items", "contains", "unevaluatedProperties", "additionalItems")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def bounded(schema: Any) -> Any:
    """The schema with a length for each string and list that sets none; inside `not` and `if` nothing changes."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = dict(schema)
    for name in _ONE:
        if isinstance(made.get(name), dict):
            made[name] = bounded(made[name])
    for name in _LISTS:
        if isinstance(made.get(name), list):
            made[name] = [bounded(each) for each in made[name]]
    for name in _NAMED:
        if isinstance(made.get(name), dict):
            made[name] = {key: bounded(each) for key, each in made[name].items()}
    given = made.get("type")
    several: list[Any] = given if isinstance(given, list) else [given]
    kinds = {kind for kind in several if isinstance(kind, str)}  # llguidance refuses what is none
    if "string" in kinds and not made.keys() & {"maxLength", "pattern", "format", "enum", "const"}:
        made["maxLength"] = max(LONGEST_STRING, _number(made.get("minLength")))
    if "array" in kinds and not made.keys() & {"maxItems", "enum", "const"}:
        made["maxItems"] = max(MOST_ITEMS, _number(made.get("minItems")))
    if not made.keys() & {"enum", "const", "multipleOf"} and {"number", "integer"} & kinds:
        _bound_numbers(made, LARGEST_INTEGER if "number" not in kinds else LARGEST_NUMBER)
    return made


def _bound_numbers(schema: dict[str, Any], largest: float) -> None:
    """Set the bounds that are missing, unless the one that is there leaves no room for them."""
    lows = [schema[name] for name in ("minimum", "exclusiveMinimum") if isinstance(schema.get(name), int | float)]
    highs = [schema[name] for name in ("maximum", "exclusiveMaximum") if isinstance(schema.get(name), int | float)]
    if not lows and all(high > -largest for high in highs):
        schema["minimum"] = -largest
    if not highs and all(low < largest for low in lows):
        schema["maximum"] = largest


def _unkeepable(schema: Any) -> str:
    """The first keyword whose demand the grammar would pass over in silence, or an empty text."""
    if isinstance(schema, list):
        return next((found for each in schema if (found := _unkeepable(each))), "")
    if not isinstance(schema, dict):
        return ""
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(name), int) and abs(schema[name]) >= 2**63:
            return f"{name} is beyond 64 bits"
    required = schema.get("required")
    demanded = len(required) if isinstance(required, list) else 0
    if _number(schema.get("minProperties")) > max(1, demanded):
        return "minProperties asks for more than the required ones"
    return _unkeepable([each for name, each in schema.items() if name not in ("enum", "const", "default", "examples")])


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
