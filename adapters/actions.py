"""What is to be done on a screen: Qwen's `computer_use` calls, and named actions such as `click_button("submit")`."""

import json
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from qwen3vl_compat.adapters.calling.failures import Unreadable
from qwen3vl_compat.adapters.grounding import Plane, Point, Thousandth

Button = Literal["left", "right", "middle"]


class Key(Struct, frozen=True, tag="key"):
    """Press these keys in order, and release them in reverse."""

    keys: tuple[str, ...]


class Type(Struct, frozen=True, tag="type"):
    """Type a text."""

    text: str


class Move(Struct, frozen=True, tag="move"):
    """Move the mouse."""

    to: Point


class Click(Struct, frozen=True, tag="click"):
    """Click so many times; where the mouse is, if no point is said."""

    at: Point | None
    button: Button = "left"
    times: int = 1


class Drag(Struct, frozen=True, tag="drag"):
    """Drag from where the mouse is, with the left button."""

    to: Point


class Scroll(Struct, frozen=True, tag="scroll"):
    """Scroll, up for positive pixels (left, if `sideways`)."""

    pixels: float
    at: Point | None = None
    sideways: bool = False


class Wait(Struct, frozen=True, tag="wait"):
    """Wait for the screen to change."""

    seconds: float


class Respond(Struct, frozen=True, tag="respond"):
    """Tell the user something: the goal was a question."""

    text: str


class Terminate(Struct, frozen=True, tag="terminate"):
    """Nothing is left to do."""

    status: Literal["success", "failure"]


class ClickButton(Struct, frozen=True, tag="click_button"):
    """Click a button, link or entry by what is written on it."""

    name: str


class ScrollTo(Struct, frozen=True, tag="scroll_to"):
    """Bring a part of the page into view."""

    name: str


class EnterText(Struct, frozen=True, tag="enter_text"):
    """Put a text into a field."""

    field: str
    text: str


class Finish(Struct, frozen=True, tag="finish"):
    """Nothing is left to do; the text says what came of it."""

    text: str


ComputerAction = Key | Type | Move | Click | Drag | Scroll | Wait | Respond | Terminate
NamedAction = ClickButton | ScrollTo | EnterText | Finish
Action = ComputerAction | NamedAction

_CLICKS: dict[str, tuple[Button, int]] = {
    "left_click": ("left", 1),
    "right_click": ("right", 1),
    "middle_click": ("middle", 1),
    "double_click": ("left", 2),
    "triple_click": ("left", 3),
}
_NAMES = ("key", "type", "mouse_move", *_CLICKS, "left_click_drag", "scroll", "hscroll", "wait", "terminate", "answer")
TOOL = "computer_use"
DESCRIPTION = (
    "Use a mouse and keyboard to interact with a computer, and take screenshots.\n"
    "* This is an interface to a desktop GUI.\n"
    "* The screen's resolution is 1000x1000.\n"
    "* Applications may take time to start or react: wait where a screenshot does not show yet what is awaited.\n"
    "* Click buttons, links and icons in their center, not on their edges."
)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {"type": "string", "enum": list(_NAMES), "description": "The action to perform."},
        "keys": {"type": "array", "items": {"type": "string"}, "description": "Required only by `action=key`."},
        "text": {"type": "string", "description": "Required only by `action=type` and `action=answer`."},
        "coordinate": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 1000},
            "minItems": 2,
            "maxItems": 2,
            "description": "(x, y): from the left and the upper edge of the screen, where the mouse is moved to.",
        },
        "pixels": {
            "type": "number",
            "description": "How far to scroll: positive up, negative down. Required only by `action=scroll` and "
            "`action=hscroll`.",
        },
        "time": {"type": "number", "description": "The seconds to wait. Required only by `action=wait`."},
        "status": {
            "type": "string",
            "enum": ["success", "failure"],
            "description": "How the task ended. Required only by `action=terminate`.",
        },
    },
    "required": ["action"],
    "additionalProperties": False,
}
"""The published function, with nothing but its coordinates made stricter."""


class _Call(Struct, frozen=True):
    action: str
    keys: tuple[str, ...] | None = None
    text: str | None = None
    coordinate: tuple[Thousandth, Thousandth] | None = None
    pixels: float | None = None
    time: Annotated[float, Meta(ge=0)] | None = None
    status: Literal["success", "failure"] | None = None

    def needed(self, field: str) -> Any:
        value = getattr(self, field)
        if value is None:
            raise Unreadable(f"The action {self.action} came without `{field}`.")
        return value


def computer_action(arguments: str, plane: Plane) -> ComputerAction:
    """What a call of `computer_use` asks for, from its arguments' JSON; raises Unreadable."""
    try:
        call = msgspec.json.decode(arguments, type=_Call)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(f"That is no action on a screen ({error}): {arguments[:200]}") from error
    at = None if call.coordinate is None else plane.point(call.coordinate)
    match call.action:
        case "key":
            return Key(call.needed("keys"))
        case "type":
            return Type(call.needed("text"))
        case "mouse_move":
            return Move(plane.point(call.needed("coordinate")))
        case "left_click_drag":
            return Drag(plane.point(call.needed("coordinate")))
        case "scroll" | "hscroll":
            return Scroll(call.needed("pixels"), at, call.action == "hscroll")
        case "wait":
            return Wait(call.needed("time"))
        case "answer":
            return Respond(call.needed("text"))
        case "terminate":
            return Terminate(call.needed("status"))
        case click if click in _CLICKS:
            return Click(at, *_CLICKS[click])
        case unknown:
            raise Unreadable(f"There is no action {unknown!r}.")


_NAMED: dict[str, type[NamedAction]] = {
    "click_button": ClickButton,
    "scroll_to": ScrollTo,
    "enter_text": EnterText,
    "finish": Finish,
}
_STRING = r'"([^"\\\x00-\x1f]|\\["\\nt]){0,400}"'
FORMS = tuple(
    f"{name}({', '.join(json.dumps(field) for field in kind.__struct_fields__)})" for name, kind in _NAMED.items()
)
"""What the named actions look like, for the prompt."""
REGEX = "|".join(rf"{name}\({', '.join(_STRING for _ in kind.__struct_fields__)}\)" for name, kind in _NAMED.items())
"""What holds the model to one of them."""


def named_action(text: str) -> NamedAction:
    """What `click_button("submit")` and its like ask for; raises Unreadable."""
    found = re.fullmatch(r"(\w+)\((.*)\)", text.strip(), re.DOTALL)
    kind = _NAMED.get(found[1]) if found else None
    if found is None or kind is None:
        raise Unreadable(f"That is no named action, as {FORMS[0]} is: {text[:200]}")
    try:
        given = msgspec.json.decode(f"[{found[2]}]", type=list[str])
        return kind(*given)
    except (msgspec.DecodeError, TypeError) as error:
        raise Unreadable(f"{found[1]} needs {len(kind.__struct_fields__)} texts in quotes: {text[:200]}") from error
