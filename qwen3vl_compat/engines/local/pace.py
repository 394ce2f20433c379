"""How fast the device has been of late."""


class Pace:
    """Units a second, as a moving mean."""

    def __init__(self) -> None:
        self._rate = 0.0

    def saw(self, units: int, seconds: float) -> None:
        """Note what was done in how long."""
        rate = units / max(1e-4, seconds)
        self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate

    def within(self, seconds: float, most: int) -> int:
        """Units to be expected in a time; `most` where nothing was seen yet."""
        return min(most, int(self._rate * seconds)) if self._rate else most
