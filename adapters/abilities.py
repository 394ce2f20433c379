"""What Qwen3-VL can find out from a picture or video, each ability a function that gives a task for a client:

    reading = client.run(read_text("page.png", "markdown"))
    located = await async_client.run(locate("street.jpg", ["car", "person"]))

What a task comes to is typed, and says by which prompt it was made. Where an answer has a form the model is held to it;
one that is cut off, or comes in another, raises Unreadable.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, overload

from msgspec import Struct

from qwen3vl_compat.adapters import actions, prompts
from qwen3vl_compat.adapters.actions import ComputerAction
from qwen3vl_compat.adapters.calling.answers import Answer
from qwen3vl_compat.adapters.calling.caller import Caller, Task
from qwen3vl_compat.adapters.calling.failures import InvalidInput, Unreadable
from qwen3vl_compat.adapters.calling.files import RemoteFile
from qwen3vl_compat.adapters.calling.options import Common, Options, Question, schema_text, tool
from qwen3vl_compat.adapters.calling.pictures import size_of
from qwen3vl_compat.adapters.calling.prompt import Attachment, located
from qwen3vl_compat.adapters.calling.steps import Steps, T, work
from qwen3vl_compat.adapters.grounding import GRID, Corners, Plane, Size, Thousandth, blocks_of
from qwen3vl_compat.adapters.prompts import Preset, PromptTemplate
from qwen3vl_compat.adapters.results import (
    Decision,
    Description,
    Extracted,
    Located,
    Moments,
    Page,
    Reading,
    Span,
)
from qwen3vl_compat.adapters.times import seconds_in
from qwen3vl_compat.messages import Link, Sampling, Upload

Medium = str | Path | bytes | RemoteFile | Attachment
"""A path or bytes, an http(s) URL that the server fetches, an uploaded file or its id; or one of them, more closely."""
Markup = Literal["plain", "markdown", "html"]
Shape = Literal["boxes", "points"]
Drawn = Literal["screenshot", "sketch"]
Vocabulary = Literal["computer_use", "named"]
_EXACT: Options = {"sampling": Sampling(temperature=0)}
"""What can be right or wrong is not left to chance."""


_READ: Mapping[Markup, PromptTemplate] = {
    "plain": prompts.READ_PLAIN,
    "markdown": prompts.READ_MARKDOWN,
    "html": prompts.READ_HTML,
}


def read_text(picture: Medium, markup: Markup = "plain") -> Task[Reading]:
    """Read all text in a picture or PDF: as it is, or with its structure as Markdown or HTML.

    HTML also says where each part stands; of a PDF, or of what lies at the server, in thousandths of its page.
    """
    _check_choice("markup", markup, Markup)
    used = _READ[markup]

    def task(caller: Caller, common: Common) -> Steps[Reading]:
        answer = yield from _ask(caller, common, picture, used.filled(), _EXACT)
        if markup == "plain":
            return Reading(prompt=str(used), answer=answer, text=answer.text)
        if markup == "markdown":
            return Reading(prompt=str(used), answer=answer, text=prompts.unfenced_markdown(answer.text))
        text = prompts.unfenced(answer.text, markup)
        plane = yield from _page(picture)
        return Reading(prompt=str(used), answer=answer, text=text, blocks=blocks_of(text, plane), unit=plane.unit)

    return task


def describe(picture: Medium, question: str = "", *, preset: Preset | None = None) -> Task[Description]:
    """Describe a picture, video or PDF, or answer a question about it; a preset says in which way."""
    used = prompts.ASK if question else prompts.DESCRIBE

    def task(caller: Caller, common: Common) -> Steps[Description]:
        words = used.filled(question=question)
        answer = yield from _ask(caller, common, picture, preset.asked(words) if preset else words, {})
        text = preset.unwrapped(answer.text) if preset else answer.text
        return Description(prompt=str(used), answer=answer, text=text)

    return task


class _Boxed(Struct, frozen=True):
    bbox_2d: Corners
    label: str


class _Pointed(Struct, frozen=True):
    point_2d: tuple[Thousandth, Thousandth]
    label: str


def locate(
    picture: Medium,
    what: str | Sequence[str],
    shape: Shape = "boxes",
    *,
    size: Size | None = None,
) -> Task[Located]:
    """Find every instance of a thing, or of several kinds of things, each then labelled as one of them.

    `size` is the true size of a picture that lies at the server, which this side cannot look at.
    """
    _check_choice("shape", shape, Shape)
    used = prompts.LOCATE_BOXES if shape == "boxes" else prompts.LOCATE_POINTS
    kinds = [what] if isinstance(what, str) else list(dict.fromkeys(what))
    if not kinds:
        raise InvalidInput("what: nothing is named", param="what")
    label = {"type": "string", "enum": kinds} if len(kinds) > 1 else {"type": "string"}
    name, places = ("bbox_2d", 4) if shape == "boxes" else ("point_2d", 2)
    schema = _list_of({name: _thousandths(places), "label": label})

    def task(caller: Caller, common: Common) -> Steps[Located]:
        plane = yield from _plane(picture, size)
        words = used.filled(what=", ".join(json.dumps(kind, ensure_ascii=False) for kind in kinds))
        answer = yield from _ask(caller, common, picture, words, {**_EXACT, "schema": schema})
        if shape == "boxes":
            found = answer.json(list[_Boxed])
            boxes = tuple(plane.box(each.bbox_2d, each.label) for each in found)
            return Located(prompt=str(used), answer=answer, boxes=boxes, size=plane.size, unit=plane.unit)
        pointed = answer.json(list[_Pointed])
        points = tuple(plane.point(each.point_2d, each.label) for each in pointed)
        return Located(prompt=str(used), answer=answer, points=points, size=plane.size, unit=plane.unit)

    return task


class _Timed(Struct, frozen=True):
    start: str
    end: str


_TIME = {"type": "string", "pattern": r"^[0-9]{2,3}:[0-5][0-9]\.[0-9]{2}$"}


def find_in_video(video: Medium, what: str) -> Task[Moments]:
    """Find when something happens in a video; where and how closely to look, an Attachment says."""
    used = prompts.FIND_IN_VIDEO

    def task(caller: Caller, common: Common) -> Steps[Moments]:
        schema = _list_of({"start": _TIME, "end": _TIME})
        answer = yield from _ask(caller, common, video, used.filled(what=what), {**_EXACT, "schema": schema})
        told = answer.json(list[_Timed])
        spans = tuple(_span(each, answer) for each in told)
        return Moments(prompt=str(used), answer=answer, spans=spans)

    return task


@overload
def extract(picture: Medium, schema: type[T], wishes: str = "") -> Task[Extracted[T]]: ...
@overload
def extract(picture: Medium, schema: Mapping[str, Any], wishes: str = "") -> Task[Extracted[Any]]: ...
def extract(picture: Medium, schema: Any, wishes: str = "") -> Task[Extracted[Any]]:
    """Bring what a picture or PDF says into a form: a JSON Schema, or a dataclass, Struct or pydantic model.

    `wishes` says what else is to be kept to, in words.
    """
    used = prompts.EXTRACT

    def task(caller: Caller, common: Common) -> Steps[Extracted[Any]]:
        words = used.filled(schema=schema_text(schema), wishes=f"\n{wishes}" if wishes else "")
        answer = yield from _ask(caller, common, picture, words, {**_EXACT, "schema": schema})
        return Extracted(prompt=str(used), answer=answer, value=_typed(answer, schema))

    return task


def to_html(picture: Medium, kind: Drawn = "screenshot", wishes: str = "") -> Task[Page]:
    """Write the HTML of a screenshot or sketch."""
    _check_choice("kind", kind, Drawn)
    used = prompts.TO_HTML

    def task(caller: Caller, common: Common) -> Steps[Page]:
        words = used.filled(kind=kind, wishes=f"\n{wishes}" if wishes else "")
        answer = yield from _ask(caller, common, picture, words, {})
        html = prompts.unfenced(answer.text, "html")
        if not html.startswith("<"):
            raise Unreadable("The answer holds no HTML.", request_id=answer.request_id)
        return Page(prompt=str(used), answer=answer, html=html)

    return task


def next_action(
    screenshot: Medium,
    goal: str,
    done: Sequence[str] = (),
    vocabulary: Vocabulary = "computer_use",
    *,
    size: Size | None = None,
) -> Task[Decision]:
    """Decide what to do next on a screen, for a goal, after what has been `done` already.

    By Qwen's own function `computer_use`, or as a named action, `click_button("submit")`, for those who find their way
    by names. `size` is that of a screenshot which lies at the server.
    """
    _check_choice("vocabulary", vocabulary, Vocabulary)
    used = prompts.COMPUTER_USE if vocabulary == "computer_use" else prompts.NAMED_ACTION
    gaps = {"goal": goal, "done": "; ".join(done) or "nothing", "forms": ", ".join(actions.FORMS)}
    function = tool(actions.TOOL, actions.DESCRIPTION, actions.PARAMETERS)

    def task(caller: Caller, common: Common) -> Steps[Decision]:
        plane = yield from _plane(screenshot, size)
        form: Options = {**_EXACT, "regex": actions.REGEX}
        if vocabulary == "computer_use":
            form = {**_EXACT, "tools": [function], "tool_choice": actions.TOOL}
        answer = yield from _ask(caller, common, screenshot, used.filled(**gaps), form)
        action = actions.named_action(answer.text) if vocabulary == "named" else _called(answer, plane)
        return Decision(prompt=str(used), answer=answer, action=action, unit=plane.unit)

    return task


def _check_choice(name: str, value: object, choices: object) -> None:
    """Raise InvalidInput for what is none of a Literal's values."""
    known = get_args(choices)
    if value not in known:
        raise InvalidInput(f"{name}: must be one of {', '.join(known)}, not {value!r}", param=name)


