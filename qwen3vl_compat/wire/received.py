"""What a client gathers of a stream whose token counts come only at its end."""

from collections.abc import Iterator

from qwen3vl_compat.events import Finish, FinishReason, TextDelta, Usage


class Received:
    """Deltas as they come, each counted as one token; ends held back until the usage is known."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._counts: dict[int, int] = {}
        self._ends: list[tuple[int, FinishReason]] = []

    def text(self, index: int, text: str) -> TextDelta:
        """A piece of one choice's text."""
        self._counts[index] = self._counts.get(index, 0) + 1
        return TextDelta(index, text, self._counts[index])

    def end(self, index: int, reason: FinishReason) -> None:
        """A choice is complete."""
        self._ends.append((index, reason))

    def finishes(self) -> Iterator[Finish]:
        """The ends in their order, with the usage of the whole."""
        total = self.usage or Usage(prompt_text=0, completion=sum(self._counts.values()))
        yield from (Finish(index, reason, total) for index, reason in self._ends)
