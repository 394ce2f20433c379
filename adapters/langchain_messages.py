"""LangChain's messages as those of the wire: its own content blocks, and those of OpenAI's and Anthropic's APIs.

A block is brought into the form of OpenAI's wire and read as the server reads it, so that both refuse the same.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from qwen3vl_compat.adapters.calling.failures import InvalidInput
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Content, Message, Part, Reasoning, Role, Text, ToolCall, ToolResult
from qwen3vl_compat.wire import openai_media
from qwen3vl_compat.wire.body import Json, convert, decode_base64, shown

ROLES: Mapping[str, Role] = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}
CALLS = ("tool_call", "tool_use", "invalid_tool_call", "tool_call_chunk")
"""Blocks that call a function; what they say stands in the message's own `tool_calls` too."""
MEDIA: Mapping[str, str] = {
    "image": "image_url", "image_url": "image_url", "video": "video_url", "video_url": "video_url",
    "file": "file", "document": "file", "text-plain": "file",
}  # fmt: skip
"""Blocks that hold a picture, video or document, and the part of OpenAI's wire that says the same."""
UNHEARD = ("audio", "input_audio")
PASSED_OVER = ("redacted_thinking",)
"""What no model but its maker's can read, and what asks for nothing."""


def conversation(messages: Sequence[BaseMessage]) -> list[Message]:
    """Each message as a turn; raises InvalidInput, which names the block."""
    try:
        return [_turn(message, f"messages[{place}]") for place, message in enumerate(messages)]
    except InvalidRequest as error:
        raise InvalidInput(error.message, param=error.param) from error


def _turn(message: BaseMessage, path: str) -> Message:
    match message:
        case AIMessage():
            return _answer(message, path)
        case ToolMessage():
            parts = _contents(message, path) or (Text(""),)
            return Message("tool", (ToolResult(message.tool_call_id, message.name or "", parts),))
        case HumanMessage():
            return Message("user", _contents(message, path))
        case SystemMessage():
            return Message("system", _contents(message, path))
        case ChatMessage() if message.role in ROLES:
            return Message(ROLES[message.role], _contents(message, path))
        case _:
            raise InvalidInput(f"{path}: a message of the type {shown(message.type)} cannot be sent", param=path)


def _answer(message: AIMessage, path: str) -> Message:
    """A turn of a model's: LangChain knows the blocks of all its providers."""
    blocks = cast("list[Json]", message.content_blocks)
    parts = [part for place, block in enumerate(blocks) for part in _parts(block, f"{path}.content[{place}]")]
    thoughts = "\n".join(part.text for part in parts if isinstance(part, Reasoning))
    calls = [
        *(ToolCall(each["id"] or "", each["name"], _text(each["args"], path)) for each in message.tool_calls),
        *(ToolCall(each["id"] or "", each["name"] or "", each["args"] or "") for each in message.invalid_tool_calls),
    ] or [part for part in parts if isinstance(part, ToolCall)]
    said = [part for part in parts if not isinstance(part, Reasoning | ToolCall)]
    return Message("assistant", (*([Reasoning(thoughts)] if thoughts else []), *said, *calls))


def _contents(message: BaseMessage, path: str) -> tuple[Content, ...]:
    """What a turn of anybody else's holds."""
    content = cast("str | list[str | Json]", message.content)
    found: list[Content] = []
    for place, block in enumerate([content] if isinstance(content, str) else content):
        where = f"{path}.content[{place}]"
        for part in (Text(block),) if isinstance(block, str) else _parts(block, where):
            if not isinstance(part, Content):
                raise InvalidInput(f"{where}: only messages of the model's think or call", param=where)
            found.append(part)
    return tuple(found)


