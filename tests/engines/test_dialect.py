"""Tokens to events: tags by their ids only, whole characters, nothing of a stop string, calls as they come."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.calls import CallReader
from qwen3vl_compat.engines.local.dialect import Dialect
from qwen3vl_compat.events import Delta, Likely, Logprob, ReasoningDelta, TextDelta, ToolCallDelta, joined
from qwen3vl_compat.tokens import Vocabulary

VOCABULARY = Vocabulary.load(MODEL)
ADDED = VOCABULARY.added


def ids(*pieces: str) -> list[int]:
    """Tags become their tokens, all else letters."""
    made: list[int] = []
    for piece in pieces:
        made += [ADDED[piece]] if piece in ADDED else VOCABULARY.encode(piece)
    return made


def played(tokens: list[int], **options: Any) -> list[Delta]:
    """All deltas, neighbours that say the same kind of thing joined."""
    dialect, shown = Dialect(VOCABULARY, 0, **options), list[Delta]()
    for made, token in enumerate(tokens, 1):
        if dialect.stopped:
            break
        shown += dialect.push(token, made)
    shown += dialect.finish(len(tokens))
    one: list[Delta] = []
    for delta in shown:
        both = joined(one[-1], delta) if one else None
        one[-1:] = [both] if both else [*one[-1:], delta]  # type: ignore[list-item]
    return one


def words(delta: Delta) -> str:
    if isinstance(delta, ToolCallDelta):
        return f"{delta.name}({delta.arguments})"
    return f"{type(delta).__name__[0]}:{delta.text}"


def said(tokens: list[int], **options: Any) -> list[str]:
    return list(map(words, played(tokens, **options)))


CALL = '\n{"name": "f", "arguments": {"x": {"y": "}"}}}\n'


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        (ids("Hi there"), {}, ["T:Hi there"]),
        (ids("<think>", "\nwell\n\nso\n", "</think>", "\n\nHi\n"), {}, ["R:well\n\nso", "T:Hi\n"]),
        (ids("<think>", "\nwell\n", "</think>", "\nHi"), {"raw": True}, ["T:<think>\nwell\n</think>\nHi"]),
        (ids("<tool_call>", CALL, "</tool_call>"), {"raw": True}, [f"T:<tool_call>{CALL}</tool_call>"]),
        (ids("well\n", "</think>", "\n\nHi"), {"thinking": True}, ["R:well", "T:Hi"]),
        (ids("well"), {"thinking": True}, ["R:well"]),
        (ids("</think>", "Hi"), {"thinking": True}, ["T:Hi"]),
        (VOCABULARY.encode("a</think>b"), {"thinking": True}, ["R:a</think>b"]),
        (VOCABULARY.encode("a<think>b<tool_call>c"), {"calls": "c"}, ["T:a<think>b<tool_call>c"]),
        (ids("<tool_call>", CALL, "</tool_call>"), {"calls": "c"}, ['f({"x": {"y": "}"}})']),
        (ids("Look:\n", "<tool_call>", CALL, "</tool_call>"), {"calls": "c"}, ["T:Look:\n", 'f({"x": {"y": "}"}})']),
        (
            ids("<tool_call>", CALL, "</tool_call>", "\n", "<tool_call>", CALL, "</tool_call>"),
            {"calls": "c"},
            ['f({"x": {"y": "}"}})'] * 2,
        ),
        (ids("<tool_call>", CALL, "</tool_call>"), {}, [f"T:<tool_call>{CALL}</tool_call>"]),
        (ids("<think>", "<tool_call>", "x", "</think>", "y"), {"calls": "c"}, ["R:<tool_call>x", "T:y"]),
        (ids("x STOP y", "</think>", "a STOP b"), {"thinking": True, "stops": ("STOP",)}, ["R:x STOP y", "T:a "]),
        (
            ids("a ST", "<tool_call>", CALL, "</tool_call>"),
            {"calls": "c", "stops": ("STOP",)},
            ["T:a ST", 'f({"x": {"y": "}"}})'],
        ),
        (ids("a<|im_start|>b"), {}, ["T:a<|im_start|>b"]),
        (ids("a", "<|im_start|>", "b"), {}, ["T:ab"]),
        (ids("<tool_call>", '\n{"name": "f", "arguments": {"x": 1'), {"calls": "c"}, ['f({"x": 1)']),
        (ids("👩‍👩‍👧 שלום"), {}, ["T:👩‍👩‍👧 שלום"]),
        (ids("é")[:1], {}, ["T:\ufffd"]),
    ],
)  # fmt: skip
def test_what_is_shown(tokens: list[int], options: dict[str, Any], expected: list[str]) -> None:
    assert said(tokens, **options) == expected


def test_calls_are_numbered_and_named_once() -> None:
    tokens = ids("<tool_call>", CALL, "</tool_call>", "<tool_call>", CALL, "</tool_call>")
    calls = [delta for delta in played(tokens, calls="c-") if isinstance(delta, ToolCallDelta)]
    assert [(delta.call, delta.id, delta.name) for delta in calls] == [(0, "c-0", "f"), (1, "c-1", "f")]


def test_thoughts_are_counted_with_their_tags() -> None:
    dialect = Dialect(VOCABULARY, 0)
    tokens = ids("<think>", "ab", "</think>", "c")
    for made, token in enumerate(tokens, 1):
        dialect.push(token, made)
    assert dialect.thought == len(tokens) - 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(min_size=1, max_size=9), st.dictionaries(st.text(max_size=5), values, max_size=3), st.integers(1, 7))
def test_a_call_survives_any_cutting(name: str, arguments: dict[str, Any], size: int) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    text, reader = f"\n{text}\n", CallReader()
    read = "".join(reader.push(text[start : start + size]) for start in range(0, len(text), size))
    assert reader.name == name
    assert json.loads(read) == arguments


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
)
def test_every_token_has_its_logprob_once_and_none_of_a_stop(text: str, stops: list[str]) -> None:
    dialect, shown = Dialect(VOCABULARY, 0, stops=tuple(stops)), list[Delta]()
    tokens = VOCABULARY.encode(text)
    for made, token in enumerate(tokens, 1):
        if not dialect.stopped:
            shown += dialect.push(token, made, Logprob(Likely(token, VOCABULARY.bytes_of(token), 0.0)))
    shown += dialect.finish(len(tokens))
    texts = [delta for delta in shown if isinstance(delta, TextDelta)]
    visible = "".join(delta.text for delta in texts)
    assert not any(stop in visible for stop in stops)
    told = b"".join(logprob.chosen.data for delta in texts for logprob in delta.logprobs).decode(errors="replace")
    assert told.startswith(visible)
    assert [logprob.chosen.token for delta in texts for logprob in delta.logprobs] == tokens[
        : sum(len(delta.logprobs) for delta in texts)
    ]
    if not dialect.stopped:
        assert told == visible


def test_deltas_of_one_kind_are_joined() -> None:
    assert joined(ReasoningDelta(0, "a", 1), ReasoningDelta(0, "b", 2)) == ReasoningDelta(0, "ab", 2)
    assert joined(ReasoningDelta(0, "a", 1), TextDelta(0, "b", 2)) is None
