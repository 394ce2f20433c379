"""OpenAI's routes as OpenAPI tells them."""

from qwen3vl_compat.server import moderation_routes, openai_routes, response_routes
from qwen3vl_compat.server.openapi.forms import (
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    by_word,
    exactly_one,
    forms_of,
    one_of,
    ref,
    schemas_of,
)
from qwen3vl_compat.server.openapi.openai_answers import COMPONENTS as ANSWERS
from qwen3vl_compat.server.openapi.operation import (
    ANSWERED,
    COUNTED,
    EVENTS,
    FOUND,
    JSON,
    SSE,
    Operation,
    header,
    query,
)
from qwen3vl_compat.wire import (
    openai_completions_request,
    openai_request,
    openai_responses_request,
    openai_responses_tools,
    openai_sampling,
)
from qwen3vl_compat.wire.asked import MOST_LOGPROBS
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.fields import MODERATIONS, OPENAI
from qwen3vl_compat.wire.openai_completions_request import COMPLETIONS
from qwen3vl_compat.wire.openai_items import KINDS
from qwen3vl_compat.wire.openai_media import DETAILS
from qwen3vl_compat.wire.openai_messages import ROLES
from qwen3vl_compat.wire.openai_responses_fields import RESPONSES

_SAID: Json = {**TEXT, "minLength": 1}
_CLOSELY = {"detail": one_of(*DETAILS), "max_pixels": WHOLE}
_CLIP = {"fps": NUMBER, "start": NUMBER, "end": NUMBER}
_OF_FILES = {"file_id": TEXT, "file_data": TEXT, "file_url": TEXT, "filename": TEXT, "pages": (TEXT, WHOLE)}
_KEPT = {"id": TEXT, "status": TEXT}
_ONE_FILE = exactly_one("file_id", "file_data", "file_url")
_STREAMED = Kind(openai_sampling.StreamOptions)

COMPONENTS: dict[str, Json] = {
    **schemas_of(*ANSWERS),
    **forms_of("Chat", OPENAI, {
        "request": Kind(openai_request.Body, {
            "messages": ["message", ...], "tools": ["tool"], "tool_choice": (TEXT, OBJECT),
            "stream_options": "stream_options", "response_format": "response_format",
            "chat_template_kwargs": "chat_template_kwargs",
        }, bounds={**openai_sampling.BOUNDS, "top_logprobs": (0, MOST_LOGPROBS)}),
        "stream_options": _STREAMED,
        "chat_template_kwargs": Kind(openai_request.Template),
        "response_format": Kind(
            None, {"type": one_of("text", "json_object", "json_schema"), "json_schema": "json_schema"}, ("type",)
        ),
        "json_schema": Kind(openai_request.Schema, {"schema": OBJECT}),
        "tool": Kind(None, {"type": one_of("function"), "function": "function"}, ("function",)),
        "function": Kind(openai_request.Function, {"parameters": OBJECT}),
        "message": Kind(None, {
            "role": one_of(*ROLES), "content": (TEXT, ["part"]), "reasoning": TEXT, "reasoning_content": TEXT,
            "tool_calls": [OBJECT], "tool_call_id": TEXT,
        }, shapes=by_word(
            "role", system="content", developer="content", user="content", assistant=(),
            tool=("tool_call_id", "content"),
        )),
        "part": Kind(None, {
            "type": one_of("text", "refusal", "image_url", "video_url", "video", "file"), "text": TEXT,
            "image_url": "image_url", "video_url": "video_url", "video": [TEXT, ...], "fps": NUMBER, "file": "file",
        }, shapes=by_word(
            "type",
            text="text", refusal="refusal", image_url="image_url", video_url="video_url", video="video", file="file"
        )),
        "image_url": Kind(None, {"url": TEXT, **_CLOSELY}, ("url",)),
        "video_url": Kind(None, {"url": TEXT, **_CLIP, **_CLOSELY}, ("url",)),
        "file": Kind(None, {**_OF_FILES, **_CLIP, **_CLOSELY}, shapes=_ONE_FILE),
    }),
    **forms_of("Completion", COMPLETIONS, {
        "request": Kind(openai_completions_request.Body, {
            "stream_options": "stream_options", "prompt": (_SAID, [_SAID, ...]),
        }, bounds={**openai_sampling.BOUNDS, "logprobs": (0, MOST_LOGPROBS)}),
        "stream_options": _STREAMED,
    }),
    **forms_of("Response", RESPONSES, {
        "request": Kind(openai_responses_request.Body, {
            "input": (TEXT, [("message", "function_call", "function_call_output", "reasoning_item", OBJECT), ...]),
            "tools": [("tool", "namespace")], "text": "text", "reasoning": "reasoning",
            "stream_options": "stream_options", "tool_choice": (TEXT, OBJECT),
            "include": [one_of(*openai_responses_request.INCLUDABLE)],
        }, bounds=openai_responses_request.BOUNDS),
        "text": Kind(None, {"format": "format"}),
        "format": Kind(openai_responses_request.Format, {"schema": OBJECT}),
        "reasoning": Kind(openai_responses_request.Thought),
        "tool": Kind(openai_responses_tools.Function, {"type": one_of("function"), "parameters": OBJECT}, ("type",)),
        "namespace": Kind(openai_responses_tools.Namespace, {"type": one_of("namespace"), "tools": ["tool"]},
                          ("type",)),
        "message": Kind(None, {
            "type": one_of(KINDS[0]), "role": one_of(*ROLES), "content": (TEXT, ["part"]), **_KEPT,
        }, ("role", "content")),
        "function_call": Kind(None, {
            "type": one_of(KINDS[1]), "call_id": TEXT, "name": TEXT, "namespace": TEXT, "arguments": TEXT, **_KEPT,
        }, ("type", "call_id", "name", "arguments")),
        "function_call_output": Kind(None, {
            "type": one_of(KINDS[2]), "call_id": TEXT, "output": (TEXT, ["part"]), **_KEPT,
        }, ("type", "call_id", "output")),
        "reasoning_item": Kind(None, {
            "type": one_of(KINDS[3]), "summary": [OBJECT], "content": [OBJECT], **_KEPT,
        }, ("type",)),
        "part": Kind(None, {
            "type": one_of("input_text", "output_text", "text", "refusal", "input_image", "input_file"),
            "text": TEXT, "refusal": TEXT, "image_url": TEXT, **_OF_FILES, **_CLIP, **_CLOSELY,
        }, shapes=by_word(
            "type",
            input_text="text", output_text="text", text="text", refusal="refusal", input_image=(), input_file=()
        )),
    }),
    **forms_of("Moderation", MODERATIONS, {
        "request": Kind(None, {
            "input": (_SAID, [_SAID, ...], ["part", ...]), "model": _SAID,
        }, ("input",)),
        "part": Kind(None, {"type": one_of("text", "image_url"), "text": TEXT, "image_url": "image_url"},
                     shapes=by_word("type", text="text", image_url="image_url")),
        "image_url": Kind(None, {"url": TEXT, **_CLOSELY}, ("url",)),
    }),
}  # fmt: skip

