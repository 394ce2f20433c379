"""What all APIs ask for in other words: tools, forms of the answer, and how long to think."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Thinking, Tool, ToolChoice
from qwen3vl_compat.wire.body import shown, within

MOST_CHOICES, MOST_STOPS, LONGEST_STOP = 4, 16, 1000
MOST_TOKENS = 10_000_000
MOST_FPS, MOST_SECONDS = 60.0, 10.0**7
MOST_TOOLS, MOST_LOGPROBS, MOST_BIASES = 128, 20, 1024

EFFORTS: Mapping[str, int | None] = {
    "none": 0, "minimal": 512, "low": 1_024, "medium": 8_192, "high": 24_576, "xhigh": None, "max": None,
}  # fmt: skip
"""Tokens of thoughts that each effort stands for; None sets no bound. Google's levels are among them."""

UPLOADED = re.compile(r"(?:file-|files/)[0-9a-f]{24}")
"""An uploaded file's id, as either family has it."""

_NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,128}\Z")


def check_end(start: float | None, end: float | None, path: str) -> None:
    """Where a part of a video ends, in seconds."""
    if end is not None and end < (start or 0):
        raise InvalidRequest(f"{path}: must not be before the start, which is at {start or 0:g} s", param=path)
    within(end, 0, MOST_SECONDS, path)


def check_name(name: str, path: str) -> str:
    """A function's name, which becomes part of a grammar and of prompts."""
    if _NAME.match(name) is None:
        raise InvalidRequest(f"{path}: must be 1 to 128 letters, digits, and _ . : -", param=path)
    return name


def check_stops(stops: Sequence[str], path: str) -> tuple[str, ...]:
    """Stop strings within their bounds."""
    if len(stops) > MOST_STOPS or any(not 1 <= len(stop) <= LONGEST_STOP for stop in stops):
        raise InvalidRequest(f"{path}: at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters", param=path)
    return tuple(stops)


def check_tools(tools: Sequence[Tool], path: str) -> tuple[Tool, ...]:
    """Tools that are not too many and can be told apart."""
    if len(tools) > MOST_TOOLS:
        raise InvalidRequest(f"{path}: at most {MOST_TOOLS} functions", param=path)
    names = [tool.name for tool in tools]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise InvalidRequest(f"{path}: the function {shown(twice)} is declared twice", param=path)
    return tuple(tools)


def chosen(
    mode: Literal["auto", "none", "required"], names: Sequence[str], tools: Sequence[Tool], path: str
) -> ToolChoice:
    """A choice among tools that exist."""
    if mode == "required" and not tools:
        raise InvalidRequest(f"{path}: there are no tools to call", param=path)
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise InvalidRequest(f"{path}: there is no function {shown(name)}", param=path)
    return ToolChoice(mode=mode, names=tuple(names))


def schema_text(schema: Any, path: str) -> str:
    """A JSON Schema as text, its keys in the order given."""
    if not isinstance(schema, dict | bool):
        raise InvalidRequest(f"{path}: must be a JSON Schema, which is an object", param=path)
    return json.dumps(schema, ensure_ascii=False)


def effort(name: str, path: str, *, enabled: bool | None = None, shown: bool = True) -> Thinking:
    """What an effort by name asks for."""
    if name not in EFFORTS:
        raise InvalidRequest(f"{path}: must be one of {', '.join(EFFORTS)}", param=path)
    budget = EFFORTS[name]
    return Thinking(enabled=budget != 0 if enabled is None else enabled, budget=budget, shown=shown)


_PAGES = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def page_range(value: Any, path: str) -> tuple[int, int] | None:
    """Pages as `7` or `"3-5"`, counted from 1, both ends in; None for all."""
    if value is None:
        return None
    found = _PAGES.fullmatch(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise InvalidRequest(f"{path}: must be a page, counted from 1, or a range as 3-5", param=path)
    return first, last