def _ask(caller: Caller, common: Common, medium: Medium, words: str, form: Options) -> Steps[Answer]:
    """The answer about a medium; its length is left to the server."""
    attachment = medium if isinstance(medium, Attachment) else Attachment(medium)
    options: Options = {**common, **form}
    return (yield from caller.answer(Question([attachment, words], None, None, None, options), stream=False))


def _plane(medium: Medium, size: Size | None) -> Steps[Plane]:
    """The pixels of a picture: of the size that is said, else of its own if it lies here."""
    if size is not None:
        if min(size) < 1:
            raise InvalidInput("size: must be a width and a height above 0", param="size")
        return Plane.of(size)
    source = located(medium.source if isinstance(medium, Attachment) else medium)
    if isinstance(source, Link | Upload):
        return Plane()
    return Plane.of((yield from work(partial(size_of, source, "picture"))))


def _page(medium: Medium) -> Steps[Plane]:
    """The same of what may be a PDF, whose pages have no pixels."""
    try:
        return (yield from _plane(medium, None))
    except InvalidInput:
        return Plane()


def _list_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a list of objects with exactly these properties."""
    each = {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "array", "items": each}


def _thousandths(count: int) -> dict[str, Any]:
    each = {"type": "integer", "minimum": 0, "maximum": GRID}
    return {"type": "array", "items": each, "minItems": count, "maxItems": count}


def _called(answer: Answer, plane: Plane) -> ComputerAction:
    if not answer.calls:
        raise Unreadable(f"The model called nothing; it said: {answer.text[:200]}", request_id=answer.request_id)
    return actions.computer_action(answer.calls[0].arguments, plane)


def _span(told: _Timed, answer: Answer) -> Span:
    moments = [seconds_in(each) for each in (told.start, told.end)]
    if [len(each) for each in moments] != [1, 1]:
        raise Unreadable(f"Those are no times: {told.start!r}, {told.end!r}", request_id=answer.request_id)
    return Span(*sorted(each[0] for each in moments))


def _typed(answer: Answer, schema: Mapping[str, Any] | type) -> Any:
    """What the answer says, as the type it was asked for."""
    if not isinstance(schema, type):
        return answer.json()
    validate: Callable[[str], Any] | None = getattr(schema, "model_validate_json", None)
    if validate is None:
        kind: type[Any] = schema
        return answer.json(kind)
    try:
        return validate(answer.text)
    except ValueError as error:
        message = f"The answer does not fit ({error}); it ended with {answer.finish_reason}."
        raise Unreadable(message, request_id=answer.request_id) from error
