"""Stop strings over a stream of text: nothing of one is ever shown, however it is cut."""


class StopStrings:
    """Holds text back as long as it could be the beginning of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = ""
        """The stop string that has come."""

    @property
    def stopped(self) -> bool:
        """Whether one has come."""
        return bool(self.found)

    def push(self, text: str) -> str:
        """Add text; returns what may be shown now. After a stop string nothing more is."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(place, -len(stop), stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            place, _, self.found = min(found)
            shown, self._held = self._held[:place], ""
            return shown
        keep = self._longest_beginning()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """The text still held back, when no more will come."""
        shown, self._held = self._held, ""
        return shown

    def _longest_beginning(self) -> int:
        """Characters at the end of the held text that could begin a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
