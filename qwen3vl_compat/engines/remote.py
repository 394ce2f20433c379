"""An engine in another process of this machine: the end in a front. The other one is `host`."""

import asyncio
import itertools
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from prometheus_client.metrics_core import Metric

from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.engines.channel import LARGEST, Channel, TooLarge
from qwen3vl_compat.engines.protocol import (
    AHEAD,
    PIECE,
    Aside,
    Beat,
    Cancel,
    Check,
    Collect,
    Count,
    Counted,
    Done,
    Fault,
    Figures,
    FromEngine,
    Full,
    Generate,
    Heard,
    Piece,
    Reply,
    Share,
    Step,
    Took,
    Welcome,
    bare,
    error_of,
    metrics_of,
)
from qwen3vl_compat.errors import ApiError, EngineFailed, InvalidRequest, Overloaded
from qwen3vl_compat.events import Event, Events, Usage
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.messages import ModelInfo, Request
from qwen3vl_compat.queue import Occupancy

SILENT = 15.0
"""Seconds without a sign of life after which no work is given to the engine's process any more."""
FIGURES_S = 5.0
"""Seconds to wait for figures."""
ROOMS = 1024
"""Rooms that are remembered; each is asked for as soon as its prompt is counted."""

R = TypeVar("R", Counted, Done, Figures)
Ask = Count | Check | Collect


class RemoteEngine:
    """An Engine whose work is done behind a socket. `connect` makes one."""

    _known: Welcome

    def __init__(self) -> None:
        self._channel: Channel[FromEngine] = Channel(FromEngine, self._take, self._lose)
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, _Stream] = {}
        self._rooms: dict[tuple[int, int, int | None], int | Fault] = {}
        self._met: asyncio.Future[Welcome | None] = asyncio.get_running_loop().create_future()
        self._begun = asyncio.Event()
        self._occupancy = Occupancy(1, {})
        self._alive, self._heard, self._closed = False, 0.0, False
        self.announced = False
        """Whether the operator was told that the server takes requests."""
        self.lost = asyncio.Event()
        """Set once the engine's process is gone."""

    @classmethod
    async def connect(cls, end: socket.socket) -> "RemoteEngine":
        """The engine behind this end of a socket pair, ready or not; raises EngineUnusable if nobody is there."""
        engine = cls()
        await engine._channel.open(end)
        welcome = await engine._met
        if welcome is None:
            raise _ended()
        engine._known = welcome
        return engine

    async def disconnect(self) -> None:
        """Send what is still to be sent, and end the connection."""
        await self._channel.close()

    @property
    def vision(self) -> VisionSpec:
        """The grid of the model over there."""
        return self._known.vision

    @property
    def alive(self) -> bool:
        """Whether the engine said so a moment ago."""
        return self._alive and not self._closed and time.monotonic() - self._heard < SILENT

    def models(self) -> tuple[ModelInfo, ...]:
        """The models over there."""
        return self._known.models

    @property
    def occupancy(self) -> Occupancy:
        """How full the engine was a moment ago."""
        return self._occupancy

    async def start(self) -> None:
        """Wait until the engine is ready."""
        await self._begun.wait()
        if self.lost.is_set():
            raise _ended()

    async def close(self) -> None:
        """Give up all that is asked. What is said aside still goes through."""
        self._closed = True
        self._give_up(lambda: Overloaded("The server is stopping.", retry_after=5))

    def say(self, words: bytes) -> None:
        """Say something to the engine's process that is no matter of the engine's."""
        self._channel.send(Aside(words))

    # ---------------------------------------------------------------------------------------------------- questions

    async def count(self, request: Request) -> Usage:
        """The prompt's tokens; the room they leave comes along, and is remembered for `room`."""
        counted = await self._ask(Count(next(self._numbers), bare(request)[0]), Counted)
        if len(self._rooms) >= ROOMS:
            del self._rooms[next(iter(self._rooms))]
        self._rooms[_place(request, counted.usage)] = counted.room
        return counted.usage

    async def check(self, request: Request) -> None:
        """Refuse what no answer can be held to; where an answer is held to nothing, there is nothing to ask."""
        asked = request.sampling
        if request.format.kind == "text" and not (request.tools or asked.logit_bias or asked.stop_tokens):
            return
        await self._ask(Check(next(self._numbers), bare(request)[0]), Done)

    def room(self, request: Request, usage: Usage) -> int:
        """What the engine said with the count; of a prompt that was not counted lately, all that the context leaves."""
        room = self._rooms.get(_place(request, usage))
        if isinstance(room, Fault):
            raise error_of(room)
        if room is None:
            left = max(1, max(model.context for model in self._known.models) - usage.prompt)
            room = min(request.sampling.max_tokens or left, left)
        return room

    async def collect(self) -> Iterable[Metric]:
        """The engine's figures, and those of all fronts."""
        try:
            async with asyncio.timeout(FIGURES_S):
                figures = await self._ask(Collect(next(self._numbers)), Figures)
        except TimeoutError:
            raise _away() from None
        return metrics_of(figures.families)

    async def _ask(self, question: Ask, kind: type[R]) -> R:
        self._check_there()
        answer = self._asked[question.number] = asyncio.get_running_loop().create_future()
        try:
            self._send(question)
            result = await answer
        except asyncio.CancelledError:
            self._channel.send(Cancel(question.number))
            raise
        finally:
            del self._asked[question.number]
        if isinstance(result, Fault):
            raise error_of(result)
        assert isinstance(result, kind), "the engine's process answered another question"
        return result

    # ------------------------------------------------------------------------------------------------------- answers

    async def generate(self, request: Request) -> Events:
        """The events as they come; closing this ends the generation over there."""
        self._check_there()
        number = next(self._numbers)
        stream = self._streams[number] = _Stream(lambda events: self._channel.send(Took(number, events)))
        try:
            await self._deliver(number, request)
            while (event := await stream.next()) is not None:
                yield event
        finally:
            del self._streams[number]
            if not stream.over:
                self._channel.send(Cancel(number))

    async def _deliver(self, number: int, request: Request) -> None:
        thin, patches = bare(request)
        self._send(Generate(number, thin, [len(each) for each in patches]))
        for each in patches:
            for at in range(0, len(each), PIECE):
                await self._channel.room()
                self._channel.send(Piece(number, each[at : at + PIECE]))

    def _send(self, message: Ask | Generate) -> None:
        try:
            self._channel.send(message)
        except TooLarge:
            fault = f"The request's text is more than the {LARGEST // 2**20} MiB that can be handed to the model."
            raise InvalidRequest(fault, status=413, code="request_too_large") from None

    def _check_there(self) -> None:
        if self._closed or self.lost.is_set():
            raise _away()

    # ------------------------------------------------------------------------------------------ from the other process

    def _take(self, message: FromEngine) -> None:
        self._heard = time.monotonic()
        match message:
            case Step():
                for share in message.shares:
                    if (stream := self._streams.get(share.number)) is not None:
                        stream.put(share)
            case Reply():
                answer = self._asked.get(message.number)
                if answer is not None and not answer.done():
                    answer.set_result(message.result)
            case Full():
                self._occupancy = message.occupancy
            case Beat():
                self._channel.send(Heard())
                self._alive, self.announced = message.alive, message.announced
                if message.alive:
                    self._begun.set()
            case Welcome():
                self._met.set_result(message)

    def _lose(self) -> None:
        self._alive = False
        self.lost.set()
        self._begun.set()
        if not self._met.done():
            self._met.set_result(None)
        self._give_up(lambda: EngineFailed("The engine failed."))

    def _give_up(self, error: Callable[[], ApiError]) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(error())
        for stream in self._streams.values():
            stream.fail(error())


