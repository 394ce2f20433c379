"""Google's tools and forms of the answer: declarations, toolConfig, OpenAPI-style schemas, thinkingConfig."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import OutputFormat, Thinking, Tool, ToolChoice
from qwen3vl_compat.wire.asked import MOST_TOKENS, check_name, check_tools, chosen, effort, schema_text
from qwen3vl_compat.wire.body import Json, convert, shown, within
from qwen3vl_compat.wire.google_schema import json_schema

MODES: Mapping[str, Literal["auto", "none", "required"]] = {
    "MODE_UNSPECIFIED": "auto", "AUTO": "auto", "VALIDATED": "auto", "ANY": "required", "NONE": "none",
}  # fmt: skip
JSON, ENUM, PLAIN = "application/json", "text/x.enum", ("", "text/plain")


def declared(tools: list[Json], known: Any, ignored: list[str]) -> tuple[Tool, ...]:
    """The functions of all tools; other kinds of tools are refused. `known` sorts an object's fields."""
    made: list[Tool] = []
    for place, item in enumerate(tools):
        path = f"tools[{place}]"
        where = f"{path}.functionDeclarations"
        declarations: Any = known(item, "tool", path, ignored).get("functionDeclarations") or []
        functions: list[Json] = convert(declarations, list[Json], where)
        made += [_declared(each, f"{where}[{number}]", known, ignored) for number, each in enumerate(functions)]
    return check_tools(made, "tools")


def _declared(item: Json, path: str, known: Any, ignored: list[str]) -> Tool:
    fields = known(item, "functionDeclaration", path, ignored)
    name = check_name(convert(fields.get("name"), str, f"{path}.name"), f"{path}.name")
    where, schema = f"{path}.parametersJsonSchema", fields.get("parametersJsonSchema")
    if schema is None and "parameters" in fields:
        where = f"{path}.parameters"
        schema = json_schema(fields["parameters"], where)
    return Tool(
        name=name,
        description=convert(fields.get("description", ""), str, f"{path}.description"),
        parameters="" if schema is None else schema_text(schema, where),
        param=where,
    )


def tool_choice(value: Any, tools: tuple[Tool, ...], known: Any, ignored: list[str]) -> ToolChoice:
    """What toolConfig asks for."""
    path = "toolConfig.functionCallingConfig"
    config = known(convert(value or {}, Json, "toolConfig"), "toolConfig", "toolConfig", ignored)
    inner = known(
        convert(config.get("functionCallingConfig") or {}, Json, path), "functionCallingConfig", path, ignored
    )
    mode = convert(inner.get("mode", "AUTO"), str, f"{path}.mode").upper()
    if mode not in MODES:
        raise InvalidRequest(f"{path}.mode: must be one of {', '.join(MODES)}", param=f"{path}.mode")
    where = f"{path}.allowedFunctionNames"
    names = convert(inner.get("allowedFunctionNames") or [], list[str], where)
    return chosen(MODES[mode], names, tools, where if names else f"{path}.mode")


def output_format(mime: str, schema: Any, json_text: Any) -> OutputFormat:
    """What responseMimeType, responseSchema and responseJsonSchema ask for together."""
    path = "generationConfig"
    if schema is not None and json_text is not None:
        message = f"{path}.responseJsonSchema: responseSchema is given too; an answer can have one form only"
        raise InvalidRequest(message, param=f"{path}.responseJsonSchema")
    name = "responseSchema" if json_text is None else "responseJsonSchema"
    given = json_text if schema is None else json_schema(schema, f"{path}.responseSchema")
    where = f"{path}.{name}"
    match mime:
        case "text/x.enum":
            values: Any = given.get("enum") if isinstance(given, dict) else None  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
            choices = convert(values, list[str], f"{where}.enum")
            return OutputFormat(kind="choice", value=json.dumps(choices, ensure_ascii=False), param=f"{where}.enum")
        case "application/json":
            if given is None:
                return OutputFormat(kind="json_object", param=f"{path}.responseMimeType")
            return OutputFormat(kind="json_schema", value=schema_text(given, where), strict=True, param=where)
        case _ if mime in PLAIN:
            if given is not None:
                raise InvalidRequest(f"{where}: responseMimeType must be {JSON} or {ENUM}", param=where)
            return OutputFormat()
        case _:
            message = (
                f"{path}.responseMimeType: {shown(mime)} is not supported; there are text/plain, {JSON} and {ENUM}"
            )
            raise InvalidRequest(message, param=f"{path}.responseMimeType")


def thinking(value: Any, known: Any, ignored: list[str]) -> Thinking:
    """What thinkingConfig asks for; thoughts are sent only to who asks for them."""
    path = "generationConfig.thinkingConfig"
    fields = known(convert(value or {}, Json, path), "thinkingConfig", path, ignored)
    shown_too = convert(fields.get("includeThoughts", False), bool, f"{path}.includeThoughts")
    budget = fields.get("thinkingBudget")
    budget = None if budget is None else convert(budget, int, f"{path}.thinkingBudget", strict=False)
    within(budget, -1, MOST_TOKENS, f"{path}.thinkingBudget")
    level = convert(fields.get("thinkingLevel", "THINKING_LEVEL_UNSPECIFIED"), str, f"{path}.thinkingLevel").lower()
    if level != "thinking_level_unspecified" and budget is None:
        return effort(level, f"{path}.thinkingLevel", shown=shown_too)
    if budget is None:
        return Thinking(shown=shown_too)
    return Thinking(enabled=budget != 0, budget=None if budget < 0 else budget, shown=shown_too)