def _parts(block: Json, path: str) -> tuple[Part, ...]:
    """What one block says, which may be nothing."""
    kind = block.get("type", "text" if "text" in block else None)
    match kind:
        case "text" | "refusal":
            return (Text(convert(block.get(kind), str, f"{path}.{kind}")),)
        case "reasoning" | "thinking":
            thought = convert(block.get(kind, ""), str, f"{path}.{kind}")
            return (Reasoning(thought),) if thought else ()
        case "non_standard":
            return _parts(convert(block.get("value"), Json, f"{path}.value"), path)
        case str() if kind in CALLS:
            return (_call(block, path),)
        case str() if kind in PASSED_OVER:
            return ()
        case str() if kind in UNHEARD:
            raise InvalidInput(f"{path}: the model hears nothing; {shown(kind)} blocks cannot be sent", param=path)
        case str() if kind in MEDIA:
            return _medium(block, MEDIA[kind], path)
        case None:
            raise InvalidInput(f"{path}.type: is required", param=f"{path}.type")
        case _:
            raise InvalidInput(f"{path}.type: blocks of the type {shown(str(kind))} cannot be sent", param=path)


def _call(block: Json, path: str) -> ToolCall:
    arguments = block.get("args", block.get("input"))
    text = arguments if isinstance(arguments, str) else _text(arguments or {}, path)
    return ToolCall(str(block.get("id") or ""), str(block.get("name") or ""), text)


def _text(arguments: Any, path: str) -> str:
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: the arguments of a call have no form in JSON ({error})", param=path) from error


# ------------------------------------------------------------------------------------------------------------- media


def _medium(block: Json, form: str, path: str) -> tuple[Part, ...]:
    """A picture, video or document, as a part of OpenAI's wire."""
    if isinstance(block.get("video"), list):
        return (openai_media.frames(block, path),)
    if (inner := block.get(form)) is not None:
        fields = {"url": inner} if isinstance(inner, str) else convert(inner, Json, f"{path}.{form}")
        return (_read(form, block | fields, path),)
    extras = {name.removeprefix("file_"): value for name, value in _inside(block, "extras", {}, path).items()}
    about = extras | {name: value for name, value in block.items() if value is not None}
    source = _inside(block, "source", block, path)  # Anthropic's have it apart
    said = [text for name in ("title", "context") if isinstance(text := about.get(name), str) and text]
    if _is_text(source):
        return (Text("\n".join([*said, _words(source, path)])),)
    name = about.get("filename") or about.get("title")
    context = about.get("context") if form == "file" else None
    before = (Text(convert(context, str, f"{path}.context")),) if context else ()
    return (*before, _read(form, extras | _named(source, form, path) | {"filename": name}, path))


def _inside(block: Json, name: str, default: Json, path: str) -> Json:
    return convert(block.get(name) or default, Json, f"{path}.{name}")


def _named(source: Json, form: str, path: str) -> Json:
    """Where a medium is, in the field of a part of this form."""
    data = source.get("base64", source.get("data"))
    held = {"url": source.get("url"), "file_id": source.get("file_id")}
    if data is not None:
        mime = source.get("mime_type") or source.get("media_type") or "application/octet-stream"
        held["data"] = f"data:{mime};base64,{convert(data, str, f'{path}.base64')}"
    (name, value), *others = [each for each in held.items() if each[1] is not None] or [("", None)]
    if others or value is None:
        raise InvalidInput(f"{path}: must hold exactly one of base64, url, file_id", param=path)
    if form != "file":
        return {"url": value}
    return {"file_id" if name == "file_id" else "file_data": value}


def _read(form: str, fields: Json, path: str) -> Content:
    given = {name: value for name, value in fields.items() if value is not None}
    return openai_media.READERS[form](given, path)


def _is_text(source: Json) -> bool:
    kinds = (source.get(name) for name in ("type", "mime_type", "media_type"))
    return any(isinstance(kind, str) and kind.startswith("text") for kind in kinds)


def _words(source: Json, path: str) -> str:
    """What a text file says."""
    data = source.get("base64", source.get("data") if source.get("type") == "base64" else None)
    if data is None:
        text = source.get("text", source.get("data"))
        if text is None:
            raise InvalidInput(f"{path}: a text has to come along, as text or base64", param=path)
        return convert(text, str, f"{path}.text")
    try:
        return decode_base64(convert(data, str, f"{path}.base64"), f"{path}.base64").decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}.base64: is no text in UTF-8", param=f"{path}.base64") from error
