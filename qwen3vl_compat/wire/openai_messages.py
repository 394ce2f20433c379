"""The messages of OpenAI's chat completions: roles, parts, tool calls and their results."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Content, Message, Part, Reasoning, Received, Role, Text, ToolCall, ToolResult
from qwen3vl_compat.wire import openai_media
from qwen3vl_compat.wire.asked import check_name
from qwen3vl_compat.wire.body import Json, convert, shown, sort_fields
from qwen3vl_compat.wire.fields import OPENAI

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
PARTS_NOT_SERVED = ("image_file", "input_audio", "image_embeds", "audio_url")


class _Function(Struct):
    name: str
    arguments: str = ""


class _Call(Struct):
    id: str
    function: _Function
    type: str = "function"


def known(value: Json, kind: str, path: str, ignored: list[str]) -> Json:
    """The honoured fields; those this API does not define are ignored and named."""
    kept, unknown = sort_fields(value, OPENAI[kind], path, ignored)
    ignored.extend(f"{path}.{name}" if path else name for name in unknown)
    return kept


def decode_messages(items: list[Json], ignored: list[str]) -> tuple[Message, ...]:
    """All messages; every fault is an InvalidRequest that names the field."""
    if not items:
        raise InvalidRequest("messages: must hold at least one message", param="messages")
    names: dict[str, str] = {}
    return tuple(_message(item, f"messages[{place}]", ignored, names) for place, item in enumerate(items))


def _message(item: Json, path: str, ignored: list[str], names: dict[str, str]) -> Message:
    name = item.get("role")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        said = f"; {shown(name)} is not served" if isinstance(name, str) else ""
        raise InvalidRequest(f"{path}.role: must be one of {', '.join(ROLES)}{said}", param=f"{path}.role")
    fields = known(item, "message", path, ignored)
    if role == "tool":
        return Message("tool", (_result(fields, path, ignored, names),))
    thoughts = convert(fields.get("reasoning_content", fields.get("reasoning", "")), str, f"{path}.reasoning_content")
    calls = tuple(_calls(fields.get("tool_calls") or [], f"{path}.tool_calls"))
    if role != "assistant" and (calls or thoughts):
        raise InvalidRequest(f"{path}: only assistant messages may hold tool calls or reasoning", param=path)
    names.update({call.id: call.name for call in calls})
    content = _content(fields, path, ignored, optional=role == "assistant")
    for place, part in enumerate(content):
        if isinstance(part, Received) and role != "user":
            at = f"{path}.content[{place}]"
            raise InvalidRequest(f"{at}: only user and tool messages may hold media", param=at)
    before: tuple[Part, ...] = (Reasoning(thoughts),) if thoughts else ()
    return Message(role, (*before, *content, *calls))


def _calls(value: Any, path: str) -> list[ToolCall]:
    calls: list[ToolCall] = []
    for place, item in enumerate(convert(value, list[Json], path)):
        at = f"{path}[{place}]"
        call = convert(item, _Call, at)
        if call.type != "function":
            raise InvalidRequest(f"{at}.type: must be 'function'", param=f"{at}.type")
        name = check_name(call.function.name, f"{at}.function.name")
        calls.append(ToolCall(call.id, name, call.function.arguments))
    return calls


def _result(fields: Json, path: str, ignored: list[str], names: dict[str, str]) -> ToolResult:
    where = f"{path}.tool_call_id"
    if "tool_call_id" not in fields:
        raise InvalidRequest(f"{where}: is required", param=where, code="missing_required_parameter")
    number = convert(fields["tool_call_id"], str, where)
    return ToolResult(number, names.get(number, ""), _content(fields, path, ignored, optional=False))


def _content(fields: Json, path: str, ignored: list[str], *, optional: bool) -> tuple[Content, ...]:
    content, where = fields.get("content"), f"{path}.content"
    if isinstance(content, str):
        return (Text(content),)
    if content is None and optional:
        return (Text(""),)
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}: must be a string or a list of parts", param=where)
    items = convert(content, list[Any], where)
    if not items and not optional:
        raise InvalidRequest(f"{where}: must hold at least one part", param=where)
    return tuple(_part(part, f"{where}[{place}]", ignored) for place, part in enumerate(items)) or (Text(""),)


def _part(value: Any, path: str, ignored: list[str]) -> Content:
    item = convert(value, Json, path)
    kind = item.get("type")
    match kind:
        case "text":
            kept = known(item, "part", path, ignored)
            return Text(convert(kept.get("text"), str, f"{path}.text"))
        case "refusal":
            return Text(convert(item.get("refusal"), str, f"{path}.refusal"))
        case "image_url" | "video_url" | "file":
            where, kept = f"{path}.{kind}", known(item, "part", path, ignored)
            return openai_media.READERS[kind](known(convert(kept.get(kind), Json, where), kind, where, ignored), where)
        case "video":
            return openai_media.frames(known(item, "part", path, ignored), path)
        case str() if kind in PARTS_NOT_SERVED:
            raise InvalidRequest(
                f"{path}.type: {shown(kind)} parts are not supported by this server yet",
                param=f"{path}.type",
                code="unsupported_parameter",
            )
        case _:
            raise InvalidRequest(
                f"{path}.type: must be text, image_url, video_url, video or file", param=f"{path}.type"
            )
