"""Moments that a model tells in words, as seconds."""

import re
from collections.abc import Iterator

_MOMENT = re.compile(
    r"<(?P<marked>\d{1,7}(?:\.\d+)?) seconds>"
    r"|(?<![\d:.])(?:(?P<hours>\d{1,3}):)?(?P<minutes>\d{1,3}):(?P<seconds>[0-5]\d(?:\.\d+)?)(?![\d:])"
    r"|(?<![\d:.])(?P<plain>\d{1,7}(?:\.\d+)?) ?(?:s|sec|secs|seconds?)\b",
    re.IGNORECASE,
)


def seconds_in(text: str) -> list[float]:
    """All moments a text names, in order: `<12.5 seconds>` as Qwen3-VL has them, `01:15:32` or `1:02.5`, `12.5 s`."""
    return list(_moments(text))


def _moments(text: str) -> Iterator[float]:
    for found in _MOMENT.finditer(text):
        single = found["marked"] or found["plain"]
        if single is not None:
            yield float(single)
        else:
            hours, minutes = int(found["hours"] or 0), int(found["minutes"])
            if minutes < 60 or found["hours"] is None:
                yield hours * 3600 + minutes * 60 + float(found["seconds"])
