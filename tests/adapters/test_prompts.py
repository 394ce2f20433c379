"""Prompts and presets: versions that mean something, and answers taken out of what is said around them."""

import hashlib

import pytest

from qwen3vl_compat.adapters import prompts
from qwen3vl_compat.adapters.client import Unreadable
from qwen3vl_compat.adapters.prompts import (
    Preset,
    PromptTemplate,
    json_only,
    role_chain,
    step_by_step,
    unfenced,
    unfenced_markdown,
    wrap,
)

DIGESTS = {
    "read_text.plain@1": "d233c642a829",
    "read_text.markdown@1": "8baf25f782d4",
    "read_text.html@1": "6ec16d7f15fb",
    "describe@1": "e062db07943a",
    "describe.question@1": "bf085a6e12c9",
    "locate.boxes@1": "21317666688d",
    "locate.points@1": "e5254c2a7c39",
    "find_in_video@1": "a2a520407247",
    "extract@1": "5f020f13b817",
    "to_html@1": "4687cab52983",
    "next_action.computer_use@1": "bf3aaaca3d9e",
    "next_action.named@1": "42dff81adce3",
}
"""A text that changes takes a new version, and a new line here."""


def test_a_version_stands_for_one_text() -> None:
    known = [each for each in vars(prompts).values() if isinstance(each, PromptTemplate)]
    assert {str(each): hashlib.sha256(each.text.encode()).hexdigest()[:12] for each in known} == DIGESTS
    assert len({str(each) for each in known}) == len(known)


def test_what_fills_a_gap_stays_as_it_is() -> None:
    assert PromptTemplate("p", 1, "a {what}").filled(what="{what} {0} }}") == "a {what} {0} }}"


FENCES = "Here:\n```css\nbody {}\n```\nand\n```html\n<p>\n``\n```\n```html\n<b>\n```\nDone."


@pytest.mark.parametrize(
    ("text", "language", "inside"),
    [
        ("<p>", "html", "<p>"),
        ("```html\n<p>\n```", "html", "<p>"),
        ("```HTML\n<p>\n```", "html", "<p>"),
        ("```\n<p>\n```", "html", "<p>"),
        ("```html\n<p>cut", "html", "<p>cut"),
        (FENCES, "html", "<b>"),
        (FENCES, "css", "body {}"),
        ("```js\n1\n```", "html", "```js\n1\n```"),
        ("a ``` b", "html", "a ``` b"),
    ],
)
def test_fences(text: str, language: str, inside: str) -> None:
    assert unfenced(text, language) == inside


CODE = "# T\n\n```\na\n```\n\n```python\nb\n```\nend"


@pytest.mark.parametrize(
    ("text", "document"),
    [
        (CODE, CODE),
        (f"```markdown\n{CODE}\n```", CODE),
        (f"Here it is:\n```md\n{CODE}\n```\nDone.", CODE),
        (f"```markdown\n{CODE}", CODE),
        ("```markdown\n# T", "# T"),
        ("```\n# T\n```", "# T"),
        ("```\na\n```\nand\n```\nb\n```", "```\na\n```\nand\n```\nb\n```"),
        ("```python\nb\n```", "```python\nb\n```"),
        ("", ""),
    ],
)
def test_a_markdown_document_keeps_its_own_fences(text: str, document: str) -> None:
    assert unfenced_markdown(text) == document


ROLES = role_chain("inspector", "repair engineer")


@pytest.mark.parametrize(
    ("preset", "text", "wanted"),
    [
        (json_only, '{"a": 1}', '{"a": 1}'),
        (json_only, 'Here:\n```json\n{"a": 1}\n```', '{"a": 1}'),
        (json_only, "Here it is.", None),
        (json_only, "", None),
        (json_only, "[" * 5000, None),
        (step_by_step, "First ...\nAnswer: 42", "42"),
        (step_by_step, "Answer: 1?\nNo.\n**Answer:** 42 apples\nin all", "42 apples\nin all"),
        (step_by_step, "The answer: 42", None),
        (ROLES, "## inspector\nBent.\n## Repair engineer\nReplace it.", "Replace it."),
        (ROLES, "## inspector\nBent.", None),
        (ROLES, "**## Repair engineer:** Replace it.", "Replace it."),
        (role_chain("repair engineer", "repair"), "## repair engineer\nBent.", None),
        (wrap("sql"), "So: <sql>\nselect 1\n</sql>", "select 1"),
        (wrap("a"), "<a>1</a> or rather <a>2</a>", "2"),
        (wrap("a"), "<a>never mind <a>1</a>", "1"),
        (wrap("a"), "<a>", None),
        (wrap("a"), "<a></a>", ""),
    ],
)
def test_what_was_wanted_is_taken_out(preset: Preset, text: str, wanted: str | None) -> None:
    assert preset.asked("What?").startswith("What?\n\n")
    if wanted is None:
        with pytest.raises(Unreadable, match="does not keep to the form"):
            preset.unwrapped(text)
    else:
        assert preset.unwrapped(text) == wanted


def test_what_no_preset_can_be() -> None:
    with pytest.raises(ValueError, match=r"^tag: "):
        wrap("a b")
    with pytest.raises(ValueError, match=r"^roles: "):
        role_chain()
