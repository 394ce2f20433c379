"""What a check comes to, and how it says so."""

from typing import Literal

from msgspec import Struct

Result = Literal["ok", "failed", "not available"]


class Finding(Struct, frozen=True):
    """A row of the table; `expected` and `hint` are of what failed."""

    check: str
    result: Result
    seen: str
    expected: str = ""
    hint: str = ""
    seconds: float = 0.0


class Failed(Exception):
    """What was seen is not what a client needs."""

    def __init__(self, expected: str, seen: str, hint: str = "") -> None:
        """`hint` says what may put it right."""
        super().__init__(seen)
        self.expected, self.seen, self.hint = expected, seen, hint


class NotAvailable(Exception):
    """It cannot be checked here, and nothing is wrong with that: its text says why."""
