"""What one choice may say next: where it is in its answer, the grammar that holds there, and the ends that do not."""

import time
from collections.abc import Callable

from msgspec import Struct

from qwen3vl_compat.engines.local.dialect import Dialect
from qwen3vl_compat.engines.local.matching import Bits
from qwen3vl_compat.engines.local.ready import Course, Ready
from qwen3vl_compat.errors import InvalidRequest

SLOWEST = 1.0
"""Seconds that the mask of one token may take: beyond, the answer is given up for the sake of the others."""


class Rules(Struct, frozen=True, kw_only=True):
    """What holds for every choice of a request."""

    eos: frozenset[int]
    """The checkpoint's end of an answer."""
    ends: frozenset[int]
    """What of it ends this request's answers: nothing where it is to be ignored."""
    stops: frozenset[int] = frozenset()
    """What ends them in visible text."""
    limit: int
    """Tokens an answer may have."""
    min_tokens: int = 0
    answer: Ready | None = None
    """The grammar of the visible answer."""
    call: Ready | None = None
    """The grammar behind a `<tool_call>`, where the answer has none."""
    close_early: bool = True
    """Bring a grammar to its end before the limit is reached."""
    parallel: bool = True
    budget: int | None = None
    """Tokens of thoughts."""
    farewell: tuple[int, ...] = ()
    """What closes a thought that has used up its budget."""
    gap: tuple[int, ...] = ()
    """What stands between a thought and an answer that a grammar binds."""


class Next(Struct, frozen=True):
    """What may come next: the token if it is settled, else what is allowed (None for all) less what is banned."""

    forced: int | None = None
    allowed: "Allowed | None" = None
    banned: tuple[int, ...] = ()


FREE = Next()


class Allowed:
    """What a grammar allows in one place, looked up only as far as it is asked for. `narrowed` picks among it."""

    def __init__(self, course: Course, narrowed: Callable[[Bits], Bits] | None) -> None:
        self._course, self._narrowed = course, narrowed

    def permits(self, token: int) -> bool:
        """Whether this token may come."""
        if self._narrowed is None:
            return self._course.permits(token)
        return bool(self.bits()[token // 32] >> (token % 32) & 1) if token < 32 * len(self.bits()) else False

    def bits(self) -> Bits:
        """All that may come; raises InvalidRequest."""
        began = time.monotonic()
        bits = self._course.bits()
        if self._course.failed or time.monotonic() - began > SLOWEST:
            raise InvalidRequest("The schema or regex turned out to be too complex.", code="invalid_schema")
        return bits if self._narrowed is None else self._narrowed(bits)


class Guide:
    """The state of one choice; follows its dialect, which must have taken every token before."""

    def __init__(self, rules: Rules, dialect: Dialect) -> None:
        self._rules, self._dialect = rules, dialect
        self._phase = dialect.phase
        self._queue: list[int] = []
        """Settled tokens, the first last."""
        self._course = Course(rules.answer) if rules.answer is not None else None
        self._parting = self._hurried = False
        self.cut = False
        """Whether the grammar had to be brought to its end because of the limit."""
        self.finished = False
        """Whether nothing may follow."""

    @property
    def bound(self) -> bool:
        """Whether a grammar holds now."""
        return self._course is not None and self._dialect.phase != "thought"

    def ends(self, token: int, made: int) -> bool:
        """Whether this token ends the answer behind `made` others; where a grammar holds, it has allowed that."""
        rules = self._rules
        if token in rules.ends or (self.bound and token in rules.eos):
            return True
        return token in self._stops and not self._queue and made >= rules.min_tokens

    @property
    def _stops(self) -> frozenset[int]:
        return self._rules.stops if self._dialect.phase == "text" else frozenset()

    def hurry(self) -> None:
        """Take the shortest way to the end of the grammar: the model itself would end here."""
        self._hurried = True

    def next(self, made: int) -> Next:
        """What may come as the token behind `made` others."""
        rules = self._rules
        if self._dialect.phase == "thought":
            if not self._queue and not self._parting and self._thought_enough(made):
                self._parting = True
                self._queue = list(reversed(rules.farewell))
            if self._queue:
                return Next(forced=self._queue[-1])
            if rules.answer is not None:
                return Next(banned=tuple(rules.eos))
            return self._free(made)
        if self._queue:
            return Next(forced=self._queue[-1])
        if self._course is not None:
            return Next(allowed=self._allowed(self._course, made))
        return self._free(made)

    def _free(self, made: int) -> Next:
        return Next(banned=tuple(self._rules.ends | self._stops)) if made < self._rules.min_tokens else FREE

    def _thought_enough(self, made: int) -> bool:
        rules = self._rules
        if rules.budget is not None and self._dialect.thought >= rules.budget:
            return True
        behind = len(rules.farewell) + len(rules.gap)
        return rules.answer is not None and made + behind + self._reserve(rules.answer) >= rules.limit

    def _reserve(self, ready: Ready) -> int:
        """Tokens that are kept for the end of the grammar; where nobody knows how many it takes, a quarter of all."""
        return self._rules.limit // 4 if ready.reserve is None else ready.reserve

    def _allowed(self, course: Course, made: int) -> Allowed:
        matching = course.matching
        early, late = made < self._rules.min_tokens, self._late(made)
        if not (early or late or self._hurried):
            return Allowed(course, None)

        def narrowed(bits: Bits) -> Bits:
            if early:
                bits = _without(_without(bits, matching.ends), matching.bits_of(self._stops))
            if not (late or self._hurried):
                return bits
            closing = matching.closing(bits)
            self.cut = self.cut or (late and not self._hurried and not bool((closing == bits).all()))
            return closing

        return Allowed(course, narrowed)

    def _late(self, made: int) -> bool:
        """Whether hardly more tokens are left than the way to the end of the grammar takes."""
        ready = self._rules.answer or self._rules.call
        return self._rules.close_early and ready is not None and made + self._reserve(ready) >= self._rules.limit

    def take(self, token: int) -> None:
        """Follow a token that the dialect has taken, and that did not end the answer."""
        rules, before, phase = self._rules, self._phase, self._dialect.phase
        self._phase = phase
        if before == "thought" or self._queue:
            if self._queue:
                self._queue.pop()
            if before == "thought" and phase == "text":
                self._parting = False
                if rules.answer is not None:
                    self._queue = list(reversed(rules.gap))
            return
        if self._course is not None:
            self._course.take(token)
            if self._course.ended:
                self._course, self.finished = None, rules.answer is not None
        elif phase == "call" and rules.call is not None:
            self._course = Course(rules.call)
        if before == "call" and phase == "text" and not rules.parallel:
            self.finished = True


def _without(bits: Bits, ends: Bits) -> Bits:
    """Less these, unless nothing else is left: a grammar that is complete ends whatever min_tokens says."""
    more = bits & ~ends
    return more if more.any() else bits
