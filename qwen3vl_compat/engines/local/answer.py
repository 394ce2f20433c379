"""One choice in the making: what may come next, how it is drawn, how it is shown, and when it ends."""

from collections.abc import Sequence as Items

from msgspec import Struct

from qwen3vl_compat.engines.local.dialect import Dialect
from qwen3vl_compat.engines.local.guide import Guide, Rules
from qwen3vl_compat.engines.local.sampling import Chooser, Drawn, Row, Seen
from qwen3vl_compat.events import Delta, FinishReason, Likely, Logprob
from qwen3vl_compat.tokens import Vocabulary

LOOKED_AT = 16
"""An answer is looked through for repetition every so many tokens."""


class End(Struct, frozen=True):
    """Why an answer ended; see events.Finish."""

    reason: FinishReason
    details: str = ""
    stop: str = ""


class Answer:
    """The state of one choice. `rambling` is how many tokens of mere repetition end it, 0 for none."""

    def __init__(
        self, chooser: Chooser, dialect: Dialect, rules: Rules, vocabulary: Vocabulary, *, seen: Seen, rambling: int = 0
    ) -> None:
        self.chooser, self.dialect, self.guide = chooser, dialect, Guide(rules, dialect)
        self._rules, self._vocabulary, self._seen, self._rambling = rules, vocabulary, seen, rambling
        self._tokens: list[int] = []

    def row(self, place: int, made: int) -> Row:
        """What to draw from a row of scores for the token behind `made` others; raises InvalidRequest."""
        what = self.guide.next(made)
        return Row(place, self.chooser, made, self._seen, what.allowed, what.banned, what.forced)

    def take(self, drawn: Drawn, made: int) -> tuple[list[Delta], End | None]:
        """Follow the `made`-th token: what it lets be shown, and whether the answer ends with it."""
        token, guide = drawn.token, self.guide
        if token is None:
            return [], self._end("length", "no_token")
        if guide.ends(token, made - 1):
            return [], self._end("stop")
        if guide.bound and drawn.likeliest in self._rules.eos:
            guide.hurry()
        deltas = self.dialect.push(token, made, self._logprob(token, drawn))
        guide.take(token)
        if self.chooser.counts:
            self._seen.add(token)
        if self.dialect.stopped or guide.finished:
            return deltas, self._end("stop")
        if made >= self._rules.limit:
            return deltas, self._end("length")
        if self._rambling:
            self._tokens.append(token)
            if made % LOOKED_AT == 0 and repeats(self._tokens, self._rambling):
                return deltas, self._end("length", "repetition")
        return deltas, None

    def _end(self, reason: FinishReason, details: str = "") -> End:
        if reason == "stop":
            reason = "tool_calls" if self.dialect.called else "stop"
            return End(reason, "closed" if self.guide.cut else "", self.dialect.stop)
        return End(reason, details)

    def _logprob(self, token: int, drawn: Drawn) -> Logprob | None:
        if self.chooser.logprobs is None:
            return None
        spelt = self._vocabulary.bytes_of
        top = tuple(Likely(each, spelt(each), value) for each, value in drawn.top)
        return Logprob(Likely(token, spelt(token), drawn.logprob), top)


def repeats(tokens: Items[int], length: int) -> bool:
    """Whether the last `length` tokens are one stretch of at most a quarter of that, over and over."""
    if len(tokens) < length:
        return False
    tail = tokens[-length:]
    return any(tail[period:] == tail[:-period] for period in range(1, length // 4 + 1) if tail[period] == tail[0])
