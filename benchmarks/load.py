"""A load that does not wait: requests sent when they are due, whatever becomes of those before (an open loop)."""

import asyncio
from collections.abc import Iterable, Sequence
from random import Random

from msgspec import Struct

GIVE_UP = 30.0
"""Seconds after which a client is sure that nothing will come."""


class Flow(Struct, frozen=True):
    """What one tenant sends: a whole request, as bytes, so many times a second."""

    name: str
    request: bytes
    rate: float
    even: bool = False
    """One in each gap of 1 / rate seconds, somewhere in it; else by chance alone (Poisson)."""


class Told(Struct):
    """One request as its client saw it: loop times in seconds, and the last status, 0 for none."""

    flow: str
    due: float
    sent: float = 0.0
    """For the first time; `again` for the last one, or when it was due if that was the first."""
    again: float = 0.0
    ended: float = 0.0
    status: int = 0
    tries: int = 0


class Line(asyncio.Protocol):
    """A kept connection with one request at a time on it; answers must tell their length."""

    transport: asyncio.Transport
    closed = False

    def __init__(self) -> None:
        self._data = b""
        self._answer: asyncio.Future[tuple[int, float]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits hears of it."""
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((0, 0.0))

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, float]]":
        """The answer's status and what its Retry-After says."""
        self._data, self._answer = b"", asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Read as far as it came."""
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) >= int(lines[b"content-length"]):
            if lines.get(b"connection") == b"close":
                self.closed = True
                self.transport.close()
            self._answer.set_result((int(head[9:12]), float(lines.get(b"retry-after", b"0"))))


class Client:
    """Connections to one server, as many as are needed at once."""

    def __init__(self, host: str, port: int, *, retries: int = 0) -> None:
        """What is refused with 503 comes again so many times, when the server says and a little later."""
        self._where, self._retries, self._rng = (host, port), retries, Random(5)
        self._idle: list[Line] = []
        self.opened = 0
        self.retried = 0

    async def send(self, flow: Flow, due: float) -> Told:
        """One request to its end."""
        loop = asyncio.get_running_loop()
        told = Told(flow.name, due, again=due)
        while True:
            line = await self._line()
            told.sent, told.tries = told.sent or loop.time(), told.tries + 1
            try:
                async with asyncio.timeout(GIVE_UP):
                    told.status, after = await line.ask(flow.request)
            except TimeoutError:
                line.transport.abort()
                told.status, after = 0, 0.0
            if not line.closed:
                self._idle.append(line)
            if told.status != 503 or told.tries > self._retries:
                told.ended = loop.time()
                return told
            self.retried += 1
            await asyncio.sleep(after * self._rng.uniform(1, 1.5))
            told.again = loop.time()

    async def _line(self) -> Line:
        while self._idle:
            line = self._idle.pop()
            if not line.closed:
                return line
        self.opened += 1
        _, line = await asyncio.get_running_loop().create_connection(Line, *self._where)
        return line

    def close(self) -> None:
        """Hang up."""
        for line in self._idle:
            line.transport.abort()


def arrivals(flows: Iterable[Flow], seconds: float) -> list[tuple[float, Flow]]:
    """When each request is due: the same in each run with the same flows."""
    due: list[tuple[float, Flow]] = []
    for flow in flows:
        rng, now = Random(flow.name), 0.0
        if flow.even:
            due += [((place + rng.random()) / flow.rate, flow) for place in range(round(seconds * flow.rate))]
            continue
        while (now := now + rng.expovariate(flow.rate)) < seconds:
            due.append((now, flow))
    return sorted(due, key=lambda each: each[0])


async def open_loop(client: Client, flows: Sequence[Flow], seconds: float) -> list[Told]:
    """Send everything when it is due, and wait until all has ended; times count from the beginning."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    tasks: list[asyncio.Task[Told]] = []
    for due, flow in arrivals(flows, seconds):
        if (early := began + due - loop.time()) > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.create_task(client.send(flow, began + due)))
    return [_since(began, told) for told in await asyncio.gather(*tasks)]


async def closed_loop(client: Client, flow: Flow, at_once: int, seconds: float) -> list[Told]:
    """So many clients, each of which asks again as soon as it has its answer."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    told: list[Told] = []

    async def work() -> None:
        while (now := loop.time()) < began + seconds:
            told.append(_since(began, await client.send(flow, now)))

    await asyncio.gather(*(work() for _ in range(at_once)))
    return told


def _since(began: float, told: Told) -> Told:
    told.due, told.sent, told.again, told.ended = (
        each - began for each in (told.due, told.sent, told.again, told.ended)
    )
    return told
