"""Grammars at work: llguidance with the model's vocabulary, its limits, and how a JSON text is brought to its end."""

import re
import time
from collections.abc import Iterable

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from qwen3vl_compat.tokens import Vocabulary

Bits = NDArray[np.uint32]
FORCED = 64
"""Characters of a settled stretch that are cut into tokens at a time: of all of them it would cost quadratic time."""
SLOW = 0.004
"""Seconds a mask may take on average while a grammar is tried: all who are answered in the same steps wait for it."""
TRIED, STRAYED = 0.1, 0.02
"""Seconds of computing for the shortest way through a grammar, and for each of three by chance."""
LONGEST_WALK = 4_096
"""Tokens after which no end is looked for any more."""
FULL = "too many states"
"""How llguidance says that a lexer, which all copies of a matcher share and teach, has no room for more."""
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_lexer_fuel=100_000, step_max_items=20_000, max_lexer_states=120_000,
    max_grammar_size=200_000, verbose_errors=False,
)  # fmt: skip


class TooComplex(Exception):
    """A grammar that is refused; the text says why."""


class _Words:
    """A vocabulary as llguidance wants one."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, ends: list[int]) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id = ends[0]
        self.tokens = [vocabulary.bytes_of(token) for token in range(max(vocabulary.size, ends[-1] + 1))]
        self.special_token_ids = sorted(vocabulary.added.values())

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode("utf-8", "ignore") if isinstance(text, bytes) else text
        return self._vocabulary.spell(text[:FORCED])


class Matching:
    """Compiles grammars for one vocabulary. Added tokens match only where a grammar names their ids."""

    def __init__(self, vocabulary: Vocabulary, end_ids: Iterable[int]) -> None:
        ends = sorted(end_ids)
        words = _Words(vocabulary, ends)
        spelt = words.tokens
        self._tokenizer = LLTokenizer(words, n_vocab=len(spelt), eos_token=ends)  # pyright: ignore[reportArgumentType]
        self._words = -(-len(spelt) // 32)

        short = re.compile(rb'[\]}"]+|, ?|null|true|false|[0-9]{1,3}|[a-z]')
        known = [(token, data) for token, data in enumerate(spelt) if short.fullmatch(data)]

        def spelling(pattern: bytes) -> Bits:
            return self.bits_of(token for token, data in known if re.fullmatch(pattern, data))

        self.ends = self.bits_of(ends)
        self._letters, closers, quotes = spelling(rb"[a-z]"), spelling(rb"[\]}]+"), spelling(rb'"[\]}"]*')
        rest = (spelling(rb", ?"), spelling(rb"null|true|false|[0-9]{1,3}"))
        self._outside = (self.ends, closers, quotes, *rest)
        self._inside = (self.ends, quotes)
        """Where letters may come too, brackets are letters as well."""

    def bits_of(self, tokens: Iterable[int]) -> Bits:
        """These tokens; a padded vocabulary has some that no text is made of."""
        flags = np.zeros(self._words * 32, dtype=np.uint8)
        flags[[token for token in tokens if token < len(flags)]] = 1
        return np.packbits(flags, bitorder="little").view(np.uint32)

    def compile(self, text: str) -> LLMatcher:
        """A matcher at the beginning of a grammar, to be copied for each use; raises TooComplex."""
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise TooComplex(_sentence(matcher.get_error()))
        return matcher

    def mask(self, matcher: LLMatcher) -> Bits:
        """What may come next; nothing if the matcher has failed."""
        bits = np.zeros(self._words, dtype=np.uint32)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        return bits if not matcher.is_error() else np.zeros_like(bits)

    def full(self, matcher: LLMatcher) -> bool:
        """Whether the matcher has failed because its lexer has learnt all it can."""
        return matcher.is_error() and FULL in matcher.get_error()

    def permits(self, matcher: LLMatcher, token: int) -> bool:
        """Whether this token may come next; far sooner known than all that may."""
        return bool(matcher.validate_tokens([token]))

    def closing(self, bits: Bits) -> Bits:
        """Of what may come next, what leads to the end of a JSON text soonest."""
        inside = bool((bits & self._letters == self._letters).all())
        for closers in self._inside if inside else self._outside:
            if (left := bits & closers).any():
                return left
        return bits

    def walk(self, matcher: LLMatcher) -> int | None:
        """Try a grammar out; returns how many tokens its shortest text has, about, None if no end was found in time.

        Raises TooComplex.
        """
        shortest = self._try(matcher.deep_copy(), None, TRIED)
        for seed in range(3):
            self._try(matcher.deep_copy(), np.random.default_rng(seed), STRAYED)
        return shortest

    def _try(self, matcher: LLMatcher, rng: np.random.Generator | None, seconds: float) -> int | None:
        """Take the shortest way, or one by chance, for so long; returns its tokens."""
        self.mask(matcher)  # the first takes longest, once
        began = time.thread_time()
        for made in range(LONGEST_WALK):
            bits = self.mask(matcher)
            spent = time.thread_time() - began
            if matcher.is_error():
                raise TooComplex(_sentence(matcher.get_error()))
            if spent > SLOW * (made + 5):
                raise TooComplex("it is too complex")
            if spent > seconds:
                return None
            token = _any(bits, rng) if rng else _lowest(self.closing(bits))
            if token is None:
                raise TooComplex("no text can satisfy it")
            if not matcher.consume_token(token) or matcher.is_stopped():
                return made + 1
        return None


def _lowest(bits: Bits) -> int | None:
    """The first token; unpacking all bits would take five times as long as computing them did."""
    place = int((bits != 0).argmax())
    word = int(bits[place])
    return place * 32 + (word & -word).bit_length() - 1 if word else None


def _any(bits: Bits, rng: np.random.Generator) -> int | None:
    tokens = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
    return int(rng.choice(tokens)) if len(tokens) else None


def _sentence(text: str) -> str:
    """The first line of what llguidance says, short."""
    line = text.strip().splitlines()[0] if text.strip() else "it cannot be compiled"
    line = re.sub(r"^(at )?\d+\(\d+\): |failed to compile JSON schema: | in a registry .*", "", line)
    return "".join(character if character.isprintable() else "?" for character in line)[:200]
