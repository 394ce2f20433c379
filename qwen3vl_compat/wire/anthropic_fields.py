"""What becomes of every field of Anthropic's Messages API: the one table that code, tests and docs/api.md share."""

from collections.abc import Mapping

from qwen3vl_compat.wire.body import HARMLESS, HONOURED, Rules, refused

_NO_SUCH_TOOL = refused("this server has no such tool; declare tools with an input_schema", [])
_CACHED_ALREADY: Rules = {"cache_control": HARMLESS}
_DATA: Rules = {"type": HONOURED, "media_type": HONOURED, "data": HONOURED}

ANTHROPIC: Mapping[str, Rules] = {
    "request": {
        "model": HONOURED,
        "messages": HONOURED,
        "max_tokens": HONOURED,
        "system": HONOURED,
        "stream": HONOURED,
        "stop_sequences": HONOURED,
        "temperature": HONOURED,
        "top_p": HONOURED,
        "top_k": HONOURED,
        "tools": HONOURED,
        "tool_choice": HONOURED,
        "thinking": HONOURED,
        "output_config": HONOURED,
        "output_format": HONOURED,
        "metadata": HARMLESS,
        "service_tier": HARMLESS,
        "speed": HARMLESS,
        "diagnostics": HARMLESS,
        "user_profile_id": HARMLESS,
        "context_management": HARMLESS,
        "cache_control": HARMLESS,
        "mcp_servers": _NO_SUCH_TOOL,
        "container": refused("code is not run here"),
        "inference_geo": refused("where it is computed is not for a request to choose", "global"),
    },
    "output_config": {"effort": HONOURED, "format": HONOURED, "task_budget": HARMLESS},
    "format": {"type": HONOURED, "schema": HONOURED, "name": HARMLESS},
    "thinking config": {"type": HONOURED, "budget_tokens": HONOURED, "display": HONOURED},
    "tool_choice": {"type": HONOURED, "name": HONOURED, "disable_parallel_tool_use": HONOURED},
    "tool": {
        "type": HONOURED,
        "name": HONOURED,
        "description": HONOURED,
        "input_schema": HONOURED,
        "strict": HONOURED,
        "input_examples": HARMLESS,
        "eager_input_streaming": HARMLESS,
        "defer_loading": refused("tools are not searched for here; each is told to the model", False),
        "allowed_callers": refused("code is not run here", ["direct"]),
        **_CACHED_ALREADY,
    },
    "message": {"role": HONOURED, "content": HONOURED},
    "text": {"type": HONOURED, "text": HONOURED, "citations": HARMLESS, **_CACHED_ALREADY},
    "image": {
        "type": HONOURED,
        "source": HONOURED,
        "transformations": refused(
            "how pictures are prepared is the server's choice", {}, {"oversized_image": "downsize"}
        ),
        **_CACHED_ALREADY,
    },
    "document": {
        "type": HONOURED,
        "source": HONOURED,
        "title": HONOURED,
        "context": HONOURED,
        "citations": refused("citations are not supported", {}, {"enabled": False}),
        **_CACHED_ALREADY,
    },
    "base64 source": _DATA,
    "text source": _DATA,
    "url source": {"type": HONOURED, "url": HONOURED},
    "file source": {"type": HONOURED, "file_id": HONOURED},
    "content source": {"type": HONOURED, "content": HONOURED},
    "tool_use": {
        "type": HONOURED,
        "id": HONOURED,
        "name": HONOURED,
        "input": HONOURED,
        "caller": HARMLESS,
        **_CACHED_ALREADY,
    },
    "tool_result": {
        "type": HONOURED,
        "tool_use_id": HONOURED,
        "content": HONOURED,
        "is_error": HONOURED,
        **_CACHED_ALREADY,
    },
    "thinking": {"type": HONOURED, "thinking": HONOURED, "signature": HARMLESS},
}
"""What becomes of every field; an unlisted one is ignored and named in `x-ignored-fields`."""
