"""Lists of words: whole words and phrases, whatever their case, width or hidden characters. Linear in the text.

A text is read as words (`spelling`); what stands between them does not count. A phrase is words in a row, and `bomb*`
any word that begins so. No regular expression of an operator's is run.
"""

import asyncio
import hashlib
import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

from qwen3vl_compat.policies.moderation import NOTHING, Judged, Note, Verdict, unnoted
from qwen3vl_compat.policies.moderation.spelling import pieces_of, words_of
from qwen3vl_compat.settings import ModeratorSettings, SettingsError, Stage

LARGE = 100_000
"""Characters above which a text is read off the event loop."""
_REMEMBERED = 4096
"""Words of which it is remembered what they may begin."""
LONGEST, MOST = 100, 20
"""Characters of a word, and words of a phrase, that a list may hold."""

_CATEGORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9 /_-]{0,59}")
Lists = Mapping[str, Sequence[str]]


class _Phrase(Struct, frozen=True):
    """Words in a row; a last character `*` stands for any end of the word."""

    words: tuple[str, ...]
    category: str


class Words:
    """A moderator that knows what words it objects to."""

    pictures = 0

    def __init__(
        self,
        lists: Lists,
        name: str = "words",
        stages: Sequence[Stage] = ("before", "during"),
        note: Note = unnoted,
    ) -> None:
        """`lists` are words and phrases by category. SettingsError for one that cannot be looked for."""
        self.name, self.stages, self._note = name, tuple(stages), note
        phrases = [_phrase(entry, category) for category, entries in lists.items() for entry in entries]
        self._categories = tuple(lists)
        self._by_first: dict[str, list[_Phrase]] = {}
        for phrase in phrases:
            self._by_first.setdefault(phrase.words[0], []).append(phrase)
        self._lengths = sorted({len(word) - 1 for word in self._by_first if word.endswith("*")})
        self._beginning = lru_cache(_REMEMBERED)(self._begun_by)
        self.longest = max((len(phrase.words) for phrase in phrases), default=1)
        """Words in the longest phrase; `unfinished` tells of the beginnings of one."""
        pieces_of("")  # what reading needs is made now, and not at the first request
        said = sorted((phrase.category, phrase.words) for phrase in phrases)
        self.fingerprint = hashlib.sha256(repr((name, said)).encode()).hexdigest()

    def unfinished(self, words: Sequence[str]) -> int:
        """How many words at the end are the beginning of a phrase, or may be."""
        for place in range(max(0, len(words) - self.longest + 1), len(words)):
            if any(_agree(words[place:], phrase) for phrase in self._beginning(words[place])):
                return len(words) - place
        return 0

    def found(self, words: Sequence[str]) -> tuple[str, ...]:
        """The categories of all that stands among these words, in the order of the lists."""
        hit: set[str] = set()
        for place, word in enumerate(words):
            for phrase in self._beginning(word):
                here = words[place : place + len(phrase.words)]
                if len(here) == len(phrase.words) and _agree(here, phrase):
                    hit.add(phrase.category)
        return tuple(category for category in self._categories if category in hit) if hit else ()

    def _begun_by(self, word: str) -> tuple[_Phrase, ...]:
        """The phrases whose first word this may be."""
        keys = (word, *(f"{word[:length]}*" for length in self._lengths))
        return tuple(phrase for key in keys for phrase in self._by_first.get(key, ()))

    def verdict(self, categories: Sequence[str]) -> Verdict:
        """How it says that it has found these."""
        scores = {category: float(category in categories) for category in self._categories}
        return Verdict(bool(categories), tuple(categories), scores)

    def note(self, flagged: bool) -> None:
        """Take note of what came of a question, or of a text that was read to its end."""
        self._note(Judged(self.name, "flagged" if flagged else "passed"))

    def passes(self, text: str) -> bool:
        """Whether a text holds nothing of it."""
        flagged = bool(self.found(words_of(text)))
        self.note(flagged)
        return not flagged

    async def look(self, texts: Sequence[str], pictures: Sequence[bytes]) -> Verdict:
        """What is in the texts, each by itself; pictures hold no words."""

        def seen() -> Verdict:
            hit = {category for text in texts for category in self.found(words_of(text))}
            return self.verdict([category for category in self._categories if category in hit])

        verdict = await asyncio.to_thread(seen) if sum(map(len, texts)) > LARGE else seen()
        self.note(verdict.flagged)
        return verdict

    async def close(self) -> None:
        """Nothing is open."""

    def follow(self) -> "Reading":
        """Read a text that is still being written."""
        return Reading(self)


