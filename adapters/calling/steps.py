"""What a client wants done by whoever holds the sockets, and what comes of it.

A call is a generator: it yields steps, is sent what came of each, and returns its answer. It opens, waits for and reads
nothing itself, so that one piece of code serves callers with and without an event loop.
"""

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from qwen3vl_compat.events import Delta

T = TypeVar("T")
Body = tuple[bytes | Path, ...]
"""What is sent, piece by piece; a path stands for what the file holds."""


class Call(Struct, frozen=True, kw_only=True):
    """Send a request and give back a Reply or a Lost."""

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: Body = ()
    size: int = 0
    """Bytes of the body."""
    sent: Callable[[int], None] | None = None
    """Is told how many bytes of the body are sent."""
    stream: bool = False
    """Leave a good reply's body to be read bit by bit."""
    repeatable: bool = True
    """Whether to send it twice does no harm, even if both are carried out."""
    seconds: float = 0.0
    """How long it may take."""


class Read(Struct, frozen=True):
    """Give back the next bytes of the reply that is being read, b"" at its end, or a Lost."""


class Pause(Struct, frozen=True):
    """Wait."""

    seconds: float


class Work(Struct, frozen=True):
    """Run something that takes its time, out of the way of others, and give back what it returns."""

    run: Callable[[], Any]


class Reply(Struct, frozen=True):
    """What the server answered; the names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Lost(Struct, frozen=True):
    """No reply, or no more of it."""

    why: str
    sent: bool = True
    """Whether the server may have got the request."""
    late: bool = False
    """Whether the time was over."""


Step = Call | Read | Pause | Work
Steps = Generator[Step | Delta, Any, T]
"""Steps to an answer; a Delta among them is told to the user, and nothing comes of it."""


def send(call: Call) -> Steps[Reply | Lost]:
    """What comes of a request."""
    return (yield call)


def read() -> Steps[bytes | Lost]:
    """The next bytes of the reply."""
    return (yield Read())


def work(run: Callable[[], T]) -> Steps[T]:
    """What a piece of work returns."""
    return (yield Work(run))
