"""Lists of words: what counts as the same word, what is found, and that a text in the making is read like a whole."""

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen3vl_compat.policies.moderation import Judged
from qwen3vl_compat.policies.moderation.spelling import words_of
from qwen3vl_compat.policies.moderation.words import LARGE, Words, make_words
from qwen3vl_compat.settings import ModeratorSettings, SettingsError

LISTS = {"violence": ["kill them all", "Murder", "bomb*"], "fruit": ["apple", "杀人", "don't"]}
WORDS = Words(LISTS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Kill them  ALL.", ("violence",)),
        ("kill\n\nthem, all!", ("violence",)),
        ("kill_them_all", ("violence",)),
        ("skill them all", ()),
        ("kill them allies", ()),
        ("kill them", ()),
        ("murderer", ()),
        ("MURDER", ("violence",)),
        ("mur\u200bd\u00ader", ("violence",)),
        ("ｍｕｒｄｅｒ", ("violence",)),
        ("ⓜⓤⓡⓓⓔⓡ", ("violence",)),
        ("𝐦𝐮𝐫𝐝𝐞𝐫", ("violence",)),
        ("bombing", ("violence",)),
        ("bomb", ("violence",)),
        ("the bom b", ()),
        ("abomb", ()),
        ("他杀人了", ("fruit",)),
        ("他杀了人", ()),
        ("DON’T", ("fruit",)),
        ("an apple, murder", ("violence", "fruit")),
        ("", ()),
        ("...", ()),
    ],
)
def test_what_is_found(text: str, found: tuple[str, ...]) -> None:
    assert WORDS.found(words_of(text)) == found
    assert WORDS.passes(text) == (not found)
    assert WORDS.passes(f"ü {text}") == (not found)  # read in the other way, as what is not ASCII alone


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Straße", ["strasse"]),
        ("कि का", ["कि", "का"]),
        ("ガｶﾞ", ["ガ", "ガ"]),
        ("e\u0301té", ["été"]),
        ("a\u0338b", ["a\u0338b"]),
        ("=\u0338kill", ["kill"]),
        ("ไทย a", ["ไ", "ท", "ย", "a"]),
    ],
)
def test_what_a_word_is(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("lists", "fault"),
    [
        ({"a": ["c++"]}, "signs that are not looked at"),
        ({"a": ["..."]}, "no word"),
        ({"a": ["*"]}, "no word"),
        ({"a": ["(a+)+$"]}, "signs"),
        ({"a:b": ["x"]}, "no name of a category"),
        ({"a": ["x" * 101]}, "at most 100"),
        ({"a": ["x " * 21]}, "1 to 20 words"),
        ({"a": []}, "has no words"),
        ({}, "has no words"),
    ],
)
def test_what_cannot_be_looked_for_ends_the_start(lists: dict[str, list[str]], fault: str) -> None:
    settings = ModeratorSettings(kind="words", words={name: tuple(words) for name, words in lists.items()})
    with pytest.raises(SettingsError, match=fault):
        make_words(settings)


