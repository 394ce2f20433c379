"""How an answer ends: repetition, nothing allowed, grammars whatever else was asked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.local.answer import Answer, End, repeats
from qwen3vl_compat.engines.local.dialect import Dialect, Tags
from qwen3vl_compat.engines.local.grammar import answer_grammar
from qwen3vl_compat.engines.local.guide import Rules
from qwen3vl_compat.engines.local.matching import Matching
from qwen3vl_compat.engines.local.ready import Ready
from qwen3vl_compat.engines.local.sampling import Chooser, Drawn, Seen
from qwen3vl_compat.events import Completion
from qwen3vl_compat.messages import OutputFormat, Request, Sampling
from qwen3vl_compat.tokens import Vocabulary
from tests.engines.test_worker import ask, outcome, started

VOCABULARY = Vocabulary.load(MODEL)
EOS = VOCABULARY.added["<|im_end|>"]
MATCHING = Matching(VOCABULARY, [EOS])
FORM = OutputFormat(kind="json_object")
FAREWELL = (*VOCABULARY.encode("enough\n"), VOCABULARY.added["</think>"])


def bound_to(form: OutputFormat, reserve: int | None = 4) -> Ready:
    grammar = answer_grammar(
        Request(id="r", created=0, model="m", messages=(), format=form), Tags.of(VOCABULARY)
    )  # fmt: skip
    assert grammar is not None
    return Ready(MATCHING, grammar.text, reserve)


def answer(*, thinking: bool = False, **rules: Any) -> Answer:
    given = {"eos": frozenset({EOS}), "ends": frozenset({EOS}), "limit": 100,
             "farewell": FAREWELL, "gap": tuple(VOCABULARY.encode("\n\n"))} | rules  # fmt: skip
    dialect = Dialect(VOCABULARY, 0, thinking=thinking)
    return Answer(Chooser(), dialect, Rules(**given), VOCABULARY, seen=Seen(()))


def say(each: Answer, tokens: list[int]) -> End | None:
    """Take these tokens as far as the answer goes."""
    end = None
    for made, token in enumerate(tokens, 1):
        row = each.row(0, made - 1)
        assert row.forced in (None, token)
        end = each.take(Drawn(token), made)[1]
        if end is not None:
            break
    return end


def test_a_row_with_no_allowed_token_finishes() -> None:
    assert answer().take(Drawn(None), 0) == ([], End("length", "no_token"))


def test_a_complete_grammar_ends_whatever_was_asked() -> None:
    choice = bound_to(OutputFormat(kind="choice", value='["ab", "abc"]'))
    each = answer(answer=choice, min_tokens=50, ends=frozenset())  # ignore_eos
    assert say(each, VOCABULARY.encode("ab")) is None
    assert each.take(Drawn(EOS), 9)[1] == End("stop")
    assert say(answer(answer=choice, min_tokens=50), VOCABULARY.encode("abc")) == End("stop")


def test_the_end_is_banned_until_min_tokens_and_while_a_grammar_waits() -> None:
    free = answer(min_tokens=2)
    assert free.row(0, 1).banned == (EOS,)
    assert free.row(0, 2).banned == ()
    waiting = answer(answer=bound_to(OutputFormat(kind="json_object")), thinking=True, ends=frozenset())
    assert EOS in waiting.row(0, 0).banned
    assert waiting.row(0, 0).allowed is None


def test_a_thought_is_closed_at_its_budget_and_the_grammar_follows() -> None:
    gap = VOCABULARY.encode("\n\n")
    each = answer(answer=bound_to(OutputFormat(kind="choice", value='["ab"]')), thinking=True, budget=3)
    tokens = [*VOCABULARY.encode("xyz")[:3], *FAREWELL, *gap]
    forced = []
    for made, token in enumerate(tokens):
        forced.append(each.row(0, made).forced)
        each.take(Drawn(token), made + 1)
    assert forced == [None] * 3 + [*FAREWELL, *gap]
    row = each.row(0, len(tokens))
    assert (row.forced, row.allowed is None) == (None, False)
    assert each.dialect.thought == 3 + len(FAREWELL)


@pytest.mark.parametrize("thinking", [False, True])
def test_where_the_way_to_the_end_is_not_known_only_a_quarter_is_kept_for_it(thinking: bool) -> None:
    unknown = bound_to(OutputFormat(kind="json_object"), reserve=None)
    each = answer(answer=unknown, thinking=thinking, limit=400)
    if thinking:
        behind = len(FAREWELL) + len(VOCABULARY.encode("\n\n"))
        assert [each.row(0, 300 - behind - early).forced for early in (1, 0)] == [None, FAREWELL[0]]
    else:
        say(each, VOCABULARY.encode("{"))
        before, after = (each.row(0, made).allowed for made in (299, 300))
        assert before is not None
        assert after is not None
        assert after.bits().tolist() == MATCHING.closing(before.bits()).tolist()
        assert after.bits().tolist() != before.bits().tolist()


def test_stop_tokens_are_looked_for_in_visible_text_only() -> None:
    stop = VOCABULARY.encode("x")[0]
    x, tags = frozenset({stop}), VOCABULARY.added
    assert say(answer(stops=x), [stop]) == End("stop")
    each = answer(stops=x, thinking=True)
    assert say(each, [stop, tags["</think>"], *VOCABULARY.encode("a")]) is None
    assert say(each, [stop]) == End("stop")
    bound = answer(stops=x, thinking=True, answer=bound_to(OutputFormat(kind="regex", value="[wx]{3}!")))
    assert stop not in bound.row(0, 0).banned
    assert say(bound, [stop]) is None
    gap = answer(stops=frozenset(VOCABULARY.encode("\n\n")), thinking=True, answer=bound_to(FORM))
    assert say(gap, [tags["</think>"], *VOCABULARY.encode("\n\n")]) is None
    calling = answer(stops=x)
    calling.dialect._calls = "c"
    assert say(calling, [tags["<tool_call>"], stop, tags["</tool_call>"]]) is None
    assert calling.row(0, 9).banned == ()


def test_stop_tokens_are_held_back_until_min_tokens() -> None:
    stop = VOCABULARY.encode("x")[0]
    x = frozenset({stop})
    free = answer(stops=x, min_tokens=2)
    assert sorted(free.row(0, 1).banned) == sorted({EOS, stop})
    assert free.row(0, 2).banned == ()
    some = answer(stops=x, min_tokens=2, answer=bound_to(OutputFormat(kind="regex", value="[wx]{9}")))
    permitted = [(row := some.row(0, made)).allowed is not None and row.allowed.permits(stop) for made in (1, 2)]
    assert permitted == [False, True]
    only = answer(stops=x, min_tokens=8, answer=bound_to(OutputFormat(kind="regex", value="x{30}")))
    assert say(only, [stop] * 8) is None
    assert only.take(Drawn(stop), 9)[1] == End("stop")


def test_the_budget_holds_whenever_a_thought_is_opened() -> None:
    each, opened = answer(budget=3), VOCABULARY.added["<think>"]
    assert say(each, [opened, *VOCABULARY.encode("xy")[:2], *FAREWELL, opened]) is None
    assert each.row(0, 9).forced == FAREWELL[0]
    assert say(each, [*FAREWELL, *VOCABULARY.encode("z"), opened]) is None
    assert each.row(0, 9).forced == FAREWELL[0]


def test_letters_that_spell_the_closing_tag_do_not_start_the_grammar() -> None:
    each = answer(answer=bound_to(OutputFormat(kind="choice", value='["ab"]')), thinking=True)
    say(each, VOCABULARY.encode("</think>"))
    assert each.row(0, 9).allowed is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=30))
def test_repetition_is_seen_as_it_is_defined(stretch: list[int], before: list[int]) -> None:
    length = 24
    assert repeats(before + (stretch * 24)[:length], length)
    broken = before + (stretch * 24)[: length - 1] + [99]
    assert not repeats(broken, length)
    assert not repeats(stretch, length)


@pytest.mark.parametrize(("rambling", "expected"), [(0, ("length", "", 100)), (32, ("length", "repetition", 32))])
async def test_runaway_repetition_is_cut_where_that_is_set(rambling: int, expected: tuple[str, str, int]) -> None:
    engine = await started(rambling=rambling)
    always = Sampling(max_tokens=100, logit_bias=((VOCABULARY.encode("I")[0], 100.0),))
    request = ask(engine)
    completion = await outcome(engine, Request(**{name: getattr(request, name) for name in request.__struct_fields__}
                                               | {"sampling": always}))  # fmt: skip
    assert isinstance(completion, Completion)
    (choice,) = completion.choices
    assert (choice.reason, choice.details, completion.usage.completion) == expected
    await engine.close()
