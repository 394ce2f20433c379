"""The items of OpenAI's responses: messages, calls and their results, thoughts. As they come, and as they are kept."""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Content, Media, Message, Part, Reasoning, Text, ToolCall, ToolResult, Upload
from qwen3vl_compat.wire import openai_media
from qwen3vl_compat.wire.asked import check_name
from qwen3vl_compat.wire.body import Json, convert, decode_base64, optional, shown, sort_fields
from qwen3vl_compat.wire.openai_messages import ROLES
from qwen3vl_compat.wire.openai_responses_fields import RESPONSES

KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_TEXTS = ("input_text", "output_text", "text")
_PARTS = {"message": "content", "function_call_output": "output"}
"""Where an item of a kind holds parts."""
_INSIDE = {"input_image": ("image_url",), "input_file": ("file_data", "file_url")}
"""The fields of a part that may hold a medium."""
_ID = re.compile(r"[a-z]+_([0-9a-f]{24})_i?\d{1,9}")
_RESPONSE = re.compile(r"resp_[0-9a-f]{24}")


class Item(Struct, frozen=True):
    """One item, and what error messages call it."""

    value: Json
    path: str


def known(value: Json, kind: str, path: str, ignored: list[str]) -> Json:
    """The honoured fields; those this API does not define are ignored and named."""
    kept, unknown = sort_fields(value, RESPONSES[kind], path, ignored)
    ignored.extend(f"{path}.{name}" if path else name for name in unknown)
    return kept


def kind_of(item: Item) -> str:
    """What an item is; the two that need no `type` are told by what else they have."""
    kind = item.value.get("type")
    if kind is None:
        kind = "message" if "role" in item.value else "item_reference"
    if kind not in KINDS:
        said = f"; {shown(kind)} is not served" if isinstance(kind, str) else ""
        where = f"{item.path}.type"
        raise InvalidRequest(f"{where}: must be one of {', '.join(KINDS)}{said}", param=where)
    return kind


# ---------------------------------------------------------------------------------------------------- as messages


def decode_items(items: Iterable[Item], ignored: list[str]) -> tuple[Message, ...]:
    """All items as messages; every fault is an InvalidRequest that names the field."""
    turns = _Turns()
    for item in items:
        turns.add(kind_of(item), item, ignored)
    turns.end()
    return tuple(turns.messages)


class _Turns:
    """Messages in the making: a thought, what is said after it, and the calls after that are one of the assistant's."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._own: list[Part] = []
        self._names: dict[str, str] = {}

    def end(self) -> None:
        """The assistant's turn is over, if it had begun."""
        if self._own:
            thoughts = [part for part in self._own if isinstance(part, Reasoning)]
            rest = [part for part in self._own if not isinstance(part, Reasoning)]
            silent = [] if any(isinstance(part, Text) for part in rest) else [Text("")]
            self.messages.append(Message("assistant", (*thoughts, *silent, *rest)))
            self._own = []

    def add(self, kind: str, item: Item, ignored: list[str]) -> None:
        path = item.path
        if kind == "item_reference":
            raise InvalidRequest(f"{path}.id: there is no such item", param=f"{path}.id", code="item_not_found")
        fields = known(item.value, "reasoning_item" if kind == "reasoning" else kind, path, ignored)
        for name in ("id", "status"):  # not read here, but shown again
            optional(fields, name, str, path)
        match kind:
            case "message":
                self._say(fields, path, ignored)
            case "function_call":
                call = _call(fields, path)
                self._names[call.id] = call.name
                self._own.append(call)
            case "reasoning":
                if thought := _thought(fields, path):
                    self.end()
                    self._own.append(Reasoning(thought))
            case _:
                self.end()
                self.messages.append(Message("tool", (self._result(fields, path, ignored),)))

    def _say(self, fields: Json, path: str, ignored: list[str]) -> None:
        name = fields.get("role")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None or role == "tool":
            where = f"{path}.role"
            raise InvalidRequest(f"{where}: must be user, assistant, system or developer", param=where)
        content = _parts(fields.get("content"), f"{path}.content", ignored)
        for place, part in enumerate(content):
            if isinstance(part, Media) and role != "user":
                at = f"{path}.content[{place}]"
                raise InvalidRequest(f"{at}: only user messages and outputs of functions may hold media", param=at)
        if role != "assistant" or any(not isinstance(part, Reasoning) for part in self._own):
            self.end()
        if role == "assistant":
            self._own += content
        else:
            self.messages.append(Message(role, content))

    def _result(self, fields: Json, path: str, ignored: list[str]) -> ToolResult:
        number = _required(fields, "call_id", path)
        if number not in self._names:
            where = f"{path}.call_id"
            raise InvalidRequest(f"{where}: no function call with this id stands before it", param=where)
        return ToolResult(number, self._names[number], _parts(fields.get("output"), f"{path}.output", ignored))


