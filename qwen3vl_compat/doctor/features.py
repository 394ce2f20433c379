"""What answers can do beyond words, and what the server keeps: tools, forms, the cache, files, moderation."""

import secrets
from typing import Any, Literal

import msgspec
from msgspec import Struct

from qwen3vl_compat.doctor import shapes
from qwen3vl_compat.doctor.answers import shown
from qwen3vl_compat.doctor.finding import Failed, NotAvailable
from qwen3vl_compat.doctor.refusals import granted, words_of
from qwen3vl_compat.doctor.visit import Ask, Json, Reply, Visit, decoded
from qwen3vl_compat.doctor.wires import FRESH, bearer

_CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
_TOOL = {"type": "function", "function": {"name": "weather", "parameters": _CITY | {"additionalProperties": False}}}
_SIGN = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "lit": {"type": "boolean"}},
    "required": ["colour", "lit"],
    "additionalProperties": False,
}


async def _chat(visit: Visit, messages: list[Json], **fields: Any) -> tuple[shapes.ChatChoice, Reply]:
    body = {"model": visit.model, "messages": messages, "reasoning_effort": "none", "max_completion_tokens": 48}
    headers = bearer(visit.key) | ({} if fields.pop("kept", False) else FRESH)
    reply = await granted(visit, Ask("POST", "/v1/chat/completions", headers, {"json": body | fields}))
    chat = reply.read(shapes.Chat, "a chat completion")
    visit.tokens += chat.usage.total_tokens
    if not chat.choices:
        raise Failed("a choice", "none")
    return chat.choices[0], reply


class _Arguments(Struct, forbid_unknown_fields=True):
    city: Literal["Oslo", "Rome"]


async def check_tool(visit: Visit) -> str:
    """A function that must be called is called with fitting arguments, and what it gave back is taken."""
    asked: list[Json] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    choice: Json = {"type": "function", "function": {"name": "weather"}}
    made, _ = await _chat(visit, asked, tools=[_TOOL], tool_choice=choice)
    if made.finish_reason != "tool_calls" or len(made.message.tool_calls) != 1:
        raise Failed("one call, and tool_calls", f"{len(made.message.tool_calls)} calls, and {made.finish_reason}")
    call = made.message.tool_calls[0]
    decoded(call.function.arguments, _Arguments, "arguments that fit the function's schema")
    message = {"role": "assistant", "content": None, "tool_calls": [msgspec.to_builtins(call)]}
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    end, _ = await _chat(visit, [*asked, message, result], tools=[_TOOL], tool_choice="none", max_completion_tokens=8)
    arguments = " ".join(call.function.arguments.split())
    return f"{call.function.name}({arguments}), then {shown(end.message.content or '')}"


class _Sign(Struct, forbid_unknown_fields=True):
    colour: Literal["red", "blue"]
    lit: bool


async def check_schema(visit: Visit) -> str:
    """An answer is held to a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "sign", "strict": True, "schema": _SIGN}}
    choice, _ = await _chat(visit, [{"role": "user", "content": "A sign."}], response_format=form)
    sign = decoded(choice.message.content or "", _Sign, "an answer that fits the schema")
    return msgspec.json.encode(sign).decode()


async def check_cache(visit: Visit) -> str:
    """What was answered is answered again."""
    messages: list[Json] = [{"role": "user", "content": f"Say hello. ({secrets.token_hex(4)})"}]
    seen: list[str] = []
    answers: list[str] = []
    for _ in range(2):
        choice, reply = await _chat(visit, messages, temperature=0, max_completion_tokens=8, kept=True)
        answers.append(choice.message.content or "")
        seen.append(reply.headers.get("x-cache", "none"))
    if "none" in seen:
        raise Failed("the header x-cache", "none", "A proxy between has to let x-cache pass.")
    if answers[0] != answers[1]:
        raise Failed("the same answer twice", f"{answers[0]!r} and {answers[1]!r}")
    if seen != ["miss", "hit"]:
        off = (
            "no answers are kept" if "off" in seen else "made twice: several servers keep their own without cache.redis"
        )
        raise NotAvailable(f"{off} (x-cache: {', '.join(seen)})")
    return "miss, then hit"


class _File(Struct):
    id: str
    bytes: int
    uri: str


class _Deleted(Struct):
    deleted: bool


async def check_files(picture: bytes, visit: Visit) -> str:
    """A file is kept, told of, and gone when it is deleted."""
    headers = bearer(visit.key)
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    form = {"files": {"file": ("doctor.png", picture, "image/png")}, "data": {"purpose": "vision"} | expiry}
    reply = await visit.send(ask := Ask("POST", "/v1/files", headers, form))
    if reply.status == 404:
        raise NotAvailable(words_of(reply))
    made = (reply if reply.status == 200 else await granted(visit, ask)).read(_File, "a file")
    place = f"/v1/files/{made.id}"
    try:
        found = (await granted(visit, Ask("GET", place, headers))).read(_File, "the file")
    finally:
        gone = await granted(visit, Ask("DELETE", place, headers))
    if (found.id, found.bytes) != (made.id, len(picture)):
        raise Failed(f"{made.id} with {len(picture)} bytes", f"{found.id} with {found.bytes}")
    again = await visit.send(Ask("GET", place, headers))
    if not gone.read(_Deleted, "what was deleted").deleted or again.status != 404:
        raise Failed("404 for a file that was deleted", str(again.status))
    return f"{found.bytes} bytes kept, read, deleted"


class _Judged(Struct):
    flagged: bool
    category_applied_input_types: dict[str, list[str]]


class _Moderation(Struct):
    id: str
    results: list[_Judged]


async def check_moderation(visit: Visit) -> str:
    """Who moderates, if anybody, has nothing to say against a greeting."""
    asked = Ask("POST", "/v1/moderations", bearer(visit.key), {"json": {"input": "Hello"}})
    results = (await granted(visit, asked)).read(_Moderation, "a moderation").results
    if len(results) != 1 or results[0].flagged:
        hint = "See [moderation] in the settings, and the words in its files."
        raise Failed("one result, not flagged", f"{[each.flagged for each in results]}", hint)
    on = any(results[0].category_applied_input_types.values())
    return "'Hello' passes" if on else "'Hello' passes; nobody has looked at it"
