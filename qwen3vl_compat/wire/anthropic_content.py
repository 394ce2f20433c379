"""The messages of Anthropic's API: roles, blocks of content, pictures and documents, tools' calls and results."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import (
    Link,
    Media,
    Message,
    Part,
    Reasoning,
    Role,
    Text,
    ToolCall,
    ToolResult,
    Upload,
)
from qwen3vl_compat.wire.anthropic_fields import ANTHROPIC
from qwen3vl_compat.wire.asked import check_name
from qwen3vl_compat.wire.body import Json, convert, decode_base64, optional, shown, sort_fields

ROLES: Mapping[str, tuple[Role, tuple[str, ...]]] = {
    "user": ("user", ("text", "image", "document", "tool_result")),
    "assistant": ("assistant", ("text", "thinking", "redacted_thinking", "tool_use")),
    "system": ("system", ("text",)),
}
"""The roles and the kinds of blocks that each may hold."""
RESULT = ("text", "image", "document")
"""Kinds of blocks that the result of a tool may hold."""
SOURCES: Mapping[str, tuple[str, ...]] = {
    "image": ("base64", "url", "file"),
    "document": ("base64", "url", "file", "text", "content"),
}
LONGEST_TITLE = 200

_HTTP = re.compile(r"\s*https?:", re.IGNORECASE)


def known(value: Json, kind: str, path: str, ignored: list[str]) -> Json:
    """The honoured fields; those this API does not define, or not yet, are ignored and named."""
    kept, unknown = sort_fields(value, ANTHROPIC[kind], path, ignored)
    ignored.extend(f"{path}.{name}" if path else name for name in unknown)
    return kept


def required(fields: Json, name: str, form: type[Any], path: str) -> Any:
    """A field under `path` that must be there, as `form`."""
    where = f"{path}.{name}" if path else name
    if name not in fields:
        raise InvalidRequest(f"{where}: is required", param=where, code="missing_required_parameter")
    return convert(fields[name], form, where)


def decode_messages(items: list[Json], ignored: list[str]) -> tuple[Message, ...]:
    """All messages, what tools gave back in some of its own; every fault is an InvalidRequest that names the field."""
    if not items:
        raise InvalidRequest("messages: must hold at least one message", param="messages")
    reader = _Reader(ignored)
    messages = tuple(
        message for place, item in enumerate(items) for message in reader.messages(item, f"messages[{place}]")
    )
    if messages[-1].role == "assistant":
        fault = "messages: an answer cannot be continued; the last message must be the user's"
        raise InvalidRequest(fault, param="messages", code="unsupported_parameter")
    return messages


def decode_system(value: Any, ignored: list[str]) -> Message:
    """The system prompt as a message; words only."""
    return Message("system", tuple(_Reader(ignored).blocks(value, "system", ROLES["system"][1])))


class _Reader:
    """Reads messages in their order: a tool's result refers to a call before it."""

    def __init__(self, ignored: list[str]) -> None:
        """`ignored` is where fields without effect are noted."""
        self._ignored = ignored
        self._calls: dict[str, str] = {}
        """The functions that were called, by the ids of the calls."""

    def messages(self, item: Json, path: str) -> Iterator[Message]:
        """One message as it is, or as several where it holds results of tools."""
        fields = known(item, "message", path, self._ignored)
        name = fields.get("role")
        if not isinstance(name, str) or name not in ROLES:
            raise InvalidRequest(f"{path}.role: must be one of {', '.join(ROLES)}", param=f"{path}.role")
        role, kinds = ROLES[name]
        parts = self.blocks(fields.get("content"), f"{path}.content", kinds)
        for is_result, group in groupby(parts, lambda part: isinstance(part, ToolResult)):
            if is_result:
                yield from (Message("tool", (part,)) for part in group)
            else:
                yield Message(role, tuple(group))

    def blocks(self, value: Any, path: str, kinds: tuple[str, ...]) -> list[Any]:
        """The parts that a string or a list of blocks comes to, at least one."""
        if isinstance(value, str):
            return [Text(value)]
        if not isinstance(value, list):
            raise InvalidRequest(f"{path}: must be a string or a list of blocks", param=path)
        items: list[Any] = convert(value, list[Any], path)
        parts = [part for place, item in enumerate(items) for part in self._block(item, f"{path}[{place}]", kinds)]
        return parts or [Text("")]

    def _block(self, item: Any, path: str, kinds: tuple[str, ...]) -> Iterator[Part]:
        block = convert(item, Json, path)
        kind = block.get("type")
        if not isinstance(kind, str) or kind not in kinds:
            said = f"; {shown(kind)} is not served here" if isinstance(kind, str) else ""
            raise InvalidRequest(f"{path}.type: must be one of {', '.join(kinds)}{said}", param=f"{path}.type")
        if kind == "redacted_thinking":  # a thought that only the server it came from can read
            self._ignored.append(path)
            return
        fields = known(block, kind, path, self._ignored)
        match kind:
            case "text":
                yield Text(required(fields, "text", str, path))
            case "thinking":
                yield Reasoning(required(fields, "thinking", str, path))
            case "tool_use":
                yield self._call(fields, path)
            case "tool_result":
                yield self._result(fields, path)
            case "image":
                yield self._media(*self._source(fields, kind, path), Media(source=b"", wanted="image"))
            case _:
                yield from self._document(fields, path)

    def _call(self, fields: Json, path: str) -> ToolCall:
        number = required(fields, "id", str, path)
        name = check_name(required(fields, "name", str, path), f"{path}.name")
        self._calls[number] = name
        return ToolCall(number, name, json.dumps(required(fields, "input", Json, path), ensure_ascii=False))

    def _result(self, fields: Json, path: str) -> ToolResult:
        number, where = required(fields, "tool_use_id", str, path), f"{path}.tool_use_id"
        if number not in self._calls:
            raise InvalidRequest(f"{where}: there is no tool_use block before it with this id", param=where)
        failed = convert(fields.get("is_error", False), bool, f"{path}.is_error")
        parts = self.blocks(fields.get("content", ""), f"{path}.content", RESULT)
        return ToolResult(number, self._calls[number], (*([Text("Error: ")] if failed else []), *parts))

    def _document(self, fields: Json, path: str) -> Iterator[Part]:
        """Words as they are, PDF to be drawn; what is said about it stands before it."""
        title = optional(fields, "title", str, path) or ""
        context = optional(fields, "context", str, path) or ""
        source, kind, where = self._source(fields, "document", path)
        name = ""
        if kind not in ("text", "content"):  # then each page is told the title
            name, title = title[:LONGEST_TITLE].strip(), ""
        yield from (Text(f"{each}\n") for each in (title, context) if each)
        match kind:
            case "text":
                yield Text(required(source, "data", str, where) + "\n")
            case "content":
                yield from self.blocks(source.get("content"), f"{where}.content", ("text", "image"))
                yield Text("\n")
            case _:
                yield self._media(source, kind, where, Media(source=b"", wanted="document", name=name))

    def _source(self, fields: Json, block: str, path: str) -> tuple[Json, str, str]:
        """The fields of a source, its kind and its path."""
        source, where = required(fields, "source", Json, path), f"{path}.source"
        kind = source.get("type")
        if not isinstance(kind, str) or kind not in SOURCES[block]:
            raise InvalidRequest(f"{where}.type: must be one of {', '.join(SOURCES[block])}", param=f"{where}.type")
        return known(source, f"{kind} source", where, self._ignored), kind, where

    @staticmethod
    def _media(source: Json, kind: str, path: str, media: Media) -> Media:
        """What a source holds or leads to; `media` says what it is for."""
        name = {"base64": "data", "url": "url", "file": "file_id"}[kind]
        text, param = required(source, name, str, path), f"{path}.{name}"
        found: bytes | Link | Upload = Upload(text)
        if kind == "base64":
            found = decode_base64(text, param)
        elif kind == "url":
            found = Link(text)
            if not _HTTP.match(text):
                code = f"invalid_{'image' if media.wanted == 'image' else 'file'}_url"
                raise InvalidRequest(f"{param}: must be an http(s) URL", param=param, code=code)
        mime = optional(source, "media_type", str, path) or ""
        return replace(media, source=found, mime_type=mime.lower(), param=param)