def _required(fields: Json, name: str, path: str) -> str:
    where = f"{path}.{name}"
    if name not in fields:
        raise InvalidRequest(f"{where}: is required", param=where, code="missing_required_parameter")
    return convert(fields[name], str, where)


def full_name(name: str, namespace: str) -> str:
    """What the model calls a function of a namespace."""
    return f"{namespace}.{name}"


def _call(fields: Json, path: str) -> ToolCall:
    name = _required(fields, "name", path)
    if "namespace" in fields:
        name = full_name(name, convert(fields["namespace"], str, f"{path}.namespace"))
    name = check_name(name, f"{path}.name")
    return ToolCall(_required(fields, "call_id", path), name, _required(fields, "arguments", path))


def _thought(fields: Json, path: str) -> str:
    """The thought itself, or else its summary; what another server has encrypted is nothing to this one."""
    for name in ("content", "summary"):
        texts = [
            convert(part.get("text"), str, f"{path}.{name}[{place}].text")
            for place, part in enumerate(convert(fields.get(name, []), list[Json], f"{path}.{name}"))
        ]
        if texts:
            return "\n".join(texts)
    return ""


def _parts(value: Any, path: str, ignored: list[str]) -> tuple[Content, ...]:
    if isinstance(value, str):
        return (Text(value),)
    if not isinstance(value, list):
        raise InvalidRequest(f"{path}: must be a string or a list of parts", param=path)
    items = convert(value, list[Json], path)  # pyright: ignore[reportUnknownArgumentType]
    return tuple(_part(part, f"{path}[{place}]", ignored) for place, part in enumerate(items)) or (Text(""),)


def _part(value: Json, path: str, ignored: list[str]) -> Content:
    fields = known(value, "part", path, ignored)
    match fields.get("type"):
        case kind if kind in _TEXTS:
            return Text(convert(fields.get("text"), str, f"{path}.text"))
        case "refusal":
            return Text(convert(fields.get("refusal"), str, f"{path}.refusal"))
        case "input_image":
            return _image(fields, path)
        case "input_file":
            return openai_media.file(fields, path)
        case kind:
            said = f"; {shown(kind)} is not served" if isinstance(kind, str) else ""
            where = f"{path}.type"
            raise InvalidRequest(f"{where}: must be input_text, input_image, input_file or output_text{said}",
                                 param=where)  # fmt: skip


def _image(fields: Json, path: str) -> Media:
    """A picture: its URL as a plain string, or the id of an uploaded one."""
    given = [name for name in ("image_url", "file_id") if name in fields]
    if len(given) != 1:
        raise InvalidRequest(f"{path}: must hold exactly one of image_url, file_id", param=path)
    where = f"{path}.{given[0]}"
    text = convert(fields[given[0]], str, where)
    source, mime = (Upload(text), "") if given == ["file_id"] else openai_media.source_of(text, where, "image")
    detail, budget = openai_media.closely(fields, path)
    return Media(source=source, wanted="image", mime_type=mime, param=where, detail=detail, budget=budget)


