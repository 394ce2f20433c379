"""The output of OpenAI's responses, item by item: what the stream says of each, and what the response holds of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_items import item_id


class Form(Struct, frozen=True):
    """How an item of some kind is told of."""

    kind: str
    """Its type."""
    text: str
    """What its text is called by the events that bring it."""
    part: str = ""
    """The type of its one part, and what else that is called; an item without parts is all text."""
    parts: str = "content"
    part_events: str = "content_part"
    index: str = "content_index"
    fields: Json = {}
    """What else it has."""


MESSAGE = Form("message", "output_text", "output_text", fields={"role": "assistant"})
THOUGHT = Form("reasoning", "reasoning_text", "reasoning_text", fields={"summary": [], "encrypted_content": None})
SUMMARY = Form(
    "reasoning",
    "reasoning_summary_text",
    "summary_text",
    parts="summary",
    part_events="reasoning_summary_part",
    index="summary_index",
    fields={"encrypted_content": None},
)
CALL = Form("function_call", "function_call_arguments")


class OutputItem:
    """One item: it begins, gets more text, and ends; each comes to a few events of the stream."""

    def __init__(self, form: Form, request_id: str, place: int, named: Mapping[str, str]) -> None:
        """`named` is what is known of a call from its beginning."""
        self.form, self._place, self._text, self._logprobs = form, place, list[str](), list[Json]()
        self._id = item_id(form.kind, request_id, place)
        self._head: Json = {"id": self._id, "type": form.kind, **form.fields, **named}
        self.told = self._whole("in_progress")
        """As the response holds it."""

    def begin(self) -> Iterator[Json]:
        """It is there, and has no text yet."""
        yield {"type": "response.output_item.added", "output_index": self._place, "item": self.told}
        if self.form.part:
            yield self._event(f"{self.form.part_events}.added", part=self._part())

    def more(self, text: str, logprobs: list[Json] | None = None) -> Iterator[Json]:
        """There is more of its text."""
        self._text.append(text)
        self._logprobs += logprobs or ()
        told: Json = {"logprobs": logprobs or []} if self.form is MESSAGE else {}
        yield self._event(f"{self.form.text}.delta", delta=text, **told)

    def end(self, status: str) -> Iterator[Json]:
        """It is complete, or cut off."""
        self.told = self._whole(status)
        text = "".join(self._text)
        if self.form.part:
            told: Json = {"logprobs": self._logprobs} if self.form is MESSAGE else {}
            yield self._event(f"{self.form.text}.done", text=text, **told)
            yield self._event(f"{self.form.part_events}.done", part=self._part())
        else:
            yield self._event(f"{self.form.text}.done", name=self._head["name"], arguments=text)
        yield {"type": "response.output_item.done", "output_index": self._place, "item": self.told}

    def _whole(self, status: str) -> Json:
        if not self.form.part:
            return {**self._head, "status": status, "arguments": "".join(self._text)}
        parts = [] if status == "in_progress" else [self._part()]
        return {**self._head, "status": status, self.form.parts: parts}

    def _part(self) -> Json:
        part: Json = {"type": self.form.part, "text": "".join(self._text)}
        return part | {"annotations": [], "logprobs": self._logprobs} if self.form is MESSAGE else part

    def _event(self, kind: str, **more: Any) -> Json:
        place: Json = {"item_id": self._id, "output_index": self._place}
        if self.form.part:
            place[self.form.index] = 0
        return {"type": f"response.{kind}", **place, **more}
