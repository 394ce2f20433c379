"""The tools of OpenAI's responses: functions, alone or gathered in namespaces, and the choice among them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Tool, ToolChoice
from qwen3vl_compat.wire.asked import check_name, check_tools, chosen, schema_text
from qwen3vl_compat.wire.body import Json, convert, shown
from qwen3vl_compat.wire.openai_items import full_name, known


class Function(Struct):
    """A tool, which is one."""

    name: str
    description: str | None = None
    parameters: Any = None
    strict: bool | None = None


class Namespace(Struct):
    """Functions under one name."""

    name: str
    tools: list[Json]


class _Named(Struct):
    name: str
    type: Literal["function"] = "function"


class _Choice(Struct):
    type: Literal["function", "allowed_tools"]
    name: str = ""
    mode: Literal["auto", "required"] = "auto"
    tools: list[_Named] = []


def decode_tools(items: Sequence[Json], ignored: list[str]) -> tuple[Tool, ...]:
    """All functions; the model knows one of a namespace by its full name."""
    found = [tool for place, item in enumerate(items) for tool in _tools(item, f"tools[{place}]", ignored)]
    return check_tools(found, "tools")


def _tools(item: Json, path: str, ignored: list[str]) -> Iterator[Tool]:
    if item.get("type") != "namespace":
        yield _tool(item, path, ignored)
        return
    space = convert(known(item, "namespace", path, ignored), Namespace, path)
    for place, inner in enumerate(space.tools):
        where = f"{path}.tools[{place}]"
        tool = _tool(inner, where, ignored)
        yield replace(tool, name=check_name(full_name(tool.name, space.name), f"{where}.name"))


def _tool(item: Json, path: str, ignored: list[str]) -> Tool:
    kind = item.get("type")
    if kind != "function":
        said = f", not {shown(kind)}" if isinstance(kind, str) else ""
        message = f"{path}.type: only tools of type 'function' are available here{said}"
        raise InvalidRequest(message, param=f"{path}.type", code="unsupported_parameter")
    function = convert(known(item, "tool", path, ignored), Function, path)
    parameters = "" if function.parameters is None else schema_text(function.parameters, f"{path}.parameters")
    return Tool(
        name=check_name(function.name, f"{path}.name"),
        description=function.description or "",
        parameters=parameters,
        strict=bool(function.strict),
        param=f"{path}.parameters",
    )


def decode_choice(value: str | Json | None, tools: tuple[Tool, ...]) -> ToolChoice:
    """Whether and what is to be called."""
    path = "tool_choice"
    if value in (None, "auto", "none", "required"):
        return chosen(value or "auto", (), tools, path)
    if isinstance(value, dict) and value.get("type") in ("function", "allowed_tools"):
        choice = convert(value, _Choice, path)
        if choice.type == "function":
            return chosen("required", (choice.name,), tools, path)
        return chosen(choice.mode, [tool.name for tool in choice.tools], tools, path)
    message = f"{path}: must be none, auto, required, a function or allowed_tools"
    raise InvalidRequest(message, param=path, code="unsupported_parameter" if isinstance(value, dict) else None)


def echo_tool(item: Json) -> Json:
    """What a response says again of a tool."""
    if item["type"] == "namespace":
        return item
    return {"description": None, "parameters": None, "strict": None} | item


def own_names(items: Iterable[Json]) -> Mapping[str, Json]:
    """What a call of each function in a namespace is told by, by its full name."""
    return {
        full_name(tool["name"], item["name"]): {"namespace": item["name"], "name": tool["name"]}
        for item in items
        if item["type"] == "namespace"
        for tool in item["tools"]
    }
