"""What a front process and the engine's process say to each other: the Engine's methods as messages.

A front numbers what it asks. A request goes without its patches, which follow in pieces where the engine needs them;
its events come back in one message for each step of the engine, together with those of the front's other requests.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from prometheus_client.metrics_core import Metric

from qwen3vl_compat import errors
from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import Event, Usage
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.messages import ModelInfo, Part, Picture, Request, ToolResult, Video
from qwen3vl_compat.queue import Occupancy

PIECE = 2**18
"""Bytes of patches in one message."""
AHEAD = 64
"""Events of one request that may be on their way or wait for a reader; then the engine is not asked for more."""

# ------------------------------------------------------------------------------------------------- from a front


class Count(Struct, frozen=True, tag="count", array_like=True):
    """Asks for the prompt's tokens, and the room they leave; answered by Counted."""

    number: int
    request: Request


class Check(Struct, frozen=True, tag="check", array_like=True):
    """Asks whether an answer can be held to what is asked; answered by Done."""

    number: int
    request: Request


class Collect(Struct, frozen=True, tag="collect", array_like=True):
    """Asks for the figures; answered by Figures."""

    number: int


class Generate(Struct, frozen=True, tag="generate", array_like=True):
    """Asks for an answer; answered by Shares. The patches of its pictures, so many bytes each, come in Pieces."""

    number: int
    request: Request
    patches: list[int]


class Piece(Struct, frozen=True, tag="piece", array_like=True):
    """The next patches of a request; never of two pictures at once."""

    number: int
    data: bytes


class Took(Struct, frozen=True, tag="took", array_like=True):
    """So many events of a request were read."""

    number: int
    events: int


class Cancel(Struct, frozen=True, tag="cancel", array_like=True):
    """Nobody waits any more for what was asked by this number."""

    number: int


class Aside(Struct, frozen=True, tag="aside", array_like=True):
    """What the front has to say that is no matter of the engine's."""

    words: bytes


class Heard(Struct, frozen=True, tag="heard", array_like=True):
    """A Beat was heard: the front's own sign of life."""


FromFront = Count | Check | Collect | Generate | Piece | Took | Cancel | Aside | Heard

# ----------------------------------------------------------------------------------------- from the engine's process


class Welcome(Struct, frozen=True, tag="welcome", array_like=True):
    """The first message: what is known of the engine before it is ready."""

    vision: VisionSpec
    models: tuple[ModelInfo, ...]


class Beat(Struct, frozen=True, tag="beat", array_like=True):
    """A sign of life, said again and again (`host.BEAT_S`)."""

    alive: bool
    announced: bool = False
    """Whether the operator was told that the server takes requests."""


class Full(Struct, frozen=True, tag="full", array_like=True):
    """How full the engine is; said when it changes."""

    occupancy: Occupancy


class Fault(Struct, frozen=True, tag="fault", array_like=True):
    """An ApiError, by the name of its class."""

    kind: str
    message: str
    param: str | None
    code: str
    status: int
    retry_after: int | None
    headers: errors.Headers
    own: dict[str, str]
    """What only its class has."""


class Counted(Struct, frozen=True, tag="counted", array_like=True):
    """The tokens of a prompt, and the most each choice can have after it, or why it can have none."""

    usage: Usage
    room: int | Fault


class Sample(Struct, frozen=True, array_like=True):
    """One line of a figure."""

    name: str
    labels: dict[str, str]
    value: float


class Family(Struct, frozen=True, array_like=True):
    """One figure as Prometheus has it."""

    name: str
    meaning: str
    kind: str
    unit: str
    samples: list[Sample]


class Figures(Struct, frozen=True, tag="figures", array_like=True):
    """What the engine tells of itself."""

    families: list[Family]


class Done(Struct, frozen=True, tag="done", array_like=True):
    """Nothing stands against it."""


class Reply(Struct, frozen=True, tag="reply", array_like=True):
    """The answer to a Count, Check or Collect."""

    number: int
    result: Counted | Done | Figures | Fault