class _Stream:
    """One request's events between the socket and whoever reads them."""

    def __init__(self, took: Callable[[int], None]) -> None:
        """`took` tells the other process that so many were read, so that it goes on."""
        self.over = False
        """Whether the other process is done with it."""
        self._waiting: deque[Event] = deque()
        self._fault: ApiError | None = None
        self._news = asyncio.Event()
        self._took, self._taken = took, 0

    def put(self, share: Share) -> None:
        self._waiting.extend(share.events)
        if share.over:
            self.over = True
            self._fault = error_of(share.fault) if share.fault is not None else None
        self._news.set()

    def fail(self, error: ApiError) -> None:
        if not self.over:
            self._fault = self._fault or error
            self._news.set()

    async def next(self) -> Event | None:
        """The next event, None after the last; raises what ended it."""
        while not self._waiting:
            if self._fault is not None:
                raise self._fault
            if self.over:
                return None
            self._news.clear()
            await self._news.wait()
        self._taken += 1
        if self._taken == AHEAD // 2 and not self.over:
            self._took(self._taken)
            self._taken = 0
        return self._waiting.popleft()


def _place(request: Request, usage: Usage) -> tuple[int, int, int | None]:
    """All that the room depends on."""
    return usage.prompt, request.choices, request.sampling.max_tokens


def _away() -> Overloaded:
    return Overloaded("The model cannot be asked now: it is being loaded, or has stopped.", retry_after=5)


def _ended() -> EngineUnusable:
    return EngineUnusable("The engine's process has ended.")
