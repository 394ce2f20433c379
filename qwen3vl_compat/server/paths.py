"""What a path was meant for: clients add a version to a base URL that has one, or none to one that has none."""

import re
from collections.abc import Iterable, Iterator

_SAYABLE = re.compile(r"[\x21-\x7e]{1,200}")
_TWO_VERSIONS = re.compile(r"(?P<first>/v1(?:beta)?)(?P<meant>/v1(?:beta)?/.+)")
_TWICE = re.compile(r"(?P<meant>(?:/v1(?:beta)?)?(?P<end>/.+?))(?:/v1(?:beta)?)?(?P=end)")
_PARAMETER = re.compile(r"\{\w+:(\w+)\}")


def nothing_at(path: str, routes: Iterable[str]) -> str:
    """What is said of a path that is none of the `routes`, which may hold `{name:str}` and `{name:path}`."""
    known = [re.compile(_pattern_of(route)) for route in routes]
    for meant, advice in _readings(path) if _SAYABLE.fullmatch(path) else ():
        if any(route.fullmatch(meant) for route in known):
            return f"There is nothing at this path; did you mean {meant}? {advice} the client's base URL."
    return "There is nothing at this path."


def _readings(path: str) -> Iterator[tuple[str, str]]:
    """Paths that may be meant, and what would lead there."""
    if found := _TWO_VERSIONS.fullmatch(path):
        yield found["meant"], f"Leave {found['first']} out of"
    if found := _TWICE.fullmatch(path):
        yield found["meant"], f"Leave {path.removeprefix(found['meant'])} out of"
    yield f"/v1{path}", "Add /v1 to"


def _pattern_of(route: str) -> str:
    pieces = _PARAMETER.split(route)  # every other one is a parameter's type
    return "".join(
        re.escape(piece) if place % 2 == 0 else ".+" if piece == "path" else "[^/]+"
        for place, piece in enumerate(pieces)
    )