class Share(Struct, frozen=True, array_like=True):
    """One request's part of a step: its new events, and whether it is over, well or with a fault."""

    number: int
    events: list[Event]
    over: bool = False
    fault: Fault | None = None


class Step(Struct, frozen=True, tag="step", array_like=True):
    """All that has become ready since the last one."""

    shares: list[Share]


FromEngine = Welcome | Beat | Full | Reply | Step

# ------------------------------------------------------------------------------------------------------------- errors

_COMMON = frozenset(vars(ApiError("")))
_KINDS = {kind.__name__: kind for kind in (ApiError, *ApiError.__subclasses__())}


def fault_of(error: ApiError) -> Fault:
    """An error as it travels."""
    return Fault(
        kind=type(error).__name__,
        message=error.message,
        param=error.param,
        code=error.code,
        status=error.status,
        retry_after=error.retry_after,
        headers=error.headers,
        own={name: told for name, told in vars(error).items() if name not in _COMMON},
    )


def error_of(fault: Fault) -> ApiError:
    """The error that it was, with all its fields."""
    kind = _KINDS.get(fault.kind, ApiError)
    error = kind.__new__(kind)
    ApiError.__init__(
        error,
        fault.message,
        param=fault.param,
        code=fault.code,
        status=fault.status,
        retry_after=fault.retry_after,
        headers=fault.headers,
    )
    vars(error).update(fault.own)
    return error


# ------------------------------------------------------------------------------------------------------------ figures


def families_of(metrics: Iterable[Metric]) -> list[Family]:
    """Figures as they travel."""
    return [
        Family(
            each.name,
            each.documentation,
            each.type,
            each.unit,
            [Sample(line.name, line.labels, float(line.value)) for line in each.samples],
        )
        for each in metrics
    ]


def metrics_of(families: list[Family]) -> Iterator[Metric]:
    """The figures that they were."""
    for family in families:
        metric = Metric(family.name, family.meaning, family.kind, family.unit)
        for line in family.samples:
            metric.add_sample(line.name, line.labels, line.value)
        yield metric


# ------------------------------------------------------------------------------------------------------------ patches


def bare(request: Request) -> tuple[Request, list[bytes]]:
    """The request without patches, and these in the order of its pictures."""
    patches: list[bytes] = []

    def strip(picture: Picture) -> Picture:
        patches.append(picture.patches)
        return replace(picture, patches=b"")

    return _with_pictures(request, strip), patches


class Arriving:
    """A request whose patches are still on their way."""

    def __init__(self, request: Request, sizes: Sequence[int]) -> None:
        """`sizes` are bytes of each picture in order."""
        self._request, self._sizes = request, sizes
        self._whole: list[bytes] = []
        self._next = bytearray()
        self._advance()

    def add(self, data: bytes) -> None:
        """Take the next bytes; those of two pictures never come together."""
        self._next += data
        self._advance()

    def _advance(self) -> None:
        while not self.whole and len(self._next) >= self._sizes[len(self._whole)]:
            self._whole.append(bytes(self._next))
            self._next.clear()

    @property
    def whole(self) -> bool:
        """Whether all has come."""
        return len(self._whole) == len(self._sizes)

    @property
    def request(self) -> Request:
        """The request with all its patches."""
        each = iter(self._whole)
        return _with_pictures(self._request, lambda picture: replace(picture, patches=next(each)))


def _with_pictures(request: Request, change: Callable[[Picture], Picture]) -> Request:
    messages = tuple(
        replace(message, parts=tuple(_changed(part, change) for part in message.parts)) for message in request.messages
    )
    return replace(request, messages=messages)


def _changed(part: Part, change: Callable[[Picture], Picture]) -> Any:
    match part:
        case Picture():
            return change(part)
        case Video():
            return replace(part, pairs=tuple(change(pair) for pair in part.pairs))
        case ToolResult():
            return replace(part, parts=tuple(_changed(inner, change) for inner in part.parts))
        case _:
            return part
