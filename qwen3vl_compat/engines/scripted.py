"""A deterministic engine: answers come from a script of patterns, for demonstrations and tests.

A word with the white space before it is one token, so is a tag; a picture costs its true number of slots. It is as
busy as a real one: `model.max_rows` answers at a time, each a token in `model.pause` seconds, and a queue.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from msgspec.structs import replace
from prometheus_client.metrics_core import Metric

from qwen3vl_compat.engines.calls import CallReader
from qwen3vl_compat.engines.clock import Clock
from qwen3vl_compat.engines.stop import StopStrings
from qwen3vl_compat.errors import OVERLOADED, InvalidRequest, NotFound, Overloaded
from qwen3vl_compat.events import (
    Delta,
    Event,
    Events,
    Finish,
    FinishReason,
    Likely,
    Logprob,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
    joined,
)
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.messages import ModelInfo, Picture, Request, Text, Tool, Video
from qwen3vl_compat.queue import Occupancy, Pool
from qwen3vl_compat.settings import Settings

WORD = re.compile(r"\s*\S+|\s+$")
TAG = re.compile(r"(</?(?:think|tool_call)>)")


class ScriptedEngine:
    """Answers the last turn by the first pattern that matches its text; `\\1` in an answer is the pattern's group.

    What a tool gave back is read as `result: ...`. An answer may hold `<think>` and `<tool_call>`; a line that calls is
    passed over where nothing may be called. Where a call or JSON is demanded and the script has none, the simplest one
    is made from the schema.
    """

    SCRIPT: ClassVar[Sequence[tuple[str, str]]] = (
        (r"(?is)^result: (.*)", r"The tool says: \1"),
        (r"(?is)call (\w+) with (\{.*\})", r'<tool_call>{"name": "\1", "arguments": \2}</tool_call>'),
        (r"(?is)think: (.*?) then say: (.*)", r"<think>\1</think>\2"),
        (r"(?i)count to (\d+)", "<count>"),
        (r"(?s)say exactly: (.*)", r"\1"),
        (r"(?s)(.*)", r"You said: \1"),
    )

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        script: Sequence[tuple[str, str]] = SCRIPT,
        context: int = 32_768,
    ) -> None:
        model = (settings or Settings()).model
        self._name = model.name
        self._clock = Clock(model.pause) if model.pause else None
        self._rows = Pool(range(model.max_rows), model.max_waiting, OVERLOADED)
        self._max_wait = model.max_wait
        self._script = [(re.compile(pattern), answer) for pattern, answer in script]
        self._context = context

    vision = VisionSpec(min_pixels=1024, max_pixels=16_777_216)
    alive = True

    def models(self) -> tuple[ModelInfo, ...]:
        """The one name it answers to."""
        digest = hashlib.sha256(repr([(each.pattern, answer) for each, answer in self._script]).encode()).hexdigest()
        return (ModelInfo(id=self._name, created=0, context=self._context, max_output=self._context, digest=digest),)

    async def collect(self) -> Iterable[Metric]:
        """Nothing to tell."""
        return ()

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""

    def _check_model(self, request: Request) -> None:
        if request.model != self._name:
            raise NotFound("the model does not exist", param="model", code="model_not_found")

    async def count(self, request: Request) -> Usage:
        """Words, plus four tokens for the frame of a message that is no raw prompt, plus the slots of the pictures."""
        self._check_model(request)
        parts = [part for message in request.messages for part in message.leaves]
        texts = [text for part in parts if isinstance(text := getattr(part, "text", None), str)]
        texts += [tool.description for tool in request.tools]
        if sum(map(len, texts)) > 64 * self._context:
            raise InvalidRequest("the prompt leaves no room", param=request.field, code="context_length_exceeded")
        words = sum(len(WORD.findall(text)) for text in texts)
        slots = sum(self.vision.tokens(part.grid) for part in parts if isinstance(part, Picture))
        videos = [part for part in parts if isinstance(part, Video)]
        frames = sum(self.vision.tokens(pair.grid) for video in videos for pair in video.pairs)
        frame = 0 if request.raw else 4
        words += frame * len(request.messages) + sum(len(video.times) for video in videos)
        return Usage(prompt_text=words, prompt_image=slots, prompt_video=frames)

    async def check(self, request: Request) -> None:
        """It holds to whatever the wires let through."""

    def room(self, request: Request, usage: Usage) -> int:
        """What was asked for, or all that is left of the context."""
        room = self._context - usage.prompt
        if room < 1:
            raise InvalidRequest("the prompt leaves no room", param=request.field, code="context_length_exceeded")
        return min(request.sampling.max_tokens or room, room)

    @property
    def occupancy(self) -> Occupancy:
        """Free rows, and the queue."""
        return self._rows.occupancy

    async def generate(self, request: Request) -> Events:
        """Play the script, choice after choice, all in one row."""
        usage = await self.count(request)
        limit = self.room(request, usage)
        row = await self._row(request)
        last: Event | None = None
        try:
            async with aclosing(self._told(request, usage, limit)) as events:
                async for event in events:
                    if isinstance(event, Finish) and event.index == request.choices - 1:
                        last = event  # which may wait for who takes it, and need not do that in a row
                    else:
                        yield event
        finally:
            self._rows.give(row)
        if last is not None:
            yield last

    async def _row(self, request: Request) -> int:
        """A row, when it is this request's turn."""
        try:
            async with asyncio.timeout(min(self._max_wait, request.seconds)):
                return await self._rows.take(request.caller.tenant)
        except TimeoutError:
            raise Overloaded(OVERLOADED, retry_after=10) from None

    async def _told(self, request: Request, usage: Usage, limit: int) -> Events:
        """The events; where nobody sees them apart, tokens made before the reader came for them are one."""
        yield Started(usage)
        begun = self._clock.steps if self._clock else 0
        made = thought = 0
        for index in range(request.choices):
            telling = _Telling(request, index)
            reason: FinishReason = "stop"
            held: Event | None = None
            for tag, word in _words(self._answer(request), request):
                if telling.made == limit:
                    reason = "length"
                    break
                made += 1
                await (self._clock.reach(begun + made) if self._clock else asyncio.sleep(0))
                for event in telling.push(tag, word) or [Progress(index, telling.made)]:
                    both = joined(held, event) if held is not None else event
                    if held is not None and both is None:
                        yield held
                    held = both or event
                late = not request.stream and self._clock is not None and self._clock.steps > begun + made
                if held is not None and not late:
                    yield held
                    held = None
                if telling.stops.stopped:
                    break
            for event in (*([held] if held is not None else []), *telling.finish()):
                yield event
            if telling.calls and reason == "stop":
                reason = "tool_calls"
            thought += telling.thought
            counts = replace(usage, completion=made, reasoning=thought)
            yield Finish(index, reason, counts, stop=telling.stops.found)

    def _answer(self, request: Request) -> str:
        last = request.messages[-1]
        asked = " ".join(part.text for part in last.leaves if isinstance(part, Text))
        asked = f"result: {asked}" if last.role == "tool" else asked
        plain = request.format.kind == "text"
        seen = "".join(f"[{_seen(part)}] " for part in last.leaves if plain and isinstance(part, Picture | Video))
        tools = _callable(request)
        answer = next(self._lines(asked, seen, calling=bool(tools)), seen + "I have no line for that.")
        if request.tool_choice.mode == "required" and "<tool_call>" not in answer:
            arguments = json.dumps(simplest(json.loads(tools[0].parameters or "{}")))
            return f'<tool_call>{{"name": "{tools[0].name}", "arguments": {arguments}}}</tool_call>'
        if request.format.kind in ("json_object", "json_schema") and not _is_json(answer):
            return json.dumps(simplest(json.loads(request.format.value or "{}")))
        return answer

    def _lines(self, asked: str, seen: str, *, calling: bool) -> Iterator[str]:
        for pattern, answer in self._script:
            if (found := pattern.search(asked)) and (calling or "<tool_call>" not in answer):
                if answer == "<count>":
                    yield seen + " ".join(str(number + 1) for number in range(int(found[1][:6])))
                else:
                    said = found.expand(answer)
                    yield said if said.startswith("<") else seen + said


