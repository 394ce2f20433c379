"""Abilities without a server: what is asked for, and what becomes of answers that are none."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_compat.adapters.abilities import (
    describe,
    extract,
    find_in_video,
    locate,
    next_action,
    read_text,
    to_html,
)
from qwen3vl_compat.adapters.client import Attachment, InvalidInput, Qwen3VLClient, Unreadable
from qwen3vl_compat.adapters.prompts import wrap
from tests.adapters.faces import FACES, Face
from tests.adapters.faulty import Says, faulty, whole
from tests.adapters.test_client import HEAVY, PNG, ROOMS, Sign

FILE = "file-0123456789abcdef01234567"
FILM = b"....ftypisom"
faces = pytest.mark.parametrize("face", FACES.values(), ids=FACES)


def test_importing_them_is_light() -> None:
    probe = "import sys, qwen3vl_compat.adapters.tools, qwen3vl_compat.adapters.abilities; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert "qwen3vl_compat.adapters.tools" in out
    assert [name for name in out if name.partition(".")[0] in (*HEAVY, "langchain_core", "pydantic")] == []
    assert [name for name in out if name.startswith(tuple(f"qwen3vl_compat.{room}" for room in ROOMS))] == []


def called(arguments: str) -> Says:
    """An answer that is a call of computer_use."""
    function = {"name": "computer_use", "arguments": arguments}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    usage = {"prompt_tokens": 2, "completion_tokens": 1}
    return Says(200, json.dumps({"choices": [choice], "usage": usage}).encode(), {"x-request-id": "r2"})


class Pydantic:
    """What pydantic's models have."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object"}

    @classmethod
    def model_validate_json(cls, text: str) -> str:
        if text != "{}":
            raise ValueError("not {}")
        return "validated"


@faces
@pytest.mark.parametrize(
    ("task", "said"),
    [
        (locate(PNG, "car"), whole("Here: [")),
        (locate(PNG, "car"), whole('[{"bbox_2d": [0, 0, 1, 1')),
        (locate(PNG, "car"), whole('{"bbox_2d": [0, 0, 1, 1], "label": "car"}')),
        (locate(PNG, "car"), whole('[{"bbox_2d": [0, 0, 1], "label": "car"}]')),
        (locate(PNG, "car"), whole('[{"bbox_2d": [0, 0, 1, 1920], "label": "car"}]')),
        (locate(PNG, "car"), whole('[{"bbox_2d": [-1, 0, 1, 1], "label": "car"}]')),
        (locate(PNG, "car"), whole('[{"bbox_2d": [0, 0, 1, 1]}]')),
        (locate(PNG, "car", "points"), whole('[{"point_2d": [0, 1001], "label": "car"}]')),
        (find_in_video(FILM, "rain"), whole('[{"start": "soon", "end": "later"}]')),
        (find_in_video(FILM, "rain"), whole('[{"start": "00:01.00 00:02.00", "end": "00:03.00"}]')),
        (find_in_video(FILM, "rain"), whole('[{"start": "00:01.00"}]')),
        (extract(PNG, {"type": "object"}), whole('{"a": ')),
        (extract(PNG, Sign), whole('{"text": 5}')),
        (extract(PNG, Pydantic), whole('{"text": 5}')),
        (to_html(PNG), whole("I cannot see a page.")),
        (to_html(PNG), whole("```css\nbody {}\n```")),
        (describe(PNG, "What?", preset=wrap("a")), whole("No tag.")),
        (next_action(PNG, "go on"), whole("I would click.")),
        (next_action(PNG, "go on"), called('{"action": "type"}')),
        (next_action(PNG, "go on"), called("{")),
        (next_action(PNG, "go on", vocabulary="named"), whole("click_button(submit)")),
    ],
)
def test_an_answer_in_another_form_is_a_typed_error(face: Face, task: Any, said: Says) -> None:
    with faulty(said) as server, face(server.url) as asking, pytest.raises(Unreadable) as caught:
        asking.run(task)
    assert len(str(caught.value)) > 10


