"""Texts as words that can be compared: without case, width, and characters that nobody sees.

A word is a run of letters, digits and their marks. In scripts without spaces (Chinese, Japanese, Thai ...) each letter
is a word, so that a word of theirs is a phrase and is found wherever it stands.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from typing import NamedTuple

LONGEST_RUN = 1024
"""Characters without any place to cut after which a text in the making is cut all the same."""

_UNSPACED = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1980, 0x19DF),  # New Tai Lue
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),  # ideographs, as the one before and the last
    (0x20000, 0x3FFFF),
)
_UNSEEN = (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0)
"""Joiners and fillers that are of other categories than format characters."""


class _Script(NamedTuple):
    """The regular expressions, each linear, that reading takes."""

    unseen: re.Pattern[str]
    word: re.Pattern[str]
    cut: re.Pattern[str]


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text.lower())
    script = _script()
    plain = unicodedata.normalize("NFKC", script.unseen.sub("", text)).casefold()
    return script.word.findall(unicodedata.normalize("NFKC", plain))


def pieces_of(text: str) -> list[str]:
    """The text in pieces that can be read one by one as they would be in the whole; more may come to the last one."""
    pieces: list[str] = []
    for piece in _script().cut.split(text):
        while len(piece) > LONGEST_RUN:
            pieces.append(piece[:LONGEST_RUN])
            piece = piece[LONGEST_RUN:]
        pieces.append(piece)
    return pieces


@cache
def _script() -> _Script:
    marks: list[int] = []
    unspaced: list[int] = []
    unseen = list(_UNSEEN)
    for code in chain(range(0x40000), range(0xE0000, 0xE0200)):
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cf" or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
            unseen.append(code)
        elif category in ("Mn", "Mc"):
            marks.append(code)
        elif category[0] in "LN" and _is_unspaced(code) and unicodedata.normalize("NFKC", character) == character:
            unspaced.append(code)
    mark, alone = _class(marks), _class(unspaced)
    word = rf"[{alone}][{mark}]*|[^\W_{alone}]+(?:[{mark}][^\W_{alone}]*)*"
    # ASCII signs and white space end a word and join with nothing that follows; a letter that stands alone begins one.
    cut = rf"(?<=[\s\x00-/:-@\[-`{{-\x7f])|(?=[{alone}])"
    return _Script(re.compile(f"[{_class(unseen)}]+"), re.compile(word), re.compile(cut))


def _is_unspaced(code: int) -> bool:
    return any(first <= code <= last for first, last in _UNSPACED)


def _class(codes: Iterable[int]) -> str:
    """Rising code points as the inside of a class of characters."""
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in _runs(codes))


def _runs(codes: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = -2
    for code in sorted(codes):
        if code != last + 1:
            if first >= 0:
                yield first, last
            first = code
        last = code
    yield first, last
