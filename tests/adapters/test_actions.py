"""Actions on a screen, out of what the model calls or says."""

import re
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_compat.adapters import actions
from qwen3vl_compat.adapters.actions import (
    Action,
    Click,
    ClickButton,
    Drag,
    EnterText,
    Finish,
    Key,
    Move,
    Respond,
    Scroll,
    ScrollTo,
    Terminate,
    Type,
    Wait,
    computer_action,
    named_action,
)
from qwen3vl_compat.adapters.client import Unreadable
from qwen3vl_compat.adapters.grounding import Plane, Point

SCREEN = Plane.of((1920, 1080))
MIDDLE = '"coordinate": [500, 500]'
AT = Point(960, 540)


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ('{"action": "key", "keys": ["ctrl", "c"]}', Key(("ctrl", "c"))),
        ('{"action": "type", "text": "a\\n"}', Type("a\n")),
        (f'{{"action": "mouse_move", {MIDDLE}}}', Move(AT)),
        (f'{{"action": "left_click", {MIDDLE}}}', Click(AT)),
        ('{"action": "left_click", "coordinate": [1000, 1000]}', Click(Point(1919, 1079))),
        ('{"action": "left_click"}', Click(None)),
        (f'{{"action": "left_click_drag", {MIDDLE}}}', Drag(AT)),
        (f'{{"action": "right_click", {MIDDLE}}}', Click(AT, "right")),
        (f'{{"action": "middle_click", {MIDDLE}}}', Click(AT, "middle")),
        (f'{{"action": "double_click", {MIDDLE}}}', Click(AT, "left", 2)),
        (f'{{"action": "triple_click", {MIDDLE}}}', Click(AT, "left", 3)),
        ('{"action": "scroll", "pixels": -300}', Scroll(-300)),
        (f'{{"action": "scroll", "pixels": -300, {MIDDLE}}}', Scroll(-300, AT)),
        ('{"action": "hscroll", "pixels": 5}', Scroll(5, None, sideways=True)),
        ('{"action": "wait", "time": 1.5}', Wait(1.5)),
        ('{"action": "answer", "text": "42"}', Respond("42")),
        ('{"action": "terminate", "status": "success"}', Terminate("success")),
    ],
)
def test_calls_of_computer_use(arguments: str, action: Action) -> None:
    assert computer_action(arguments, SCREEN) == action


def test_every_published_action_is_known() -> None:
    assert set(actions.PARAMETERS["properties"]["action"]["enum"]) == {
        "key", "type", "mouse_move", "left_click", "left_click_drag", "right_click", "middle_click", "double_click",
        "triple_click", "scroll", "hscroll", "wait", "terminate", "answer",
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "[]",
        "{}",
        '{"action": "fly"}',
        '{"action": "key"}',
        '{"action": "type"}',
        '{"action": "mouse_move"}',
        '{"action": "scroll"}',
        '{"action": "wait"}',
        '{"action": "wait", "time": -1}',
        '{"action": "terminate"}',
        '{"action": "terminate", "status": "maybe"}',
        '{"action": "left_click", "coordinate": [1]}',
        '{"action": "left_click", "coordinate": [500, 1080]}',
        '{"action": "left_click", "coordinate": [-1, 0]}',
        '{"action": "left_click", "more": ' + "[" * 5000,
    ],
)
def test_what_is_no_action(arguments: str) -> None:
    with pytest.raises(Unreadable):
        computer_action(arguments, SCREEN)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('click_button("submit")', ClickButton("submit")),
        ('scroll_to("settings")', ScrollTo("settings")),
        (' enter_text("name", "A \\"b\\"\\n")\n', EnterText("name", 'A "b"\n')),
        ('finish("")', Finish("")),
    ],
)
def test_named_actions(text: str, action: Action) -> None:
    assert named_action(text) == action
    assert re.fullmatch(actions.REGEX, text.strip())


@pytest.mark.parametrize(
    "text",
    ["", "submit", 'fly("home")', "click_button(submit)", "click_button()", 'click_button("a", "b")',
     'click_button("a"', 'I would click_button("a")', 'enter_text("a")', "click_button(5)"],
)  # fmt: skip
def test_what_is_no_named_action(text: str) -> None:
    with pytest.raises(Unreadable):
        named_action(text)
    assert not re.fullmatch(actions.REGEX, text)


@settings(max_examples=20)
@given(st.from_regex(actions.REGEX, fullmatch=True))
def test_whatever_the_model_is_held_to_can_be_read(text: str) -> None:
    assert named_action(text)


@given(st.text(max_size=50))
def test_whatever_comes_is_an_action_or_unreadable(text: str) -> None:
    with suppress(Unreadable):
        named_action(text)
    with suppress(Unreadable):
        computer_action(text, SCREEN)
