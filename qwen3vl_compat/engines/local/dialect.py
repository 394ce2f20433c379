"""Generated tokens to visible text: bytes joined to characters, control tokens left out, stop strings kept back."""

from qwen3vl_compat.engines.stop import StopStrings
from qwen3vl_compat.tokens import Decoder, Vocabulary


class Dialect:
    """The state of one choice's text; pure."""

    def __init__(self, vocabulary: Vocabulary, stops: tuple[str, ...]) -> None:
        self._decoder = Decoder(vocabulary)
        self._hidden = vocabulary.special
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """The text that may be shown after this token."""
        return "" if token in self._hidden else self._stops.push(self._decoder.push(token))

    def finish(self) -> str:
        """What was still held back."""
        rest = self._stops.push(self._decoder.finish())
        return rest + ("" if self._stops.stopped else self._stops.finish())