def _seen(part: Picture | Video) -> str:
    """A picture's size, or a video's times."""
    if isinstance(part, Picture):
        return f"{part.width}x{part.height}"
    return " ".join(f"<{seconds:.1f} seconds>" for seconds in part.times)


def _callable(request: Request) -> list[Tool]:
    choice = request.tool_choice
    if choice.mode == "none":
        return []
    return [tool for tool in request.tools if not choice.names or tool.name in choice.names]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def simplest(schema: Any) -> Any:
    """A small value of a schema, as far as its types, constants and required properties go."""
    if not isinstance(schema, dict):
        return None
    known: dict[str, Any] = schema  # pyright: ignore[reportUnknownVariableType]
    if "const" in known or "enum" in known:
        return known.get("const", (known.get("enum") or [None])[0])
    for name in ("anyOf", "oneOf", "allOf"):
        if known.get(name):
            return simplest(known[name][0])
    kind = known.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind  # pyright: ignore[reportUnknownVariableType]
    if kind == "object":
        inner = known.get("properties", {})
        return {name: simplest(inner.get(name, {"type": "string"})) for name in known.get("required", ())}
    plain: dict[Any, Any] = {"string": "text", "integer": 0, "number": 0, "boolean": False, "array": []}
    return plain.get(kind)


