"""Places in a picture: what Qwen3-VL tells in thousandths of its width and height, as pixels.

A picture is brought down before the model looks at it, perhaps twice; thousandths do not care. So the pixels are those
of the true picture, upright by its EXIF orientation.
"""

import math
from collections import Counter
from html.parser import HTMLParser
from typing import Annotated, Literal

from msgspec import Meta, Struct

GRID = 1000
Thousandth = Annotated[float, Meta(ge=0, le=GRID)]
Corners = tuple[Thousandth, Thousandth, Thousandth, Thousandth]
Size = tuple[int, int]
"""Width and height in pixels."""
Unit = Literal["pixel", "thousandth"]


class Point(Struct, frozen=True):
    """A pixel, counted from the upper left one, which is 0, 0."""

    x: int
    y: int
    label: str = ""


class Box(Struct, frozen=True):
    """A rectangle as Pillow crops it: its last column is right - 1, its last row bottom - 1. It is never empty."""

    left: int
    top: int
    right: int
    bottom: int
    label: str = ""


class Plane(Struct, frozen=True):
    """What places are told in: pixels of a picture, or thousandths where its size is not known here."""

    size: Size = (GRID, GRID)
    unit: Unit = "thousandth"

    @classmethod
    def of(cls, size: Size | None) -> "Plane":
        """The pixels of a picture of that size."""
        return cls() if size is None else cls(size, "pixel")

    def point(self, at: tuple[float, float], label: str = "") -> Point:
        """The pixel that thousandths lie in."""
        x, y = (min(math.floor(place * side / GRID), side - 1) for place, side in zip(at, self.size, strict=True))
        return Point(x, y, label)

    def box(self, corners: tuple[float, float, float, float], label: str = "") -> Box:
        """All pixels that a rectangle of thousandths touches; its corners may come in any order."""
        width, height = self.size
        left, right = _span(corners[0], corners[2], width)
        top, bottom = _span(corners[1], corners[3], height)
        return Box(left, top, right, bottom, label)


def _span(one: float, other: float, side: int) -> tuple[int, int]:
    first = min(math.floor(min(one, other) * side / GRID), side - 1)
    return first, max(math.ceil(max(one, other) * side / GRID), first + 1)


class Block(Struct, frozen=True):
    """A part of a document: what kind it is (an HTML tag, and its class if it has one), its text, and its place."""

    kind: str
    text: str
    box: Box


def blocks_of(html: str, plane: Plane) -> tuple[Block, ...]:
    """The parts of a document that say where they are, as `qwenvl html` has it: `data-bbox="x1 y1 x2 y2"`.

    What cannot be read as a place is passed over: the text is what was asked for.
    """
    reader = _Blocks(plane)
    reader.feed(html)
    reader.close()
    return tuple(reader.found[place] for place in sorted(reader.found))


_EMPTY = frozenset(("area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"))
_INLINE = frozenset(("a", "b", "code", "em", "i", "small", "span", "strong", "sub", "sup", "u"))


class _Open(Struct):
    tag: str
    kind: str
    box: Box | None
    place: int
    words: list[str]


class _Blocks(HTMLParser):
    """Gives each element the text in it."""

    def __init__(self, plane: Plane) -> None:
        super().__init__()
        self.found: dict[int, Block] = {}
        self._plane, self._count = plane, 0
        self._open, self._boxed, self._tags = list[_Open](), list[_Open](), Counter[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _INLINE:
            self.handle_data(" ")
        named = dict(attrs)
        box = self._box(named.get("data-bbox") or "")
        kind = f"{tag}.{named['class']}" if named.get("class") else tag
        self._open.append(_Open(tag, kind, box, self._count, []))
        if box is not None:
            self._boxed.append(self._open[-1])
        self._tags[tag] += 1
        self._count += 1
        if tag in _EMPTY:
            self._end()

    def handle_endtag(self, tag: str) -> None:
        if self._tags[tag]:
            while self._end() != tag:
                pass

    def handle_data(self, data: str) -> None:
        for each in self._boxed:
            each.words.append(data)

    def close(self) -> None:
        super().close()
        while self._open:
            self._end()

    def _end(self) -> str:
        done = self._open.pop()
        self._tags[done.tag] -= 1
        if done.box is not None:
            self._boxed.pop()
            self.found[done.place] = Block(done.kind, " ".join("".join(done.words).split()), done.box)
        return done.tag

    def _box(self, said: str) -> Box | None:
        try:
            first, second, third, fourth = map(float, said.replace(",", " ").split())
        except ValueError:
            return None
        corners = (first, second, third, fourth)
        return self._plane.box(corners) if all(0 <= each <= GRID for each in corners) else None
