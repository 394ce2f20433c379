"""A compiled grammar, and one text's course through it.

All texts teach one lexer, which makes masks quick and takes up to 60 MB. When it is full, the next begins; whoever is
under way then goes the way it has come once more, in a few milliseconds, so that no text ends because of another.
"""

from llguidance import LLMatcher

from qwen3vl_compat.engines.local.matching import Bits, Matching


class Ready:
    """A grammar that is known to be harmless.

    `reserve` is about how many tokens bring a text of it to its end, None where that is not known.
    """

    def __init__(self, matching: Matching, text: str, reserve: int | None) -> None:
        self.matching, self.reserve = matching, reserve
        self._text = text
        self._first: LLMatcher | None = None

    @property
    def compiled(self) -> bool:
        """Whether the next text can begin at once."""
        return self._first is not None

    def first(self, spent: LLMatcher | None = None) -> LLMatcher:
        """A matcher at the beginning, to be copied; another than `spent`, whose lexer is full."""
        first = self._first
        if first is None or first is spent:
            first = self._first = self.matching.compile(self._text)
            self.matching.mask(first.deep_copy())  # the first takes longest, and what it learns serves all copies
        return first

    def forget(self) -> None:
        """Give up what was learnt; texts under way keep it until they end."""
        self._first = None


class Course:
    """One text's way through a grammar."""

    def __init__(self, ready: Ready) -> None:
        self.matching = ready.matching
        self._ready, self._first = ready, ready.first()
        self._matcher = self._first.deep_copy()
        self._taken: list[int] = []

    @property
    def ended(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped() and not self.failed

    @property
    def failed(self) -> bool:
        """Whether the grammar has turned out to be too complex."""
        return self._matcher.is_error()

    def permits(self, token: int) -> bool:
        """Whether this token may come next; far sooner known than all that may."""
        return self.matching.permits(self._matcher, token)

    def bits(self) -> Bits:
        """All that may come next; nothing if the grammar has failed."""
        bits = self.matching.mask(self._matcher)
        for _ in range(2):  # the lexer that others have begun meanwhile may be full again
            if not self.matching.full(self._matcher):
                break
            self._renew()
            bits = self.matching.mask(self._matcher)
        return bits

    def take(self, token: int) -> None:
        """Go on by a token that may come."""
        self._taken.append(token)
        if not self._matcher.consume_token(token):  # a full lexer may say here that the token does not fit
            self._renew()

    def _renew(self) -> None:
        self._first = self._ready.first(spent=self._first)
        self._matcher = self._first.deep_copy()
        self._matcher.consume_tokens(self._taken)