def _words(answer: str, request: Request) -> Iterator[tuple[str, str]]:
    """(The tag that is open, a word or a tag), in order; thoughts only as far as they are wanted."""
    if request.raw:
        yield from (("", word) for word in WORD.findall(answer))
        return
    wanted, thought, open_tag = request.thinking, 0, ""
    unwanted = wanted.enabled is False or wanted.budget == 0
    for piece in TAG.split(answer):
        if piece in ("<think>", "<tool_call>"):
            open_tag = piece
        if open_tag == "<think>" and unwanted:
            pass
        elif TAG.fullmatch(piece):
            yield open_tag, piece
        else:
            for word in WORD.findall(piece):
                thought += open_tag == "<think>"
                if open_tag != "<think>" or wanted.budget is None or thought <= wanted.budget:
                    yield open_tag, word
        if piece.startswith("</"):
            open_tag = ""


class _Telling:
    """One choice's words as deltas."""

    def __init__(self, request: Request, index: int) -> None:
        self.stops, self.made, self.thought, self.calls = StopStrings(request.sampling.stop), 0, 0, 0
        self._request, self._index, self._reader = request, index, CallReader()

    def push(self, tag: str, word: str) -> list[Delta]:
        """What a word inside a tag lets be shown."""
        self.made += 1
        self.thought += tag == "<think>"
        if TAG.fullmatch(word) and not self._request.raw:
            if word == "<tool_call>":
                self._reader = CallReader()
            self.calls += word == "</tool_call>"
            return []
        if tag == "<think>":
            return [ReasoningDelta(self._index, word, self.made)]
        if tag == "<tool_call>":
            return self._call(word)
        told = Logprob(Likely(-1, word.encode(), 0.0))
        logprobs = () if self._request.sampling.logprobs is None else (told,)
        text = self.stops.push(word)
        return [TextDelta(self._index, text, self.made, logprobs)] if text or logprobs else []

    def _call(self, word: str) -> list[Delta]:
        known = self._reader.name is not None
        arguments = self._reader.push(word)
        if self._reader.name is None or (known and not arguments):
            return []
        number = "" if known else f"call_{self._request.id}_{self._index}_{self.calls}"
        name = "" if known else self._reader.name
        return [ToolCallDelta(self._index, self.calls, number, name, arguments, self.made)]

    def finish(self) -> list[Delta]:
        """What is still held back."""
        text = self.stops.finish()
        return [TextDelta(self._index, text, self.made)] if text else []
