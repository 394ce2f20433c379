"""Anthropic's Messages API, the way in: a body as a Request."""

from typing import Any, Literal

from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import OutputFormat, Request, Sampling, Thinking, Tool, ToolChoice
from qwen3vl_compat.wire.anthropic_content import decode_messages, decode_system, known, required
from qwen3vl_compat.wire.asked import (
    EFFORTS,
    MOST_TOKENS,
    check_name,
    check_stops,
    check_tools,
    chosen,
    schema_text,
)
from qwen3vl_compat.wire.body import Bounds, Json, check_bounds, convert, decode_object, optional, shown, within


class Body(Struct):
    """The honoured fields."""

    model: str
    messages: list[Json]
    max_tokens: int | None = None
    system: Any = None
    stream: bool = False
    stop_sequences: list[str] = []
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[Json] = []
    tool_choice: Json | None = None
    thinking: Json | None = None
    output_config: Json = {}
    output_format: Json | None = None


BOUNDS: Bounds = {
    "max_tokens": (1, MOST_TOKENS),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, MOST_TOKENS),
}


def decode_request(body: bytes, *, request_id: str, now: int) -> Request:
    """The body of a message to be made as a Request; every fault is an InvalidRequest that names the field."""
    return _request(body, request_id, now, ("model", "messages", "max_tokens"))


def decode_count(body: bytes, *, request_id: str, now: int) -> Request:
    """The body of count_tokens, which is that of a message without what only an answer needs, as a Request."""
    return _request(body, request_id, now, ("model", "messages"))


def _request(body: bytes, request_id: str, now: int, needed: tuple[str, ...]) -> Request:
    ignored: list[str] = []
    fields = known(decode_object(body), "request", "", ignored)
    for name in needed:
        required(fields, name, object, "")
    top = convert(fields, Body, "")
    output = known(top.output_config, "output_config", "output_config", ignored)
    messages = decode_messages(top.messages, ignored)
    if top.system is not None:
        messages = (decode_system(top.system, ignored), *messages)
    tools = check_tools([_tool(item, f"tools[{at}]", ignored) for at, item in enumerate(top.tools)], "tools")
    return Request(
        id=request_id,
        created=now,
        model=top.model,
        messages=messages,
        sampling=_sampling(top),
        tools=tools,
        tool_choice=_tool_choice(top.tool_choice or {"type": "auto"}, tools, ignored),
        format=_format(top.output_format, output, ignored),
        thinking=_thinking(top.thinking, optional(output, "effort", str, "output_config"), ignored),
        stream=top.stream,
        ignored=tuple(ignored),
    )


def _sampling(top: Body) -> Sampling:
    check_bounds(top, BOUNDS)
    return Sampling(
        temperature=top.temperature,
        top_p=top.top_p,
        top_k=top.top_k,
        max_tokens=top.max_tokens,
        stop=check_stops(top.stop_sequences, "stop_sequences"),
    )


def _tool(item: Json, path: str, ignored: list[str]) -> Tool:
    kind = item.get("type")
    if kind not in (None, "custom"):
        what = shown(kind) if isinstance(kind, str) else "it"
        fault = f"{path}.type: this server has no such tool as {what}; declare tools with an input_schema"
        raise InvalidRequest(fault, param=f"{path}.type", code="unsupported_parameter")
    fields = known(item, "tool", path, ignored)
    where = f"{path}.input_schema"
    return Tool(
        name=check_name(required(fields, "name", str, path), f"{path}.name"),
        description=optional(fields, "description", str, path) or "",
        parameters=schema_text(required(fields, "input_schema", object, path), where),
        strict=bool(optional(fields, "strict", bool, path)),
        param=where,
    )


_MODES: dict[str, Literal["auto", "none", "required"]] = {
    "auto": "auto", "any": "required", "tool": "required", "none": "none",
}  # fmt: skip


def _tool_choice(value: Json, tools: tuple[Tool, ...], ignored: list[str]) -> ToolChoice:
    path = "tool_choice"
    fields = known(value, path, path, ignored)
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in _MODES:
        raise InvalidRequest(f"{path}.type: must be one of {', '.join(_MODES)}", param=f"{path}.type")
    names = (required(fields, "name", str, path),) if kind == "tool" else ()
    choice = chosen(_MODES[kind], names, tools, f"{path}.name" if names else path)
    single = optional(fields, "disable_parallel_tool_use", bool, path)
    return ToolChoice(mode=choice.mode, names=choice.names, parallel=not single)


def _format(older: Json | None, output: Json, ignored: list[str]) -> OutputFormat:
    """The form of the answer, from `output_config.format` or the older `output_format`."""
    path = "output_config.format"
    value = optional(output, "format", Json, "output_config")
    if older is not None:
        if value is not None:
            raise InvalidRequest("output_format: output_config.format is given too", param="output_format")
        path, value = "output_format", older
    if value is None:
        return OutputFormat()
    fields = known(value, "format", path, ignored)
    if fields.get("type") != "json_schema":
        raise InvalidRequest(f"{path}.type: must be json_schema", param=f"{path}.type")
    where = f"{path}.schema"
    schema = schema_text(required(fields, "schema", object, path), where)
    return OutputFormat(kind="json_schema", value=schema, strict=True, param=where)


def _thinking(value: Json | None, effort: str | None, ignored: list[str]) -> Thinking:
    """What `thinking` and `output_config.effort` ask for; thoughts are sent only to who asks for them."""
    if effort is not None and effort not in EFFORTS:
        where = "output_config.effort"
        raise InvalidRequest(f"{where}: must be one of {', '.join(EFFORTS)}", param=where)
    bound = EFFORTS[effort] if effort is not None else None
    if value is None:
        return Thinking(budget=bound, shown=False)
    path = "thinking"
    fields = known(value, "thinking config", path, ignored)
    display = optional(fields, "display", str, path) or "summarized"
    if display not in ("summarized", "omitted"):
        raise InvalidRequest(f"{path}.display: must be summarized or omitted", param=f"{path}.display")
    match fields.get("type"):
        case "disabled":
            return Thinking(enabled=False, budget=0, shown=False)
        case "adaptive":
            return Thinking(budget=bound, shown=display == "summarized")
        case "enabled":
            budget = required(fields, "budget_tokens", int, path)
            within(budget, 1, MOST_TOKENS, f"{path}.budget_tokens")
            return Thinking(enabled=True, budget=budget, shown=display == "summarized")
        case _:
            raise InvalidRequest(f"{path}.type: must be enabled, disabled or adaptive", param=f"{path}.type")