@pytest.mark.parametrize(
    ("task", "param"),
    [
        (locate(b"%PDF-1.7", "car"), "picture"),
        (locate(Path("no/such.png"), "car"), "picture"),
        (locate("no/such.png", "car"), "picture"),
        (next_action(b"hello", "go on"), "picture"),
        (locate(PNG, "car", size=(0, 5)), "size"),
        (read_text("no/such.png"), "prompt[0]"),
        (read_text(b""), "prompt[0]"),
        (extract(PNG, object), "schema"),
    ],
)
def test_what_cannot_be_asked_is_named_and_not_sent(task: Any, param: str) -> None:
    with Qwen3VLClient("http://127.0.0.1:1") as asking, pytest.raises(InvalidInput) as caught:
        asking.run(task)
    assert caught.value.param == param
    with pytest.raises(InvalidInput, match=r"^what: "):
        locate(PNG, [])


@pytest.mark.parametrize(
    ("ability", "asked", "told"),
    [
        (read_text, {"markup": "latex"}, "markup: must be one of plain, markdown, html, not 'latex'"),
        (locate, {"what": "car", "shape": "circles"}, "shape: must be one of boxes, points, not 'circles'"),
        (to_html, {"kind": "photo"}, "kind: must be one of screenshot, sketch, not 'photo'"),
        (next_action, {"goal": "go on", "vocabulary": []}, "vocabulary: must be one of computer_use, named, not []"),
    ],
)
def test_a_choice_that_there_is_not_is_told_with_those_there_are(ability: Any, asked: Any, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ability(PNG, **asked)
    assert str(caught.value) == told
    assert caught.value.param == told.partition(":")[0]


def sent(task: Any, said: Says) -> tuple[dict[str, Any], Any]:
    """The body of a task's request, and what it comes to."""
    with faulty(said) as server, Qwen3VLClient(server.url) as asking:
        result = asking.run(task, headers={"x-test": "1"})
        assert server.seen[0].headers["x-test"] == "1"
        return json.loads(server.seen[0].body), result


def test_the_model_is_held_to_the_form() -> None:
    body, located = sent(locate(PNG, ["car", 'a "red" sign', "car"]), whole("[]"))
    each = body["response_format"]["json_schema"]["schema"]["items"]
    assert each["properties"]["label"]["enum"] == ["car", 'a "red" sign']
    assert body["temperature"] == 0
    assert r'categories: "car", "a \"red\" sign". Report' in body["messages"][0]["content"][1]["text"]
    assert (located.boxes, located.size, located.unit, located.prompt) == ((), (32, 32), "pixel", "locate.boxes@1")
    body, decision = sent(next_action(PNG, "go on"), called('{"action": "wait", "time": 1}'))
    assert body["tools"][0]["function"]["name"] == "computer_use"
    assert body["tool_choice"]["allowed_tools"]["mode"] == "required"
    assert decision.prompt == "next_action.computer_use@1"
    body, _ = sent(next_action(PNG, "go on", ["a", "b"], "named"), whole('finish("")'))
    assert 'click_button("name")' in body["messages"][0]["content"][1]["text"]
    assert "done so far: a; b\n" in body["messages"][0]["content"][1]["text"]
    assert body["regex"].startswith("click_button")
    assert "temperature" not in sent(describe(PNG), whole("A car."))[0]


@pytest.mark.parametrize("source", [FILE, "https://example.org/a.jpg"])
def test_what_lies_at_the_server_is_told_in_thousandths_or_by_a_size(source: str) -> None:
    said = whole('[{"bbox_2d": [100, 200, 300, 400], "label": "car"}]')
    located = sent(locate(source, "car"), said)[1]
    assert (located.unit, located.size, located.boxes[0].right) == ("thousandth", (1000, 1000), 300)
    located = sent(locate(Attachment(source), "car", size=(4000, 3000)), said)[1]
    assert (located.unit, located.size, located.boxes[0].right) == ("pixel", (4000, 3000), 1200)


def test_what_is_cut_off_says_so() -> None:
    cut = whole("```html\n<p>Hel").body.replace(b'"stop"', b'"length"')
    page = sent(to_html(PNG), Says(200, cut))[1]
    assert (page.html, page.complete) == ("<p>Hel", False)


def test_a_pydantic_model_is_made_by_itself() -> None:
    assert sent(extract(PNG, Pydantic), whole("{}"))[1].value == "validated"


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        ("00:01.50", "01:03.00", (1.5, 63)),
        ("01:03.00", "00:01.50", (1.5, 63)),
        ("125:00.00", "125:00.25", (7500, 7500.25)),
    ],
)
def test_times(start: str, end: str, span: tuple[float, float]) -> None:
    moments = sent(find_in_video(FILM, "rain"), whole(json.dumps([{"start": start, "end": end}])))[1]
    assert [(each.start, each.end) for each in moments.spans] == [span]
