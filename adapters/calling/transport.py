"""The sockets that a call's steps are lent: with an event loop and without."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Generic

import httpx
from msgspec import Struct

from qwen3vl_compat.adapters.calling.failures import InvalidInput
from qwen3vl_compat.adapters.calling.steps import Body, Call, Lost, Pause, Read, Reply, Step, Steps, T, Work
from qwen3vl_compat.events import Delta

CONNECT_S, WRITE_S = 10.0, 60.0
BLOCK = 256 * 2**10
"""Bytes of a body that are read and sent at a time."""


def certificates(origin: str) -> ssl.SSLContext | bool:
    """What a server has to prove itself by; nothing is loaded for one that does not, which takes a while."""
    return True if origin.lower().startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Transport:
    """Performs the steps of one call, one after another, waiting for each."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._reply: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def perform(self, step: Step) -> Any:
        """Do what a step asks for; returns what came of it."""
        match step:
            case Call():
                return self._send(step)
            case Read():
                return self._read()
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case Work(run):
                return run()

    def _send(self, call: Call) -> Reply | Lost:
        self.close()
        content = _blocks(call) if call.body else None
        request = self._client.build_request(call.method, call.path, content=content, **_asked(call))
        try:
            reply = self._client.send(request, stream=True)
            self._reply = reply
            if call.stream and reply.is_success:
                self._chunks = reply.iter_bytes()
                return Reply(reply.status_code, _names(reply.headers))
            return Reply(reply.status_code, _names(reply.headers), reply.read())
        except httpx.RequestError as error:
            return lost(error)

    def _read(self) -> bytes | Lost:
        try:
            return next(self._chunks, b"")
        except httpx.RequestError as error:
            return lost(error)

    def close(self) -> None:
        """Hang up, if anything still comes."""
        if self._reply is not None:
            self._reply.close()
        self._reply = None


class AsyncTransport:
    """Performs the steps of one call in an asyncio loop, which goes on meanwhile."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._reply: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def perform(self, step: Step) -> Any:
        """Do what a step asks for; returns what came of it."""
        match step:
            case Call():
                return await self._send(step)
            case Read():
                return await self._read()
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case Work(run):
                return await asyncio.to_thread(run)

    async def _send(self, call: Call) -> Reply | Lost:
        await self.close()
        content = _blocks_aside(call) if call.body else None
        request = self._client.build_request(call.method, call.path, content=content, **_asked(call))
        try:
            reply = await self._client.send(request, stream=True)
            self._reply = reply
            if call.stream and reply.is_success:
                self._chunks = reply.aiter_bytes()
                return Reply(reply.status_code, _names(reply.headers))
            return Reply(reply.status_code, _names(reply.headers), await reply.aread())
        except httpx.RequestError as error:
            return lost(error)

    async def _read(self) -> bytes | Lost:
        assert self._chunks is not None
        try:
            return await anext(self._chunks, b"")
        except httpx.RequestError as error:
            return lost(error)

    async def close(self) -> None:
        """Hang up, if anything still comes."""
        if self._reply is not None:
            await self._reply.aclose()
        self._reply = None


def _asked(call: Call) -> dict[str, Any]:
    timeout = httpx.Timeout(call.seconds, connect=min(CONNECT_S, call.seconds), write=min(WRITE_S, call.seconds))
    length = {"content-length": str(call.size)} if call.body else {}
    return {"headers": {**call.headers, **length}, "timeout": timeout}


def _names(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def lost(error: httpx.RequestError) -> Lost:
    """What became of a request that nothing came back for."""
    if isinstance(error, httpx.ReadTimeout | httpx.PoolTimeout):
        return Lost("The time given for the call is over.", late=True)
    unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    url = error.request.url
    where = f"{url.scheme}://{url.netloc.decode()}"  # without what a URL may hold of a user's name and password
    what = f"The server at {where} cannot be reached" if unsent else f"The connection to {where} broke"
    return Lost(f"{what} ({str(error) or type(error).__name__}).", sent=not unsent)


def _blocks(call: Call) -> Iterator[bytes]:
    """The body, block by block; tells what is sent."""
    done = 0
    for block in _pieces(call.body):
        yield block
        done += len(block)
        if call.sent is not None:
            call.sent(done)


async def _blocks_aside(call: Call) -> AsyncIterator[bytes]:
    """The same; files are read in a thread."""
    done, blocks = 0, _pieces(call.body)
    aside = any(isinstance(part, Path) for part in call.body)
    while block := (await asyncio.to_thread(next, blocks, b"") if aside else next(blocks, b"")):
        yield block
        done += len(block)
        if call.sent is not None:
            call.sent(done)


def _pieces(body: Body) -> Iterator[bytes]:
    for part in body:
        if isinstance(part, bytes):
            yield from (part[start : start + BLOCK] for start in range(0, len(part), BLOCK))
            continue
        try:
            with part.open("rb") as file:
                while block := file.read(BLOCK):
                    yield block
        except OSError as error:
            raise InvalidInput(f"{part} cannot be read any more ({error.strerror})") from error


class Ended(Struct, Generic[T], frozen=True):
    """A call is over, and came to this."""

    value: T


class Run(Generic[T]):
    """One call, as far as it has come."""

    def __init__(self, steps: Steps[T], client: httpx.Client) -> None:
        self._steps, self._transport = steps, Transport(client)

    def advance(self) -> Delta | Ended[T]:
        """Go on to the next thing that is told, or to the end."""
        outcome: Any = None
        try:
            while not isinstance(step := self._steps.send(outcome), Delta):
                outcome = self._transport.perform(step)
            return step
        except StopIteration as end:
            self.close()
            return Ended(end.value)
        except BaseException:
            self.close()
            raise

    def finish(self) -> T:
        """Go on to the end; returns what it came to."""
        while not isinstance(last := self.advance(), Ended):
            pass
        return last.value

    def close(self) -> None:
        """End it, wherever it is."""
        self._steps.close()
        self._transport.close()


class AsyncRun(Generic[T]):
    """One call, as far as it has come, in an asyncio loop."""

    def __init__(self, steps: Steps[T], client: httpx.AsyncClient) -> None:
        self._steps, self._transport = steps, AsyncTransport(client)

    async def advance(self) -> Delta | Ended[T]:
        """Go on to the next thing that is told, or to the end."""
        outcome: Any = None
        try:
            while not isinstance(step := self._steps.send(outcome), Delta):
                outcome = await self._transport.perform(step)
            return step
        except StopIteration as end:
            await self.close()
            return Ended(end.value)
        except BaseException:
            await self.close()
            raise

    async def finish(self) -> T:
        """Go on to the end; returns what it came to."""
        while not isinstance(last := await self.advance(), Ended):
            pass
        return last.value

    async def close(self) -> None:
        """End it, wherever it is."""
        self._steps.close()
        await self._transport.close()
