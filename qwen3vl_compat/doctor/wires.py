"""The four APIs as their clients speak them: what is asked, and what is read out of an answer."""

import base64
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import quote

from msgspec import Struct

from qwen3vl_compat.doctor import shapes
from qwen3vl_compat.doctor.events import read_events
from qwen3vl_compat.doctor.finding import Failed
from qwen3vl_compat.doctor.visit import Ask, Json, Reply, decoded

FRESH = {"cache-control": "no-store"}
"""An answer that was kept would say nothing of the model."""


class Question(Struct, frozen=True):
    """A turn of the user, for an answer of `most` tokens."""

    model: str
    text: str
    picture: bytes = b""
    most: int = 8


class Answer(Struct, frozen=True):
    """What a client shows of an answer, and the tokens it tells."""

    text: str
    finish: str
    prompt: int
    completion: int


class Wire(Protocol):
    """An API. Questions ask for no thoughts, which would leave no room for an answer; reading raises Failed."""

    name: str

    def headers(self, key: str) -> Json: ...

    def ask(self, key: str, question: Question, *, stream: bool = False) -> Ask: ...

    def count(self, key: str, question: Question) -> Ask: ...

    def counted(self, reply: Reply) -> int: ...

    def read(self, reply: Reply) -> Answer: ...

    def read_stream(self, reply: Reply) -> Answer: ...


def _url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"


def _only(found: Sequence[Any], what: str) -> Any:
    if len(found) != 1:
        raise Failed(f"exactly one {what}", str(len(found)))
    return found[0]


def bearer(key: str) -> Json:
    """OpenAI's header for a key; none without one."""
    return {"authorization": f"Bearer {key}"} if key else {}


class Chat:
    """OpenAI's chat completions."""

    name = "OpenAI chat"
    path = "/v1/chat/completions"

    def headers(self, key: str) -> Json:
        return bearer(key)

    def _body(self, question: Question) -> Json:
        parts: list[Json] = [{"type": "text", "text": question.text}]
        if question.picture:
            parts.insert(0, {"type": "image_url", "image_url": {"url": _url(question.picture)}})
        content = parts if question.picture else question.text
        messages = [{"role": "user", "content": content}]
        return {"model": question.model, "messages": messages, "reasoning_effort": "none"}

    def ask(self, key: str, question: Question, *, stream: bool = False) -> Ask:
        streamed = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        body = self._body(question) | {"max_completion_tokens": question.most} | streamed
        return Ask("POST", self.path, self.headers(key) | FRESH, {"json": body})

    def count(self, key: str, question: Question) -> Ask:
        return Ask("POST", f"{self.path}/input_tokens", self.headers(key), {"json": self._body(question)})

    def counted(self, reply: Reply) -> int:
        return reply.read(shapes.InputTokens, "a count of tokens").input_tokens

    def read(self, reply: Reply) -> Answer:
        chat = reply.read(shapes.Chat, "a chat completion")
        choice: shapes.ChatChoice = _only(chat.choices, "choice")
        usage = chat.usage
        return Answer(choice.message.content or "", choice.finish_reason, usage.prompt_tokens, usage.completion_tokens)

    def read_stream(self, reply: Reply) -> Answer:
        *events, end = [event.data for event in read_events(reply, "data")] or [""]
        if end != "[DONE]":
            raise Failed("[DONE] at the end of the stream", repr(end[:120]))
        chunks = [decoded(data, shapes.Chunk, "a chunk of a chat completion") for data in events]
        choices = [choice for chunk in chunks for choice in chunk.choices]
        usage: shapes.ChatUsage = _only([chunk.usage for chunk in chunks if chunk.usage], "usage in the stream")
        _only([choice for choice in choices if choice.delta.role], "role: clients join what comes twice")
        finish: str = _only([choice.finish_reason for choice in choices if choice.finish_reason], "finish_reason")
        text = "".join(choice.delta.content or "" for choice in choices)
        return Answer(text, finish, usage.prompt_tokens, usage.completion_tokens)


class Responses:
    """OpenAI's responses."""

    name = "OpenAI responses"
    path = "/v1/responses"

    def headers(self, key: str) -> Json:
        return bearer(key)

    def _body(self, question: Question) -> Json:
        parts: list[Json] = [{"type": "input_text", "text": question.text}]
        if question.picture:
            parts.insert(0, {"type": "input_image", "image_url": _url(question.picture), "detail": "auto"})
        return {
            "model": question.model,
            "input": [{"role": "user", "content": parts}],
            "reasoning": {"effort": "none"},
        }

    def ask(self, key: str, question: Question, *, stream: bool = False) -> Ask:
        body = self._body(question) | {"max_output_tokens": question.most, "store": False, "stream": stream}
        return Ask("POST", self.path, self.headers(key) | FRESH, {"json": body})

    def count(self, key: str, question: Question) -> Ask:
        return Ask("POST", f"{self.path}/input_tokens", self.headers(key), {"json": self._body(question)})

    def counted(self, reply: Reply) -> int:
        return reply.read(shapes.InputTokens, "a count of tokens").input_tokens

    def read(self, reply: Reply) -> Answer:
        return self._answer(reply.read(shapes.Response, "a response"))

    def _answer(self, response: shapes.Response) -> Answer:
        usage = response.usage
        if response.status not in ("completed", "incomplete") or usage is None:
            raise Failed("a response that is completed or incomplete, with its usage", f"{response.status}")
        text = "".join(part.text for item in response.output if item.type == "message" for part in item.content)
        return Answer(text, response.status, usage.input_tokens, usage.output_tokens)

    def read_stream(self, reply: Reply) -> Answer:
        events: list[shapes.ResponseEvent] = []
        for place, event in enumerate(read_events(reply, "named")):
            told = decoded(event.data, shapes.ResponseEvent, f"the event {event.name}")
            if told.type != event.name or told.sequence_number != place:
                raise Failed(f"event {place}, of the type {event.name}", f"{told.sequence_number}, {told.type}")
            events.append(told)
        end = events[-1].response if events else None
        if end is None or events[0].type != "response.created":
            raise Failed("response.created, and the response at the end", ", ".join(each.type for each in events))
        answer = self._answer(end)
        deltas = "".join(each.delta for each in events if each.type == "response.output_text.delta")
        if deltas != answer.text:
            raise Failed("pieces that make up the response at the end", f"{deltas!r} and {answer.text!r}")
        return answer


