"""Moderators: who may object to what is asked and to what is answered, and how one of them is asked.

`words` knows lists of words and answers at once; `service` asks somebody else. `policy` has them look at requests,
`stream` at answers while they are made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from qwen3vl_compat.settings import Stage


class Verdict(Struct, frozen=True):
    """What a moderator says: whether it objects, why, and how sure it is of each category, 0 to 1."""

    flagged: bool = False
    categories: tuple[str, ...] = ()
    scores: Mapping[str, float] = {}


NOTHING = Verdict()
"""No objection."""


class Judged(Struct, frozen=True, array_like=True, tag="judged"):
    """What came of one question to a moderator; `seconds` is how long a service was asked, None where none was."""

    moderator: str
    verdict: Literal["passed", "flagged", "failed"]
    seconds: float | None = None


Note = Callable[[Judged], None]
"""Takes note of what came of a question."""


def unnoted(judged: Judged) -> None:
    """Where nobody counts."""


class Unavailable(Exception):
    """A moderator cannot be asked now; the message says why, for the log."""


class Moderator(Protocol):
    """One who looks."""

    @property
    def name(self) -> str:
        """What the ledger calls it."""
        ...

    @property
    def stages(self) -> Sequence[Stage]:
        """When it looks."""
        ...

    @property
    def pictures(self) -> int:
        """How many pictures it can be shown at once, JPEG; 0 for none at all."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells it from one that might say something else."""
        ...

    async def look(self, texts: Sequence[str], pictures: Sequence[bytes]) -> Verdict:
        """What it has to say of these, together; raises Unavailable."""
        ...

    async def close(self) -> None:
        """It is not asked any more."""
        ...
