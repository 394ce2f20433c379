"""Generated tokens to events: a state machine in which only a tag's own token opens or closes a thought or a call.

Bytes are joined to characters, control tokens left out, stop strings kept back. Stop strings are looked for in the
visible text only.
"""

from collections import deque
from typing import Literal

from msgspec import Struct

from qwen3vl_compat.engines.calls import CallReader
from qwen3vl_compat.engines.stop import StopStrings
from qwen3vl_compat.events import Delta, Logprob, ReasoningDelta, TextDelta, ToolCallDelta
from qwen3vl_compat.tokens import Decoder, Vocabulary

Phase = Literal["thought", "text", "call"]


class Tags(Struct, frozen=True):
    """The ids of the tags' tokens; None where a vocabulary has none."""

    think: int | None = None
    end_think: int | None = None
    call: int | None = None
    end_call: int | None = None

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "Tags":
        """As Qwen spells them."""
        return cls(*(vocabulary.added.get(tag) for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>")))


class Dialect:
    """The state of one choice's answer; pure.

    `calls` says under which prefix to number its tool calls, None where `<tool_call>` is but letters. `thinking` says
    that the prompt has opened a thought already, `raw` that all tags are but letters.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        index: int,
        *,
        stops: tuple[str, ...] = (),
        calls: str | None = None,
        thinking: bool = False,
        raw: bool = False,
    ) -> None:
        self.tags = Tags() if raw else Tags.of(vocabulary)
        self.phase: Phase = "thought" if thinking else "text"
        self.thought = 0
        """Tokens of thoughts, their tags included."""
        self.called = 0
        """Tool calls that are complete."""
        self._index, self._calls, self._hidden = index, calls, vocabulary.special
        self._decoder, self._stops = Decoder(vocabulary), StopStrings(stops)
        self._reader = CallReader()
        self._breaks = ""
        """Line breaks held back: a tag takes those around it along."""
        self._bare = thinking
        """Whether nothing was shown since a tag, so that line breaks are the tag's."""
        self._pushed = self._shown = 0
        """Characters of visible text that came, and that were shown."""
        self._unshown: deque[tuple[int, Logprob]] = deque()

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.stopped

    @property
    def stop(self) -> str:
        """The stop string that has come, if one has."""
        return self._stops.found

    def push(self, token: int, made: int, logprob: Logprob | None = None) -> list[Delta]:
        """What this token, the `made`-th, lets be shown."""
        if self.phase == "thought":
            self.thought += 1
            if token == self.tags.end_think:
                rest = self._think(self._decoder.finish(), made)
                self._enter("text")
                return rest
        elif self.phase == "call":
            if token == self.tags.end_call:
                return self._end_call(made)
        elif token == self.tags.think:
            self.thought += 1
            return self._leave_text("thought", made)
        elif token == self.tags.call and self._calls is not None:
            self._reader = CallReader()
            return self._leave_text("call", made)
        if self.phase == "text" and logprob is not None:
            self._unshown.append((self._pushed, logprob))
        text = "" if token in self._hidden else self._decoder.push(token)
        return self._show(text, made)

    def finish(self, made: int) -> list[Delta]:
        """What was still held back, when no more will come."""
        deltas = self._show(self._decoder.finish(), made)
        if self.phase != "text" or self.stopped:
            return deltas
        return deltas + self._text(self._stops.finish(), made, last=True)

    def _show(self, text: str, made: int) -> list[Delta]:
        match self.phase:
            case "thought":
                return self._think(text, made)
            case "call":
                return self._call(text, made)
            case "text":
                text = self._without_breaks(text) if self._bare else text
                self._pushed += len(text)
                return self._text(self._stops.push(text), made)

    def _enter(self, phase: Phase) -> None:
        self.phase, self._bare, self._breaks = phase, True, ""

    def _leave_text(self, phase: Phase, made: int) -> list[Delta]:
        deltas = self.finish(made)
        self._enter(phase)
        return deltas

    def _without_breaks(self, text: str) -> str:
        text = text.lstrip("\n")
        self._bare = not text
        return text

    def _text(self, text: str, made: int, *, last: bool = False) -> list[Delta]:
        self._shown += len(text)
        logprobs: list[Logprob] = []
        while self._unshown and (last or self._unshown[0][0] < self._shown):
            logprobs.append(self._unshown.popleft()[1])
        return [TextDelta(self._index, text, made, tuple(logprobs))] if text or logprobs else []

    def _think(self, text: str, made: int) -> list[Delta]:
        text = self._without_breaks(text) if self._bare else self._breaks + text
        kept = text.rstrip("\n")
        self._breaks = text[len(kept) :]
        return [ReasoningDelta(self._index, kept, made)] if kept else []

    def _call(self, text: str, made: int) -> list[Delta]:
        known = self._reader.name is not None
        arguments = self._reader.push(text)
        if self._reader.name is None or (known and not arguments):
            return []
        name, number = ("", "") if known else (self._reader.name, f"{self._calls}{self.called}")
        return [ToolCallDelta(self._index, self.called, number, name, arguments, made)]

    def _end_call(self, made: int) -> list[Delta]:
        deltas = self._call(self._decoder.finish(), made)
        self.called += self._reader.name is not None
        self._enter("text")
        return deltas
