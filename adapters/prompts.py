"""What the abilities ask the model, in the words Qwen3-VL was taught with; and presets for prompts of one's own.

Each prompt has a name and a version, which a result bears: a changed text is a new version.
"""

import re
from collections.abc import Callable

import msgspec
from msgspec import Struct

from qwen3vl_compat.adapters.calling.failures import Unreadable


class PromptTemplate(Struct, frozen=True):
    """A prompt with gaps: `{what}` in its text is filled in."""

    name: str
    version: int
    text: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    def filled(self, **gaps: str) -> str:
        """The words to send."""
        return self.text.format(**gaps)


READ_PLAIN = PromptTemplate(
    "read_text.plain",
    1,
    "Please output only the text content from the image without any additional descriptions or formatting.",
)
READ_MARKDOWN = PromptTemplate("read_text.markdown", 1, "qwenvl markdown")
READ_HTML = PromptTemplate("read_text.html", 1, "qwenvl html")
DESCRIBE = PromptTemplate("describe", 1, "Describe this image.")
ASK = PromptTemplate("describe.question", 1, "{question}")
LOCATE_BOXES = PromptTemplate(
    "locate.boxes",
    1,
    "Locate every instance that belongs to the following categories: {what}. Report bbox coordinates in JSON format.",
)
LOCATE_POINTS = PromptTemplate(
    "locate.points",
    1,
    "Locate every instance that belongs to the following categories with points: {what}. Report point coordinates in "
    'JSON format like this: [{{"point_2d": [x, y], "label": "category"}}]',
)
FIND_IN_VIDEO = PromptTemplate(
    "find_in_video",
    1,
    'Localize every moment of the video in which this happens: "{what}". Provide the start and end of each in JSON '
    'format, times as mm:ss.ff, like this: [{{"start": "00:01.50", "end": "00:03.00"}}]. If it does not happen, the '
    "list is empty.",
)
EXTRACT = PromptTemplate(
    "extract",
    1,
    "Extract the information from the image in JSON format. It has to fit this JSON Schema: {schema}{wishes}",
)
TO_HTML = PromptTemplate(
    "to_html", 1, "Analyze this {kind} and convert it to clean, functional and modern HTML code.{wishes}"
)
COMPUTER_USE = PromptTemplate(
    "next_action.computer_use", 1, "The user query: {goal}\nWhat has been done so far: {done}"
)
NAMED_ACTION = PromptTemplate(
    "next_action.named",
    1,
    "The user query: {goal}\nWhat has been done so far: {done}\nAnswer with the next action only, one of: {forms}",
)

_FENCE = re.compile(r"^```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:^```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def unfenced(text: str, language: str) -> str:
    """What stands in the last Markdown fence of a language, else in the last of none, else the whole text."""
    fences = [(found[1].lower(), found[2]) for found in _FENCE.finditer(text)]
    for wanted in (language, ""):
        if inside := [code for named, code in fences if named == wanted]:
            return inside[-1].strip()
    return text.strip()


_WRAP = re.compile(r"^```(?:markdown|md)[ \t]*\n(.*)\Z", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_BARE = re.compile(r"^```[ \t]*$", re.MULTILINE)


def unfenced_markdown(text: str) -> str:
    """A Markdown document without the fence around all of it, if there is one: those within are the document's own."""
    text = text.strip()
    if found := _WRAP.search(text):
        inside, within = found[1], found[1].count("\n```") + found[1].startswith("```")
        ends = list(_BARE.finditer(inside))
        # Fences within come in pairs, so an odd one closes that around all; a document that is cut off lacks it.
        return (inside[: ends[-1].start()] if within % 2 and ends else inside).strip()
    whole = re.fullmatch(r"```[ \t]*\n((?:(?!^```).)*)^```", text, re.DOTALL | re.MULTILINE)
    return whole[1].strip() if whole else text


class Preset(Struct, frozen=True):
    """A way to answer: what is said behind a prompt, and how what was wanted is taken out of the answer."""

    instruction: str
    take: Callable[[str], str | None]

    def asked(self, prompt: str) -> str:
        """The prompt, with the instruction."""
        return f"{prompt}\n\n{self.instruction}"

    def unwrapped(self, text: str) -> str:
        """What was wanted, out of the answer's text; raises Unreadable where it is not there."""
        if (found := self.take(text)) is None:
            raise Unreadable(f"The answer does not keep to the form it was asked for: {self.instruction}")
        return found.strip()


def _json(text: str) -> str | None:
    inside = unfenced(text, "json")
    try:
        msgspec.json.decode(inside)
    except (msgspec.DecodeError, RecursionError):
        return None
    return inside


def _behind(line: str) -> Callable[[str], str | None]:
    """What stands behind the last place where a line begins with this; emphasis around it is passed over.

    A line that goes on in words before a colon begins with something longer.
    """
    longer = "" if line.endswith(":") else r"(?![ \t]*\w)"
    pattern = re.compile(rf"^[ \t*]*{re.escape(line)}{longer}[ \t*:]*", re.MULTILINE | re.IGNORECASE)

    def take(text: str) -> str | None:
        found = list(pattern.finditer(text))
        return text[found[-1].end() :] if found else None

    return take


json_only = Preset("Answer with JSON only: no explanation before or after it.", _json)
"""The answer as JSON text. Where its schema is known, `schema=` of the client holds the model to it instead."""

step_by_step = Preset(
    "Think step by step. Then give the final answer alone, behind the line `Answer:`.", _behind("Answer:")
)
"""Reasoning in the open, of which only the answer is taken."""


def role_chain(*roles: str) -> Preset:
    """Have each role go on from what the one before said; what the last one says is taken."""
    if not roles:
        raise ValueError("roles: at least one is needed")
    listed = ", then ".join(roles)
    return Preset(
        f"Take these roles one after another, each going on from what the one before said: {listed}. "
        "Begin the part of each with a line of its own: `## ` and the role.",
        _behind(f"## {roles[-1]}"),
    )


def wrap(tag: str) -> Preset:
    """Have the answer put between `<tag>` and `</tag>`, among whatever else is said."""
    if not re.fullmatch(r"[A-Za-z][\w-]*", tag):
        raise ValueError("tag: must be letters, digits, - and _")
    pattern = re.compile(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", re.DOTALL)

    def take(text: str) -> str | None:
        found = pattern.findall(text)
        return found[-1] if found else None

    return Preset(f"Put the final answer between <{tag}> and </{tag}>.", take)