# -------------------------------------------------------------------------------------------------------- as kept


def item_id(kind: str, request_id: str, place: int, *, given: bool = False) -> str:
    """The id of an item of an answer, or of those given with the request: it tells which response has it."""
    return f"{PREFIXES[kind]}_{request_id}_{'i' if given else ''}{place}"


def is_response(name: str) -> bool:
    """Whether it may be the id of a response of this server."""
    return _RESPONSE.fullmatch(name) is not None


def response_of(name: str) -> str | None:
    """The id of the response that has an item of this id."""
    found = _ID.fullmatch(name)
    return f"resp_{found[1]}" if found else None


def numbered(items: Sequence[Json], request_id: str) -> list[Json]:
    """The items as they are shown and kept: with type, id and status, and parts in place of plain text."""
    made: list[Json] = []
    for place, item in enumerate(items):
        kind: str = item.get("type") or "message"
        own = {name: value for name, value in item.items() if value is not None}
        whole: Json = {"type": kind, "id": item_id(kind, request_id, place, given=True), "status": "completed"} | own
        if kind == "message" and isinstance(content := whole.get("content"), str):
            text: Json = {"type": "input_text", "text": content}
            if whole.get("role") == "assistant":
                text = {"type": "output_text", "text": content, "annotations": []}
            whole["content"] = [text]
        made.append(whole)
    return made


def apart(items: Sequence[Json]) -> tuple[list[Json], dict[str, bytes]]:
    """Checked items without the media inside of them, and those by SHA-256."""
    media: dict[str, bytes] = {}

    def without(part: Json, name: str) -> Json:
        content = _content_of(name, part[name]) if isinstance(part.get(name), str) else None
        if content is None:
            return part
        digest = hashlib.sha256(content[0]).hexdigest()
        media[digest] = content[0]
        return part | {name: {"sha256": digest, "mime_type": content[1]}}

    return _with_media(items, without), media


def _content_of(name: str, text: str) -> tuple[bytes, str] | None:
    """What a field itself holds, and its type; None where it leads elsewhere."""
    if name == "file_data" and not re.match(r"\s*https?:|data:", text, re.IGNORECASE):
        return decode_base64(text, name), ""
    source, mime = openai_media.source_of(text, name, "image" if name == "image_url" else "file")
    return (source, mime) if isinstance(source, bytes) else None


def media_of(items: Sequence[Json], *, pictures: bool = False) -> set[str]:
    """The SHA-256 of all media that items were parted from, or of `pictures` alone."""
    found: set[str] = set()

    def note(part: Json, name: str) -> Json:
        if isinstance(part.get(name), dict) and (part["type"] == "input_image" or not pictures):
            found.add(part[name]["sha256"])
        return part

    _with_media(items, note)
    return found


def together(items: Sequence[Json], media: Mapping[str, bytes]) -> list[Json]:
    """The items as they came, with these media in their places; others are null."""
    urls: dict[tuple[str, str], str] = {}

    def with_medium(part: Json, name: str) -> Json:
        if not isinstance(part.get(name), dict):
            return part
        key = (part[name]["sha256"], part[name]["mime_type"])
        if key not in urls and key[0] in media:
            urls[key] = f"data:{key[1]};base64,{base64.b64encode(media[key[0]]).decode()}"
        return part | {name: urls.get(key)}

    return _with_media(items, with_medium)


def _with_media(items: Sequence[Json], change: Callable[[Json, str], Json]) -> list[Json]:
    """The items with each part changed that may hold a medium, in a field of that name."""

    def changed(part: Json) -> Json:
        for name in _INSIDE.get(part["type"], ()):
            part = change(part, name)
        return part

    made: list[Json] = []
    for item in items:
        name = _PARTS.get(item["type"], "")
        parts: list[Json] | str | None = item.get(name)
        made.append(item | {name: [changed(part) for part in parts]} if isinstance(parts, list) else item)
    return made
