"""Anthropic's routes as OpenAPI tells them."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from qwen3vl_compat.server import anthropic_routes
from qwen3vl_compat.server.openapi.forms import FLAG, OBJECT, TEXT, WHOLE, Kind, forms_of, one_of, ref, schemas_of
from qwen3vl_compat.server.openapi.openai import GENERATING, TIMEOUT
from qwen3vl_compat.server.openapi.operation import ANSWERED, COUNTED, EVENTS, JSON, SSE, Operation
from qwen3vl_compat.wire import anthropic_request
from qwen3vl_compat.wire.anthropic_content import ROLES
from qwen3vl_compat.wire.anthropic_fields import ANTHROPIC
from qwen3vl_compat.wire.asked import EFFORTS
from qwen3vl_compat.wire.body import Json


class Said(Struct, kw_only=True, forbid_unknown_fields=True):
    """An answer that has no field but these."""


class MessageUsage(Said):
    """What a request took; all it read is the sum of its three inputs."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens_details: dict[str, int]


class Message(Said):
    """The whole answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "tool_use", "refusal", "stop_sequence"]
    stop_sequence: str | None
    usage: MessageUsage
    stop_details: dict[str, Any] | UnsetType = UNSET
    finish_details: dict[str, str] | UnsetType = UNSET


class MessageTokens(Said):
    """How many tokens a request would be."""

    input_tokens: int


class AnthropicFault(Said):
    """What is wrong; the details name the field."""

    type: str
    message: str
    details: dict[str, str | None]


class AnthropicError(Said):
    """An error, whole or as a stream's last event."""

    type: Literal["error"]
    error: AnthropicFault
    request_id: str | None


_FORM = Kind(None, {"type": one_of("json_schema"), "schema": OBJECT}, ("type", "schema"))
_BLOCKS = ("text", "image", "document", "tool_use", "tool_result", "thinking", OBJECT)
_DATA = Kind(None, {"type": TEXT, "media_type": TEXT, "data": TEXT}, ("type", "data"))

COMPONENTS: dict[str, Json] = {
    **schemas_of(Message, MessageTokens, AnthropicError),
    **forms_of("Anthropic", ANTHROPIC, {
        "request": Kind(anthropic_request.Body, {
            "messages": ["message", ...], "system": (TEXT, ["text"]), "tools": ["tool"], "tool_choice": "tool_choice",
            "thinking": "thinking config", "output_config": "output_config", "output_format": "format",
        }, bounds=anthropic_request.BOUNDS),
        "output_config": Kind(None, {"effort": one_of(*EFFORTS), "format": "format"}),
        "format": _FORM,
        "thinking config": Kind(None, {
            "type": one_of("enabled", "disabled", "adaptive"), "budget_tokens": WHOLE,
            "display": one_of("summarized", "omitted"),
        }, ("type",)),
        "tool_choice": Kind(None, {
            "type": one_of("auto", "any", "tool", "none"), "name": TEXT, "disable_parallel_tool_use": FLAG,
        }, ("type",)),
        "tool": Kind(None, {
            "type": one_of("custom"), "name": TEXT, "description": TEXT, "input_schema": OBJECT, "strict": FLAG,
        }, ("name", "input_schema")),
        "message": Kind(None, {"role": one_of(*ROLES), "content": (TEXT, [_BLOCKS])}, ("role", "content")),
        "text": Kind(None, {"type": one_of("text"), "text": TEXT}, ("type", "text")),
        "image": Kind(None, {
            "type": one_of("image"), "source": ("base64 source", "url source", "file source"),
        }, ("type", "source")),
        "document": Kind(None, {
            "type": one_of("document"), "title": TEXT, "context": TEXT,
            "source": ("base64 source", "url source", "file source", "text source", "content source"),
        }, ("type", "source")),
        "base64 source": _DATA,
        "text source": _DATA,
        "url source": Kind(None, {"type": one_of("url"), "url": TEXT}, ("type", "url")),
        "file source": Kind(None, {"type": one_of("file"), "file_id": TEXT}, ("type", "file_id")),
        "content source": Kind(
            None, {"type": one_of("content"), "content": (TEXT, [("text", "image")])}, ("type", "content")
        ),
        "tool_use": Kind(None, {"type": one_of("tool_use"), "id": TEXT, "name": TEXT, "input": OBJECT},
                         ("type", "id", "name", "input")),
        "tool_result": Kind(None, {
            "type": one_of("tool_result"), "tool_use_id": TEXT, "is_error": FLAG,
            "content": (TEXT, [("text", "image", "document")]),
        }, ("type", "tool_use_id")),
        "thinking": Kind(None, {"type": one_of("thinking"), "thinking": TEXT}, ("type", "thinking")),
    }),
}  # fmt: skip
_COUNTED = COMPONENTS["Anthropic.request"]
COMPONENTS["Anthropic.create"] = {**_COUNTED, "required": [*_COUNTED["required"], "max_tokens"]}
_TAG = "Anthropic"

OPERATIONS = (
    Operation(
        handler=anthropic_routes.create_message, tag=_TAG, parameters=GENERATING, more=ANSWERED | {402},
        body={JSON: ref("Anthropic.create")}, answer={JSON: ref("Message"), SSE: EVENTS},
    ),
    Operation(
        handler=anthropic_routes.count_tokens, tag=_TAG, body={JSON: ref("Anthropic.request")}, parameters=(TIMEOUT,),
        answer={JSON: ref("MessageTokens")}, more=COUNTED,
    ),
)  # fmt: skip