class Reading:
    """A text in the making: read word by word, so that however it comes in pieces, the same is found in it.

    `safe` is how many of its characters can be no part of anything that is looked for, whatever comes after them.
    """

    def __init__(self, words: Words) -> None:
        self.safe = 0
        self._words, self._most = words, words.longest - 1
        self._rest, self._read, self._count = "", 0, 0
        self._last: list[str] = []
        self._ends: deque[tuple[int, int]] = deque()
        """Where each piece ends, and how many words there are up to there."""

    def push(self, text: str) -> Verdict:
        """Read on."""
        *whole, self._rest = pieces_of(self._rest + text)
        verdict = self._see(whole)
        if verdict.flagged:
            self._words.note(True)
        return verdict

    async def finish(self) -> Verdict:
        """Read what is left: nothing comes after it."""
        rest, self._rest = self._rest, ""
        verdict = self._see([rest])
        self.safe = self.safe if verdict.flagged else self._read
        self._words.note(verdict.flagged)
        return verdict

    async def close(self) -> None:
        """Nothing is open."""

    def _see(self, pieces: Sequence[str]) -> Verdict:
        if not pieces:  # a word goes on
            return NOTHING
        words = list(self._last)
        for piece in pieces:
            here = words_of(piece)
            words += here
            self._read += len(piece)
            self._count += len(here)
            self._ends.append((self._read, self._count))
        categories = self._words.found(words)
        if categories:
            return self._words.verdict(categories)
        seen = self._count - self._words.unfinished(words)
        while self._ends and self._ends[0][1] <= seen:
            self.safe, _ = self._ends.popleft()
        self._last = words[-self._most :] if self._most else []
        return NOTHING


def make_words(settings: ModeratorSettings, note: Note = unnoted) -> Words:
    """The moderator that an operator describes; SettingsError."""
    lists = {category: list(entries) for category, entries in settings.words.items()}
    for category, entry in _entries(settings.file):
        lists.setdefault(category, []).append(entry)
    name = settings.name or "words"
    try:
        if not any(lists.values()):
            raise ValueError("has no words")
        return Words(lists, name, settings.stages, note)
    except ValueError as error:
        raise SettingsError(f"The moderator '{name}' cannot be used: {error}.") from None


def _entries(file: str) -> Iterator[tuple[str, str]]:
    """(Category, entry) for each line of a file; a line in brackets names the category of those below it."""
    if not file:
        return
    path = Path(file).expanduser().absolute()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise SettingsError(f"The file of words {path} is not there.") from None
    except OSError as error:
        raise SettingsError(f"The file of words {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"The file of words {path} cannot be read as UTF-8.") from None
    category = "words"
    for line in filter(None, (line.strip() for line in lines)):
        if line.startswith("[") and line.endswith("]"):
            category = line[1:-1].strip()
        elif not line.startswith("#"):
            yield category, line


def _phrase(entry: str, category: str) -> _Phrase:
    """An entry of a list as it is looked for; ValueError where it would mean something else than it seems to."""
    if not _CATEGORY.fullmatch(category):
        raise ValueError(f"{category[:60]!r} is no name of a category: 1 to 60 letters, digits and / _ -")
    words: list[str] = []
    for part in entry.split():
        found = words_of(part)
        if not found or any(_is_sign(character) for character in part.removesuffix("*")):
            raise ValueError(f"{entry[:60]!r} holds signs that are not looked at, or no word")
        words += found[:-1] + [found[-1] + "*" if part.endswith("*") else found[-1]]
    if not 1 <= len(words) <= MOST or max(map(len, words)) > LONGEST:
        raise ValueError(f"{entry[:60]!r} is not 1 to {MOST} words of at most {LONGEST} characters")
    return _Phrase(tuple(words), category)


def _is_sign(character: str) -> bool:
    return unicodedata.category(character)[0] not in "LMNC" and character not in "'’.-"


def _agree(words: Sequence[str], phrase: _Phrase) -> bool:
    """Whether words and phrase are the same as far as both go."""
    return all(map(_fits, words, phrase.words))


def _fits(word: str, sought: str) -> bool:
    return word.startswith(sought[:-1]) if sought.endswith("*") else word == sought
