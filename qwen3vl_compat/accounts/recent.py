"""Answers of the last few seconds, so that a request costs no database read.

What was found and what was not are kept apart: a flood of invented names only ever pushes out other invented names.
"""

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

CACHE_S = 4.0
"""Seconds until a change made in another process (a revocation, a suspension) is seen by this one."""

T = TypeVar("T")
Shelf = OrderedDict[str, tuple[float, T | None]]


class Recent(Generic[T]):
    """Name -> value or "there is none", for `keep_s` seconds each; a full shelf drops the least recently used."""

    def __init__(self, *, keep_s: float, known: int = 4096, unknown: int = 1024) -> None:
        """`known` and `unknown` bound the two shelves, in entries."""
        self._keep_s = keep_s
        self._lock = Lock()
        self._known: Shelf[T] = OrderedDict()
        self._unknown: Shelf[T] = OrderedDict()
        self._limits = known, unknown

    def get(self, name: str, now: float) -> tuple[bool, T | None]:
        """(True, the answer) if one from the last `keep_s` seconds is here, else (False, None)."""
        with self._lock:
            for shelf in (self._known, self._unknown):
                entry = shelf.get(name)
                if entry is not None and now - entry[0] < self._keep_s:
                    shelf.move_to_end(name)
                    return True, entry[1]
        return False, None

    def put(self, name: str, value: T | None, now: float) -> None:
        """Keep an answer (None: there is none) that was true at `now`, the time before it was looked up."""
        with self._lock:
            shelf, other = (self._known, self._unknown) if value is not None else (self._unknown, self._known)
            limit = self._limits[0 if value is not None else 1]
            other.pop(name, None)
            shelf[name] = (now, value)
            shelf.move_to_end(name)
            if len(shelf) > limit:
                shelf.popitem(last=False)

    def forget(self, name: str) -> None:
        """Look it up anew next time."""
        with self._lock:
            self._known.pop(name, None)
            self._unknown.pop(name, None)

    def __len__(self) -> int:
        """Entries held, fresh or not; never more than the two limits together."""
        return len(self._known) + len(self._unknown)
