"""What earlier texts leave behind harms no later one; and what fits with Qwen's own vocabulary."""

import json
from typing import Any

import numpy as np
import pytest
from llguidance import LLParserLimits

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.local import matching
from qwen3vl_compat.engines.local.dialect import Tags
from qwen3vl_compat.engines.local.grammar import LONGEST_STRING, answer_grammar
from qwen3vl_compat.engines.local.grammars import COMPILED, Grammars
from qwen3vl_compat.engines.local.matching import Matching
from qwen3vl_compat.engines.local.ready import Course, Ready
from qwen3vl_compat.messages import OutputFormat, Request
from qwen3vl_compat.tokens import Vocabulary
from tests.qwen_vocabulary import qwen_folder

FEW = LLParserLimits(
    initial_lexer_fuel=1_000_000, step_lexer_fuel=100_000, step_max_items=20_000, max_lexer_states=4_000,
    max_grammar_size=200_000, verbose_errors=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def qwen() -> Vocabulary:
    return Vocabulary.load(qwen_folder())


@pytest.fixture(scope="module")
def qwen_matching(qwen: Vocabulary) -> Matching:
    return Matching(qwen, [qwen.added["<|im_end|>"]])


def text_of(form: OutputFormat, vocabulary: Vocabulary) -> str:
    grammar = answer_grammar(Request(id="r", created=0, model="m", messages=(), format=form), Tags.of(vocabulary))
    assert grammar is not None
    return grammar.text


def strings(*names: str, **more: Any) -> OutputFormat:
    schema = {"type": "object", "properties": {name: {"type": "string"} | more for name in names},
              "required": names, "additionalProperties": False}  # fmt: skip
    return OutputFormat(kind="json_schema", value=json.dumps(schema), strict=True, param="response_format")


def goes(course: Course, token: int) -> None:
    """Take a token if it may come, by the mask as a whole."""
    assert course.bits()[token // 32] >> (token % 32) & 1
    course.take(token)


def test_a_string_as_long_as_strings_may_be_fits(qwen: Vocabulary, qwen_matching: Matching) -> None:
    """Of the characters that take most: of three and four bytes, by chance and in tokens of several."""
    ready = Ready(qwen_matching, text_of(strings("a"), qwen), 8)
    rng = np.random.default_rng(0)
    by_chance = "".join(map(chr, rng.integers(0x4E00, 0x9FFF, LONGEST_STRING)))
    pictures = "".join(map(chr, rng.integers(0x1F300, 0x1F6FF, LONGEST_STRING)))
    usual = ("漢字仮名交じり文の長い例です。いろはにほへとちりぬるを" * 400)[:LONGEST_STRING]
    for value in (by_chance, usual, pictures):
        course = Course(Ready(qwen_matching, text_of(strings("a"), qwen), 8))
        both = Course(ready)
        for token in qwen.encode(json.dumps({"a": value}, ensure_ascii=False)):
            goes(course, token)
            goes(both, token)
        assert (course.ended, both.ended) == (True, True)


def test_no_text_ends_because_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lexer with room for hardly two texts is filled many times over by eight that go side by side."""
    monkeypatch.setattr(matching, "LIMITS", FEW)
    vocabulary = Vocabulary.load(MODEL)
    ready = Ready(
        Matching(vocabulary, [vocabulary.added["<|im_end|>"]]),
        text_of(strings("a", pattern="a.{0,30}b"), vocabulary), 8,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice([*"aaacd"], 150)) + "ab" for _ in range(8)]
    firsts = {id(ready.first())}
    courses = [(Course(ready), vocabulary.encode(json.dumps({"a": text}))) for text in texts]
    for place in range(max(len(tokens) for _, tokens in courses)):
        for course, tokens in courses:
            if place < len(tokens):
                goes(course, tokens[place])
        firsts.add(id(ready.first()))
    assert all(course.ended for course, _ in courses)
    assert len(firsts) > 2, "the lexer was never full"


def test_a_course_begun_long_ago_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the very token that is taken finds the lexer full."""
    monkeypatch.setattr(matching, "LIMITS", FEW)
    vocabulary = Vocabulary.load(MODEL)
    form = OutputFormat(kind="regex", value="(x|[abc]*a[abc]{12})!", param="regex")
    ready = Ready(Matching(vocabulary, [vocabulary.added["<|im_end|>"]]), text_of(form, vocabulary), 8)
    old, first = Course(ready), ready.first()
    rng = np.random.default_rng(0)
    while ready.first() is first:
        course = Course(ready)
        for token in vocabulary.encode("".join(rng.choice([*"ab"], 60))):
            goes(course, token)
    for token in vocabulary.encode("".join(rng.choice([*"ab"], 60)) + "a" + "c" * 12 + "!"):
        old.take(token)
        assert not old.failed
    assert old.ended


def test_forty_strings_get_their_letters(qwen: Vocabulary, qwen_matching: Matching) -> None:
    names = [f"{name}_{number}" for number in range(8) for name in ("invoice", "supplier", "customer", "total", "date")]
    shortest = qwen_matching.walk(qwen_matching.compile(text_of(strings(*names), qwen)))
    empty = json.dumps(dict.fromkeys(names, ""))
    assert shortest is not None
    assert shortest <= 2 * len(qwen.encode(empty))


def test_a_text_without_end_has_no_shortest_way() -> None:
    vocabulary = Vocabulary.load(MODEL)
    made = Matching(vocabulary, [vocabulary.added["<|im_end|>"]])
    form = OutputFormat(kind="regex", value="x{8000}", param="regex")
    assert made.walk(made.compile(text_of(form, vocabulary))) is None


async def test_only_some_grammars_stay_compiled() -> None:
    vocabulary = Vocabulary.load(MODEL)
    kept = Grammars(MODEL, vocabulary, [vocabulary.added["<|im_end|>"]])
    forms = [OutputFormat(kind="regex", value=f"a{number}", param="regex") for number in range(COMPILED + 3)]
    grammars = [
        answer_grammar(Request(id="r", created=0, model="m", messages=(), format=form), Tags.of(vocabulary))
        for form in forms
    ]
    try:
        ready = [await kept.prepare(grammar) for grammar in grammars if grammar is not None]
        assert [each.compiled for each in ready] == [False] * 3 + [True] * COMPILED
        assert grammars[0] is not None
        assert await kept.prepare(grammars[0]) is ready[0]
        assert [each.compiled for each in ready[:5]] == [True, False, False, False, True]
    finally:
        await kept.close()