def test_a_file_holds_more_of_them(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("# mine\nfirst\n\n[theft]\npick pocket\nsteal*\n", encoding="utf-8")
    made = make_words(ModeratorSettings(kind="words", name="mine", words={"theft": ("rob",)}, file=str(file)))
    assert made.name == "mine"
    assert [made.found(words_of(text)) for text in ("first", "Pick pocket", "stealing", "rob", "list")] == [
        ("words",), ("theft",), ("theft",), ("theft",), (),
    ]  # fmt: skip


async def test_each_text_is_noted_once_however_it_is_read() -> None:
    noted: list[Judged] = []
    words = Words({"a": ["kill them"]}, "mine", note=noted.append)
    await words.look(["all", "well"], [])
    await words.look(["x " * LARGE, "kill them"], [])
    for pieces in (["all ", "is ", "well"], ["ki", "ll the", "m ", "all"], ["kill the"], ["kill them"]):
        reading = words.follow()
        for piece in pieces:
            if reading.push(piece).flagged:
                break
        else:
            await reading.finish()
    left = words.follow()
    left.push("of a text that nobody reads to its end nothing is said")
    assert words.passes("well")
    assert not words.passes("Kill them")
    passed, flagged = Judged("mine", "passed"), Judged("mine", "flagged")
    assert noted == [passed, flagged, passed, flagged, passed, flagged, passed, flagged]


def test_a_file_that_cannot_be_used_is_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("prüde".encode("latin-1"))
    for name, fault in (
        ("none", "is not there"), (str(tmp_path), "cannot be read: Is a directory"), ("latin.txt", "read as UTF-8"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=fault) as refused:
            make_words(ModeratorSettings(kind="words", file=name))
        assert str(tmp_path / name) in str(refused.value)


def test_another_list_has_another_fingerprint() -> None:
    assert Words({"a": ["x", "y"]}).fingerprint == Words({"a": ["y", "x"]}).fingerprint
    prints = [Words({"a": ["x"]}), Words({"b": ["x"]}), Words({"a": ["x*"]}), Words({"a": ["x"]}, "other")]
    assert len({each.fingerprint for each in prints}) == 4


@pytest.mark.parametrize(
    "text", ["kill " * 200_000, "é" * 1_000_000, "\u0301" * 1_000_000, "杀" * 200_000, "bom" * 333_333]
)
def test_a_megabyte_takes_no_more_than_its_length(text: str) -> None:
    """Anything that goes back over what it has read would take hours."""
    began = time.monotonic()
    WORDS.found(words_of(text))
    assert time.monotonic() - began < 20


def read(words: Words, pieces: list[str]) -> tuple[bool, str]:
    """Whether a text in the making is objected to, and what could be given on until then."""

    async def follow() -> tuple[bool, str]:
        reading, text = words.follow(), ""
        for piece in pieces:
            text += piece
            if reading.push(piece).flagged:
                return True, text[: reading.safe]
        flagged = (await reading.finish()).flagged
        return flagged, "" if flagged else text[: reading.safe]

    return asyncio.run(follow())


ALPHABET = ["kill", "them", "all", "murder", "er", "bo", "mb", "ing", " ", "\n", ".", "_", "\u200b", "\u0338", "杀",
            "人", "ｶ", "ﾞ", "\u3099", "カ", "é", "e", "\u0301", "don", "’", "'", "t", "ำ", "ท", "=", "K"]  # fmt: skip
texts = st.lists(st.sampled_from(ALPHABET), max_size=30).map("".join)


@given(text=texts, cuts=st.lists(st.integers(0, 90), max_size=10))
@example(text="we kill them all", cuts=[4, 5, 9, 14])
@example(text="カ\u3099杀人", cuts=[1, 3])
@example(text="ทำ杀人", cuts=[1])
def test_however_it_comes_the_same_is_found_and_nothing_of_it_is_given_on(text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    flagged, given_on = read(WORDS, pieces)
    assert flagged == (not WORDS.passes(text))
    if flagged:
        assert WORDS.passes(given_on)
        assert text.startswith(given_on)


@pytest.mark.parametrize(
    ("pieces", "safe"),
    [
        (["Hello"], 0),
        (["Hello "], 6),
        (["Hello ", "my dear "], 14),
        (["one two kill "], 8),
        (["one two kill them "], 8),
        (["one two kill them ", "a"], 8),
        (["one two kill them ", "a", "nd "], 22),
        (["kill kill "], 5),
        (["x" * 1000], 0),
        (["x" * 1024], 0),
        (["x" * 3100], 3072),
    ],
)
def test_what_is_held_back_is_what_could_still_become_a_phrase(pieces: list[str], safe: int) -> None:
    reading = WORDS.follow()
    for piece in pieces:
        assert not reading.push(piece).flagged
    assert reading.safe == safe


def test_single_words_hold_back_a_word_only() -> None:
    reading = Words({"a": ["apple"]}).follow()
    reading.push("this is an app")
    assert reading.safe == len("this is an ")
    assert reading.push("le ").flagged