class Google:
    """Google's generateContent."""

    name = "Google"

    def headers(self, key: str) -> Json:
        return {"x-goog-api-key": key} if key else {}

    def _body(self, question: Question, **config: Any) -> Json:
        parts: list[Json] = [{"text": question.text}]
        if question.picture:
            data = base64.urlsafe_b64encode(question.picture).decode("ascii")  # as Google's Python client does
            parts.insert(0, {"inlineData": {"mime_type": "image/png", "data": data}})
        generation = {"thinkingConfig": {"thinking_budget": 0}} | config
        return {"contents": [{"role": "user", "parts": parts}], "generationConfig": generation}

    def _path(self, question: Question, method: str) -> str:
        return f"/v1beta/models/{quote(question.model)}:{method}"

    def ask(self, key: str, question: Question, *, stream: bool = False) -> Ask:
        path = self._path(question, "streamGenerateContent?alt=sse" if stream else "generateContent")
        body = self._body(question, maxOutputTokens=question.most)
        return Ask("POST", path, self.headers(key) | FRESH, {"json": body})

    def count(self, key: str, question: Question) -> Ask:
        # As a whole request: that no thoughts are wanted is told to the model, and takes tokens.
        asked = {"generateContentRequest": {"model": f"models/{question.model}"} | self._body(question)}
        return Ask("POST", self._path(question, "countTokens"), self.headers(key), {"json": asked})

    def counted(self, reply: Reply) -> int:
        return reply.read(shapes.CountTokens, "a count of tokens").total_tokens

    def read(self, reply: Reply) -> Answer:
        return self._joined([reply.read(shapes.GenerateContent, "a GenerateContentResponse")])

    def read_stream(self, reply: Reply) -> Answer:
        events = read_events(reply, "bare")
        return self._joined([decoded(each.data, shapes.GenerateContent, "one in the stream") for each in events])

    def _joined(self, pieces: Sequence[shapes.GenerateContent]) -> Answer:
        candidates = [candidate for piece in pieces for candidate in piece.candidates]
        finish: str = _only([each.finish_reason for each in candidates if each.finish_reason], "finishReason")
        usage = pieces[-1].usage_metadata
        if usage is None:
            raise Failed("usageMetadata, in a stream with its last message", "none")
        text = "".join(part.text for each in candidates for part in each.content.parts)
        return Answer(text, finish, usage.prompt_token_count, usage.candidates_token_count)


class Anthropic:
    """Anthropic's messages."""

    name = "Anthropic"
    path = "/v1/messages"

    def headers(self, key: str) -> Json:
        return {"anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key else {})

    def _body(self, question: Question) -> Json:
        parts: list[Json] = [{"type": "text", "text": question.text}]
        if question.picture:
            data = base64.b64encode(question.picture).decode("ascii")
            parts.insert(0, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}})
        messages = [{"role": "user", "content": parts}]
        return {"model": question.model, "messages": messages, "thinking": {"type": "disabled"}}

    def ask(self, key: str, question: Question, *, stream: bool = False) -> Ask:
        body = self._body(question) | {"max_tokens": question.most, "stream": stream}
        return Ask("POST", self.path, self.headers(key) | FRESH, {"json": body})

    def count(self, key: str, question: Question) -> Ask:
        return Ask("POST", f"{self.path}/count_tokens", self.headers(key), {"json": self._body(question)})

    def counted(self, reply: Reply) -> int:
        return reply.read(shapes.InputTokens, "a count of tokens").input_tokens

    def read(self, reply: Reply) -> Answer:
        message = reply.read(shapes.Message, "a message")
        if message.stop_reason is None:
            raise Failed("a stop_reason", "null")
        text = "".join(block.text for block in message.content)
        return self._answer(text, message.stop_reason, message.usage, message.usage.output_tokens)

    def _answer(self, text: str, finish: str, usage: shapes.MessageUsage, completion: int) -> Answer:
        return Answer(text, finish, usage.input_tokens + usage.cache_read_input_tokens, completion)

    def read_stream(self, reply: Reply) -> Answer:
        events: list[shapes.MessageEvent] = []
        for event in read_events(reply, "named"):
            told = decoded(event.data, shapes.MessageEvent, f"the event {event.name}")
            if told.type != event.name:
                raise Failed(f"an event of the type {event.name}", told.type)
            events.append(told)
        if not events or events[-1].type != "message_stop":
            raise Failed("message_stop at the end of the stream", ", ".join(each.type for each in events[-1:]))
        begun: shapes.Message = _only([each.message for each in events if each.message], "message_start")
        finish: str = _only([d.stop_reason for each in events if (d := each.delta) and d.stop_reason], "stop_reason")
        usage: shapes.EndUsage = _only([each.usage for each in events if each.usage], "usage at the end")
        text = "".join(each.delta.text for each in events if each.delta)
        return self._answer(text, finish, begun.usage, usage.output_tokens)


WIRES: tuple[Wire, ...] = (Chat(), Responses(), Google(), Anthropic())