COMPONENTS["Response.count"] = {**COMPONENTS["Response.request"], "required": []}
"""The model may be left to the server."""

TIMEOUT = header("X-Server-Timeout", {"type": "number", "exclusiveMinimum": 0}, "Seconds that it may take.")
GENERATING = (
    header("Idempotency-Key", {"type": "string", "pattern": "^[ -~]{1,255}$"}, "It is carried out once."),
    header("Cache-Control", TEXT, "Whether it may be answered with what was made before, and may be kept."),
    TIMEOUT,
)

_TAG = "OpenAI"

OPERATIONS = (
    Operation(
        handler=openai_routes.chat_completions, tag=_TAG, body={JSON: ref("Chat.request")}, parameters=GENERATING,
        answer={JSON: ref("ChatCompletion"), SSE: EVENTS}, more=ANSWERED,
    ),
    Operation(
        handler=response_routes.count_chat, tag=_TAG, body={JSON: ref("Chat.request")}, parameters=(TIMEOUT,),
        answer={JSON: ref("InputTokens")}, more=COUNTED,
    ),
    Operation(
        handler=openai_routes.completions, tag=_TAG, body={JSON: ref("Completion.request")}, parameters=GENERATING,
        answer={JSON: ref("TextCompletion"), SSE: EVENTS}, more=ANSWERED,
    ),
    Operation(
        handler=response_routes.create_response, tag=_TAG, body={JSON: ref("Response.request")}, parameters=GENERATING,
        answer={JSON: ref("Response"), SSE: EVENTS}, more=ANSWERED,
    ),
    Operation(
        handler=response_routes.count_response, tag=_TAG, parameters=(TIMEOUT,), more=COUNTED,
        body={JSON: ref("Response.count")}, answer={JSON: ref("InputTokens")},
    ),
    Operation(
        handler=response_routes.get_response, tag=_TAG, parameters=(query("stream", one_of("false")),),
        answer={JSON: ref("Response")}, more=FOUND,
    ),
    Operation(
        handler=response_routes.list_input_items, tag=_TAG, answer={JSON: ref("ItemList")}, more=FOUND,
        parameters=(
            query("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
            query("after", TEXT),
            query("order", one_of("asc", "desc")),
            query("include", {"type": "array", "items": one_of(*openai_responses_request.INCLUDABLE)}),
        ),
    ),
    Operation(
        handler=response_routes.delete_response, tag=_TAG, answer={JSON: ref("DeletedResponse")}, more=FOUND
    ),
    Operation(
        handler=moderation_routes.moderate, tag=_TAG, body={JSON: ref("Moderation.request")}, parameters=(TIMEOUT,),
        answer={JSON: ref("Moderated")}, more=COUNTED,
    ),
)  # fmt: skip
