"""What a call of LangChain's asks, as a question of the client's.

The names are those of OpenAI's wire, whose own reader reads their values: what the server would refuse, it refuses.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from langchain_core.utils.function_calling import convert_to_json_schema
from msgspec.structs import replace

from qwen3vl_compat.adapters.calling.failures import InvalidInput
from qwen3vl_compat.adapters.calling.options import Options, Question
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Message, OutputFormat
from qwen3vl_compat.wire.body import Json, convert
from qwen3vl_compat.wire.fields import OPENAI
from qwen3vl_compat.wire.openai_request import decode_request

CALLERS = ("timeout", "headers", "on_progress", "idempotency_key")
"""What is for the client, not for the wire."""
OURS = ("messages", "stream", "stream_options")
"""What the call itself decides."""


def question_of(messages: Sequence[Message], asked: Mapping[str, Any]) -> Question:
    """The question that these messages and values are; raises InvalidInput, which names the argument."""
    for name in sorted(asked.keys() - OPENAI["request"].keys() - {*CALLERS}):
        raise InvalidInput(f"{name}: there is no such argument", param=name)
    body = {name: value for name, value in asked.items() if value is not None and name not in {*CALLERS, *OURS}}
    body["messages"] = [{"role": "user", "content": ""}]
    try:
        raw = {name: _json(value, name) for name, value in body.items()}
        tools = convert(body.get("tools", []), list[Json], "tools")
        raw["tool_choice"] = _json(_tool_choice(body.get("tool_choice"), tools), "tool_choice")
        request = decode_request(msgspec.json.encode(raw), request_id="", now=0)
    except InvalidRequest as error:
        raise InvalidInput(error.message, param=error.param) from error
    options = Options(
        model=request.model,
        sampling=request.sampling,
        thinking=request.thinking,
        tools=request.tools,
        tool_choice=request.tool_choice,
        choices=request.choices,
    )
    if request.format != OutputFormat():
        options["format"] = replace(request.format, param="")
    own = {name: asked[name] for name in CALLERS if asked.get(name) is not None}
    return Question(messages, None, None, None, cast("Options", {**options, **own}))


def _json(value: Any, name: str) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidInput(f"{name}: has no form in JSON ({error})", param=name) from error


def _tool_choice(choice: Any, tools: Sequence[Json]) -> Any:
    """LangChain's words for it, and Anthropic's, as OpenAI's."""
    said = [tool.get("function", tool) for tool in tools]
    names = [function.get("name") for function in said if isinstance(function, dict)]
    match choice:
        case None | False:
            return None
        case str() if choice in names:
            return {"type": "function", "function": {"name": choice}}
        case True | "any" | {"type": "any"}:
            return "required"
        case {"type": "auto" | "none" as mode}:
            return mode
        case {"type": "tool", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case str() if choice not in ("auto", "none", "required"):
            raise InvalidInput(f"tool_choice: there is no function '{choice}'", param="tool_choice")
        case _:
            return choice


def response_format(schema: Json | type, *, strict: bool | None = None) -> Json:
    """The form of an answer: a JSON Schema, a pydantic or TypedDict class, or what OpenAI calls a response_format."""
    if isinstance(schema, dict) and schema.get("type") in ("text", "json_object", "json_schema"):
        return schema
    described = {"name": "answer", "schema": schema_of(schema)}
    return {"type": "json_schema", "json_schema": described | ({} if strict is None else {"strict": strict})}


def schema_of(schema: Json | type) -> Json:
    """The JSON Schema as it stands, or of a class, or of a function's arguments; raises ValueError."""
    if isinstance(schema, dict) and not {"name", "function", "input_schema"} & schema.keys():
        return schema
    own = getattr(schema, "model_json_schema", None)
    return convert_to_json_schema(schema) if own is None else own()
