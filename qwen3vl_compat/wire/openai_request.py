"""OpenAI's chat completions, the way in: a body as a Request."""

import json
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import OutputFormat, Request, Sampling, Thinking, Tool, ToolChoice
from qwen3vl_compat.wire.asked import (
    MOST_LOGPROBS,
    MOST_TOKENS,
    check_name,
    check_tools,
    chosen,
    effort,
    schema_text,
)
from qwen3vl_compat.wire.body import Json, convert, decode_object, lacking, within
from qwen3vl_compat.wire.openai_messages import decode_messages, known
from qwen3vl_compat.wire.openai_sampling import Sampled, StreamOptions, sampling_of


class Body(Sampled, kw_only=True):
    """The honoured fields."""

    messages: list[Json]
    logprobs: bool = False
    top_logprobs: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Json] = field(default_factory=list[Json])
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool = True
    response_format: Json | None = None
    regex: str | None = None
    choice: list[str] | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    include_reasoning: bool = True
    chat_template_kwargs: Json = field(default_factory=Json)


class Template(Struct):
    """What a chat template is told."""

    enable_thinking: bool | None = None
    thinking_budget: int | None = None


class Function(Struct):
    """A tool's."""

    name: str
    description: str | None = None
    parameters: Any = None
    strict: bool | None = None


class _Named(Struct):
    name: str


class _Tool(Struct):
    function: _Named
    type: Literal["function"] = "function"


class _Allowed(Struct):
    mode: Literal["auto", "required"]
    tools: list[_Tool]


class _Choice(Struct):
    type: Literal["function", "allowed_tools"]
    function: _Named | None = None
    allowed_tools: _Allowed | None = None


class Schema(Struct):
    """The form of an answer."""

    name: str = ""
    schema: Any = None
    strict: bool | None = None


def decode_request(body: bytes, *, request_id: str, now: int) -> Request:
    """The body of a chat completion as a Request; every fault is an InvalidRequest that names the field."""
    ignored: list[str] = []
    fields = known(decode_object(body), "request", "", ignored)
    for name in ("model", "messages"):
        if name not in fields:
            raise InvalidRequest(f"{name}: is required", param=name, code="missing_required_parameter")
    top = convert(fields, Body, "")
    options = convert(known(top.stream_options or {}, "stream_options", "stream_options", ignored), StreamOptions, "")
    tools = check_tools([_tool(item, f"tools[{at}]", ignored) for at, item in enumerate(top.tools)], "tools")
    choice = _tool_choice(top.tool_choice, tools)
    return Request(
        id=request_id,
        created=now,
        model=top.model,
        messages=decode_messages(top.messages, ignored),
        sampling=_sampling(top),
        tools=tools,
        tool_choice=msgspec.structs.replace(choice, parallel=top.parallel_tool_calls),
        format=_format(top, ignored),
        thinking=_thinking(top, ignored),
        choices=top.n,
        stream=top.stream,
        stream_usage=bool(options.include_usage),
        ignored=tuple(ignored),
    )


def _sampling(top: Body) -> Sampling:
    within(top.top_logprobs, 0, MOST_LOGPROBS, "top_logprobs")
    if top.top_logprobs and not top.logprobs:
        raise InvalidRequest("top_logprobs: logprobs must be true", param="top_logprobs")
    limit = top.max_completion_tokens if top.max_completion_tokens is not None else top.max_tokens
    return sampling_of(top, limit=limit, logprobs=(top.top_logprobs or 0) if top.logprobs else None)


def _tool(item: Json, path: str, ignored: list[str]) -> Tool:
    fields = known(item, "tool", path, ignored)
    if fields.get("type", "function") != "function":
        message = f"{path}.type: only 'function' is supported"
        raise InvalidRequest(message, param=f"{path}.type", code="unsupported_parameter")
    where = f"{path}.function"
    if "function" not in fields:
        raise lacking(where, ": name, description and parameters stand in it")
    inner = known(convert(fields.get("function"), Json, where), "function", where, ignored)
    function = convert(inner, Function, where)
    parameters = "" if function.parameters is None else schema_text(function.parameters, f"{where}.parameters")
    return Tool(
        name=check_name(function.name, f"{where}.name"),
        description=function.description or "",
        parameters=parameters,
        strict=bool(function.strict),
        param=f"{where}.parameters",
    )


def _tool_choice(value: str | Json | None, tools: tuple[Tool, ...]) -> ToolChoice:
    path = "tool_choice"
    if value in (None, "auto", "none", "required"):
        return chosen(value or "auto", (), tools, path)
    if isinstance(value, dict):
        choice = convert(value, _Choice, path)
        if choice.type == "function" and choice.function is not None:
            return chosen("required", (choice.function.name,), tools, path)
        if choice.type == "allowed_tools" and choice.allowed_tools is not None:
            names = [tool.function.name for tool in choice.allowed_tools.tools]
            return chosen(choice.allowed_tools.mode, names, tools, path)
    raise InvalidRequest(f"{path}: must be none, auto, required, a function or allowed_tools", param=path)


def _format(top: Body, ignored: list[str]) -> OutputFormat:
    asked = [name for name in ("regex", "choice") if getattr(top, name) is not None]
    form = _response_format(top.response_format or {"type": "text"}, ignored)
    if len(asked) + (form.kind != "text") > 1:
        raise InvalidRequest(f"{asked[0]}: an answer can have one form only", param=asked[0])
    if top.regex is not None:
        return OutputFormat(kind="regex", value=top.regex, param="regex")
    if top.choice is not None:
        return OutputFormat(kind="choice", value=json.dumps(top.choice, ensure_ascii=False), param="choice")
    return form


def _response_format(value: Json, ignored: list[str]) -> OutputFormat:
    path = "response_format"
    fields = known(value, path, path, ignored)
    match fields.get("type"):
        case "text":
            return OutputFormat()
        case "json_object":
            return OutputFormat(kind="json_object", param=path)
        case "json_schema":
            where = f"{path}.json_schema"
            inner = known(convert(fields.get("json_schema"), Json, where), "json_schema", where, ignored)
            schema = convert(inner, Schema, where)
            text = schema_text({} if schema.schema is None else schema.schema, f"{where}.schema")
            return OutputFormat(kind="json_schema", value=text, strict=bool(schema.strict), param=f"{where}.schema")
        case _:
            raise InvalidRequest(f"{path}.type: must be text, json_object or json_schema", param=f"{path}.type")


def _thinking(top: Body, ignored: list[str]) -> Thinking:
    path = "chat_template_kwargs"
    template = convert(known(top.chat_template_kwargs, path, path, ignored), Template, path)
    enabled = template.enable_thinking if top.enable_thinking is None else top.enable_thinking
    budget = template.thinking_budget if top.thinking_budget is None else top.thinking_budget
    within(budget, 0, MOST_TOKENS, "thinking_budget")
    if top.reasoning_effort is not None and budget is None:
        return effort(top.reasoning_effort, "reasoning_effort", enabled=enabled, shown=top.include_reasoning)
    return Thinking(enabled=enabled, budget=budget, shown=top.include_reasoning)
