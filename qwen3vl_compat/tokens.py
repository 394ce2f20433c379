"""Text to token ids and back, exactly as the checkpoint's own tokenizer does it, without transformers.

A Qwen-style `tokenizer.json` (NFC, a splitting regex, byte-level BPE, added tokens) is rebuilt as a tiktoken encoding.
Plain text never becomes an added token: only a prompt's own control tokens do (`Vocabulary.encode_prompt`).
"""

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Self

import tiktoken

from qwen3vl_compat import tokenizer_file
from qwen3vl_compat.errors import InvalidRequest

SPACE_LIMIT = 100_000
"""White-space characters allowed in a row: tiktoken's regex engine panics at 1,000,000 that end in no line break."""
WORD_LIMIT = 200_000
"""Letters, or punctuation marks, allowed in a row: such a run is merged as one word, in more than linear time."""

_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
"""Unicode's White_Space, which is what the vocabulary's own regex means by white space; Python's differs."""
_LETTER = r"[^\W\d_]"
_SYMBOL = r"(?:[^\w\s]|_)"


def _longer_than(limit: int, character: str) -> re.Pattern[str]:
    """Find a run of more than `limit` characters; the look-behind keeps the search linear."""
    behind = r"(?<![^\w\s])(?<!_)" if character == _SYMBOL else f"(?<!{character})"
    return re.compile(f"{behind}{character}{{{limit + 1}}}")


_LIMITS = (
    (_longer_than(SPACE_LIMIT, _SPACE), f"more than {SPACE_LIMIT:,} white-space characters in a row"),
    (_longer_than(WORD_LIMIT, _LETTER), f"more than {WORD_LIMIT:,} letters in a row"),
    (_longer_than(WORD_LIMIT, _SYMBOL), f"more than {WORD_LIMIT:,} punctuation marks or symbols in a row"),
)


def check_text(text: str, param: str | None = None) -> None:
    """Raise InvalidRequest (`invalid_value`) for text that no tokenizer run should be spent on.

    Refused are lone surrogates, which no UTF-8 can carry, and runs beyond SPACE_LIMIT and WORD_LIMIT. All else is
    tokenized in about a second for 2 MB at worst.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("The text holds half a surrogate pair, which is no character.", param=param) from None
    if len(text) > min(SPACE_LIMIT, WORD_LIMIT):
        for pattern, excess in _LIMITS:
            if pattern.search(text):
                raise InvalidRequest(f"The text holds {excess}.", param=param)


@dataclass(frozen=True, slots=True, repr=False)
class Vocabulary:
    """A checkpoint's tokens. `added` maps each added token's spelling to its id; `size` is the highest id plus one.

    `special` are the added tokens that are control and never text, so that an answer does not show them.
    """

    added: Mapping[str, int]
    special: frozenset[int]
    size: int
    _encoding: tiktoken.Encoding
    _spellings: Mapping[int, bytes]
    _nfc: bool
    _control: re.Pattern[str]
    _openers: re.Pattern[str]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `folder/tokenizer.json`. ValueError with one plain sentence if it is missing or of another form."""
        file = tokenizer_file.read(folder / "tokenizer.json")
        spellings = {token: spelling for spelling, token in file.ranks.items()}
        spellings.update({token: spelling.encode() for spelling, token in file.added.items()})
        longest_first = sorted(file.added, key=len, reverse=True)
        openers = {spelling[0] for spelling in file.added}
        return cls(
            added=MappingProxyType(file.added),
            special=file.special,
            size=max(spellings) + 1,
            _encoding=tiktoken.Encoding(
                "vocabulary", pat_str=file.pattern, mergeable_ranks=file.ranks, special_tokens={}
            ),
            _spellings=MappingProxyType(spellings),
            _nfc=file.nfc,
            _control=_any_of(longest_first),
            _openers=_any_of(openers),
        )

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, in which an added token's spelling is but letters. InvalidRequest: see check_text."""
        if self._nfc and not text.isascii():
            text = compose(text)
        check_text(text)
        return self._encoding.encode_ordinary(text)

    def spell(self, text: str) -> list[int]:
        """The ids that spell exactly these characters, uncomposed, in the words they fall into. For short texts."""
        return self._encoding.encode_ordinary(text)

    def count(self, text: str) -> int:
        """How many tokens plain text is. InvalidRequest: see check_text."""
        return len(self.encode(text))

    def shield(self, text: str, mark: str) -> str:
        """The text with `mark` after each character that could begin an added token, for a chat template to carry."""
        return self._openers.sub(lambda found: found[0] + mark, text)

    def encode_prompt(self, rendered: str, mark: str) -> list[int]:
        """The ids of a chat template's output in which every text a user gave went through `shield` with this `mark`.

        Added tokens that the template spelt become their ids; each stretch between two of them is encoded as one run,
        after `mark` is taken out and before it is composed. InvalidRequest: see check_text.
        """
        ids: list[int] = []
        start = 0
        for found in self._control.finditer(rendered):
            ids += self.encode(rendered[start : found.start()].replace(mark, ""))
            ids.append(self.added[found[0]])
            start = found.end()
        return ids + self.encode(rendered[start:].replace(mark, ""))

    def bytes_of(self, token: int) -> bytes:
        """What a token spells, as UTF-8 that may begin or end inside a character; nothing for an id without spelling.

        Checkpoints pad their embeddings beyond the vocabulary, so that such an id can be sampled.
        """
        return self._spellings.get(token, b"")


class Decoder:
    """Turns ids into text as they come: always whole characters, bytes that are no UTF-8 becoming U+FFFD."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character's bytes are still to come."""
        return self._utf8.decode(self._vocabulary.bytes_of(token))

    def finish(self) -> str:
        """What is left at the end: U+FFFD if the ids stopped inside a character."""
        return self._utf8.decode(b"", final=True)


def unused_mark(texts: Iterable[str]) -> str:
    """A noncharacter or private-use character that is in none of the texts."""
    used = set(chain.from_iterable(map(set, texts)))
    for code in chain(range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)):
        if chr(code) not in used:
            return chr(code)
    raise InvalidRequest("The text uses every private-use character of Unicode; one must be left out.")


def compose(text: str) -> str:
    """The text in Unicode's normalization form C, in linear time.

    CPython orders a run of combining marks in quadratic time (8 s for 100,000 of them). Long runs are put in canonical
    order first, by the stable sort which that order is defined as: an equivalent text, so the same result.
    """
    ordered = _mark_runs().sub(lambda found: "".join(_canonical_order(found[0])), text)
    return unicodedata.normalize("NFC", ordered)


def _canonical_order(marks: str) -> Iterator[str]:
    decomposed = chain.from_iterable(unicodedata.normalize("NFD", mark) for mark in marks)
    return iter(sorted(decomposed, key=unicodedata.combining))


@cache
def _mark_runs() -> re.Pattern[str]:
    """Runs of more than 31 characters with a combining class; shorter ones cost little."""
    marks = (chr(code) for code in range(0x300, 0x110000) if unicodedata.combining(chr(code)))
    return re.compile(f"[{''.join(marks)}]{{32,}}")


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """The leftmost of these strings, the first given winning; matches nothing when there are none."""
    return re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
