"""What a client gathers of a stream whose token counts come only at its end."""

from collections.abc import Iterator

from qwen3vl_compat.events import Finish, FinishReason, Usage


class Received:
    """Deltas as they come, each counted as one token; ends held back until the usage is known."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._counts: dict[int, int] = {}
        self._ends: list[tuple[int, FinishReason, str]] = []

    def count(self, index: int) -> int:
        """One more delta of a choice: how many there are now."""
        self._counts[index] = self._counts.get(index, 0) + 1
        return self._counts[index]

    def end(self, index: int, reason: FinishReason, details: str = "") -> None:
        """A choice is complete."""
        self._ends.append((index, reason, details))

    def finishes(self) -> Iterator[Finish]:
        """The ends in their order, with the usage of the whole."""
        total = self.usage or Usage(prompt_text=0, completion=sum(self._counts.values()))
        yield from (Finish(index, reason, total, details) for index, reason, details in self._ends)
