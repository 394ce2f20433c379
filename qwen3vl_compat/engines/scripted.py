"""A deterministic engine: answers come from a script of patterns, for demonstrations and tests.

A word with the white space before it is one token, a picture costs its true number of slots.
"""

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

from msgspec.structs import replace
from prometheus_client.metrics_core import Metric

from qwen3vl_compat.engines.stop import StopStrings
from qwen3vl_compat.errors import InvalidRequest, NotFound
from qwen3vl_compat.events import Events, Finish, FinishReason, Started, TextDelta, Usage
from qwen3vl_compat.media.image import VisionSpec
from qwen3vl_compat.messages import ModelInfo, Picture, Request, Text
from qwen3vl_compat.settings import Settings

WORD = re.compile(r"\s*\S+|\s+$")


class ScriptedEngine:
    """Answers the last user text by the first pattern that matches it; `\\1` in an answer is the pattern's group."""

    SCRIPT: ClassVar[Sequence[tuple[str, str]]] = (
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
        self._name, self._pause = model.name, model.pause
        self._script = [(re.compile(pattern), answer) for pattern, answer in script]
        self._context = context

    vision = VisionSpec(min_pixels=1024, max_pixels=16_777_216)
    alive = True

    def models(self) -> tuple[ModelInfo, ...]:
        """The one name it answers to."""
        return (ModelInfo(id=self._name, created=0, context=self._context, max_output=self._context),)

    def collect(self) -> Iterable[Metric]:
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
        """Words, plus four tokens a message for its frame, plus the slots of the pictures."""
        self._check_model(request)
        parts = [part for message in request.messages for part in message.parts]
        texts = [part.text for part in parts if isinstance(part, Text)]
        if sum(map(len, texts)) > 64 * self._context:
            raise InvalidRequest("the prompt leaves no room", param="messages", code="context_length_exceeded")
        words = sum(len(WORD.findall(text)) for text in texts)
        slots = sum(self.vision.tokens(part.grid) for part in parts if isinstance(part, Picture))
        return Usage(prompt_text=words + 4 * len(request.messages), prompt_image=slots)

    async def generate(self, request: Request) -> Events:
        """Play the script, choice after choice."""
        usage = await self.count(request)
        room = self._context - usage.prompt
        if room < 1:
            raise InvalidRequest("the prompt leaves no room", param="messages", code="context_length_exceeded")
        limit, total = min(request.sampling.max_tokens or room, room), 0
        yield Started(usage)
        for index in range(request.choices):
            shown, made = StopStrings(request.sampling.stop), 0
            reason: FinishReason = "stop"
            for word in WORD.findall(self._answer(request)):
                if made == limit:
                    reason = "length"
                    break
                await asyncio.sleep(self._pause)
                made += 1
                if text := shown.push(word):
                    yield TextDelta(index, text, made)
                if shown.stopped:
                    break
            if text := shown.finish():
                yield TextDelta(index, text, made)
            total += made
            yield Finish(index, reason, replace(usage, completion=total))

    def _answer(self, request: Request) -> str:
        last = request.messages[-1].parts
        asked = " ".join(part.text for part in last if isinstance(part, Text))
        seen = "".join(f"[{part.width}x{part.height}] " for part in last if isinstance(part, Picture))
        for pattern, answer in self._script:
            if found := pattern.search(asked):
                if answer == "<count>":
                    return seen + " ".join(str(number + 1) for number in range(int(found[1][:6])))
                return seen + found.expand(answer)
        return seen + "I have no line for that."
