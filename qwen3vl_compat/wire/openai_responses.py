"""OpenAI's responses: `POST /v1/responses`, whole and streamed, and their errors.

A whole response is what the last event of its stream holds: one path for both.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import (
    Event,
    Finish,
    First,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from qwen3vl_compat.wire import openai_chat, sse
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_output import CALL, MESSAGE, SUMMARY, THOUGHT, Form, OutputItem
from qwen3vl_compat.wire.openai_responses_request import Asked, completed, decode_count, decode_request
from qwen3vl_compat.wire.openai_responses_tools import own_names

__all__ = [
    "Answering",
    "completed",
    "decode_count",
    "decode_request",
    "encode_count",
    "encode_error",
    "encode_event",
]

_REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by how its answer ended."""


class Answering:
    """A response in the making: each event of an answer in, those of the stream out, and the whole at its end."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self._items, self._told = asked, list[OutputItem](), 0
        self._first = First(asked.request.id, asked.request.created)
        self._open: OutputItem | None = None
        self._names = own_names(asked.echo["tools"])
        self.response: Json = {}
        """The whole, as the last event that holds it told it."""

    def push(self, event: Event) -> list[Json]:
        """What the stream says of one more event of the answer."""
        events: list[Json] = []
        match event:
            case Started():
                self._first = event.replays or self._first
                events = [self._whole(kind, "in_progress") for kind in ("created", "in_progress")]
            case ReasoningDelta(_, text) if text:
                form = SUMMARY if self._asked.summary else THOUGHT
                events = [*self._turned_to(form), *self._item.more(text)]
            case TextDelta(_, text, _, logprobs) if text or logprobs:
                told = openai_chat.encode_logprobs(logprobs)["content"]
                events = [*self._turned_to(MESSAGE), *self._item.more(text, told)]
            case ToolCallDelta(_, _, number, name, arguments):
                called = self._names.get(name, {"name": name})
                begun = self._turned_to(CALL, call_id=number, **called) if number else ()
                events = [*begun, *(self._item.more(arguments) if arguments else ())]
            case Finish():
                events = [*self._finish(event)]
            case Progress() | ReasoningDelta() | TextDelta():
                pass
        return self._numbered(events)

    def fail(self, error: ApiError) -> list[Json]:
        """What the stream says of a failure; what was open ends with it."""
        told = msgspec.json.decode(encode_error(error))["error"]
        (*_,) = self._closed("incomplete")
        code = error.code if error.code == "rate_limit_exceeded" else "server_error"
        failed = self._whole("failed", "failed", error={"code": code, "message": error.message}, store=False)
        return self._numbered(
            [{"type": "error", **{name: told[name] for name in ("code", "message", "param")}}, failed]
        )

    @property
    def _item(self) -> OutputItem:
        assert self._open is not None, "an answer went on with what it had not begun"
        return self._open

    def _turned_to(self, form: Form, **named: str) -> Iterator[Json]:
        """Begin an item, unless one of its form is open that more belongs to."""
        if self._open is not None and self._open.form is form and not named:
            return
        yield from self._closed("completed")
        self._open = OutputItem(form, self._first.id, len(self._items), named)
        self._items.append(self._open)
        yield from self._open.begin()

    def _closed(self, status: str) -> Iterator[Json]:
        if self._open is not None:
            yield from self._open.end(status)
        self._open = None

    def _finish(self, end: Finish) -> Iterator[Json]:
        status = "incomplete" if end.reason in _REASONS else "completed"
        if not self._items and status == "completed":
            yield from self._turned_to(MESSAGE)  # clients look for one
        yield from self._closed(status)
        more: Json = {"usage": _usage(end.usage)}
        if end.reason in _REASONS:
            more["incomplete_details"] = {"reason": _REASONS[end.reason]}
        if end.details:
            more["finish_details"] = {"type": end.details}
        yield self._whole(status, status, **more)

    def _whole(self, kind: str, status: str, **more: Any) -> Json:
        self.response = {
            "id": f"resp_{self._first.id}",
            "object": "response",
            "created_at": self._first.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._asked.request.called,
            "output": [item.told for item in self._items],
            "service_tier": "default",
            "store": self._asked.store,
            "usage": None,
            **self._asked.echo,
            **more,
        }
        return {"type": f"response.{kind}", "response": self.response}

    def _numbered(self, events: list[Json]) -> list[Json]:
        first = self._told
        self._told += len(events)
        return [
            {"type": event["type"], "sequence_number": number, **event} for number, event in enumerate(events, first)
        ]


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": 0,
            "text_tokens": usage.prompt_text,
            "image_tokens": usage.prompt_image,
            "video_tokens": usage.prompt_video,
        },
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }


def encode_event(event: Json) -> bytes:
    """One event of the stream, its name in a line of its own."""
    return sse.named(event["type"], msgspec.json.encode(event))


def encode_count(usage: Usage) -> bytes:
    """How many tokens a request would be."""
    return msgspec.json.encode({"object": "response.input_tokens", "input_tokens": usage.prompt})


def encode_error(error: ApiError) -> bytes:
    """The error envelope; what the engine calls messages is this API's input."""
    if error.param == "messages" and error.code != "unsupported_parameter":  # then it was sent
        error = ApiError(error.message, param="input", code=error.code, status=error.status)
    return openai_chat.encode_error(error)
