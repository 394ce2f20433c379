"""Decoding in child processes: a few warm ones, each with bounds, replaced when used up, hung or dead."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest, Overloaded
from qwen3vl_compat.media.jobs import ANSWER, HEAD, MOST_WRITTEN, Footage, Job, Pictures, Refused, Reply, refusal
from qwen3vl_compat.messages import Picture

log = logging.getLogger(__name__)

KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
"""All of the environment that a child gets to see."""
ALONE = {
    "LC_ALL": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    # What one job has used, the next one uses again: giving it back and faulting it in takes as long as the decoding.
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "PILLOW_BLOCKS_MAX": "64",
}
START = 60.0
"""Seconds a child may take to start; half a second, where the machine is idle."""
LARGEST_REPLY = 2**24
"""Bytes of a reply without its patches."""


class SandboxLimits(Struct, frozen=True, kw_only=True):
    """How many children there are and what one of them may use for a job."""

    children: int = 2
    memory: int = 2 * 2**30
    """Bytes of address space."""
    seconds: float = 15.0
    cpu_seconds: int = 10
    jobs: int = 200
    """After which a child is replaced."""
    waiting: int = 256
    """Jobs that may wait for a child; one more is refused with 503."""


class _Child:
    """One process and the socket to it."""

    def __init__(self, limits: SandboxLimits) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.done = 0
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "qwen3vl_compat.media.child"]
                + [str(each) for each in (theirs.fileno(), limits.memory, limits.cpu_seconds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in KEPT if name in os.environ} | ALONE,
            )

    async def ready(self) -> bool:
        """Whether it has started."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(START):
                return bool(await asyncio.get_running_loop().sock_recv(self.channel, 1))
        return False

    async def do(self, job: Job, medium: BinaryIO, result: BinaryIO) -> tuple[Reply, bool]:
        """The reply, and whether the child can do another; raises OSError or EOFError when it dies.

        The child reads `medium` and writes patches to `result`.
        """
        said = msgspec.msgpack.encode(job)
        socket.send_fds(self.channel, [HEAD.pack(len(said))], [medium.fileno(), result.fileno()])
        await asyncio.get_running_loop().sock_sendall(self.channel, said)
        size, written, last = ANSWER.unpack(await self._exactly(ANSWER.size))
        if size > LARGEST_REPLY or written > MOST_WRITTEN:
            raise EOFError
        reply = msgspec.msgpack.decode(await self._exactly(size), type=Reply)
        if isinstance(reply, Pictures):
            reply = await asyncio.to_thread(_filled, reply, result, written)
        self.done += 1
        return reply, not last

    async def _exactly(self, size: int) -> bytearray:
        data, loop = bytearray(size), asyncio.get_running_loop()
        view = memoryview(data)
        while view:
            count = await loop.sock_recv_into(self.channel, view)
            if not count:
                raise EOFError
            view = view[count:]
        return data

    async def end(self) -> None:
        """Kill it, whatever it does."""
        self.channel.close()
        self.process.kill()
        await asyncio.to_thread(self.process.wait)


def _filled(reply: Pictures, result: BinaryIO, written: int) -> Pictures:
    """The pictures with their patches, each as many bytes as its grid needs."""
    pixels = [picture.grid[1] * picture.grid[2] * picture.frames for picture in reply.pictures]
    side, rest = divmod(written, sum(pixels) or 1)
    if rest:
        raise EOFError
    pictures: list[Picture] = []
    at = 0
    for picture, size in zip(reply.pictures, pixels, strict=True):
        patches = os.pread(result.fileno(), size * side, at)
        if len(patches) != size * side:
            raise EOFError
        pictures.append(replace(picture, patches=patches))
        at += size * side
    return replace(reply, pictures=tuple(pictures))


class Sandbox:
    """Runs jobs on files that nobody has looked into yet. Children start on first use, or all by `start`."""

    def __init__(self, limits: SandboxLimits = SandboxLimits()) -> None:  # noqa: B008
        self._limits = limits
        self._idle: list[_Child] = []
        self._free = asyncio.Semaphore(limits.children)
        self._waiting = 0
        self._closed = False
        self._tasks: set[asyncio.Task[object]] = set()
        self.deaths = 0
        """Children that died or had to be killed over a job."""

    async def start(self) -> None:
        """Have all children ready."""
        self._idle += [child for child in [self._new() for _ in range(self._limits.children)] if await child.ready()]

    async def close(self) -> None:
        """End all children; jobs under way are refused."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._idle:
            await self._idle.pop().end()

    async def run(self, job: Job, medium: bytes | Path) -> Pictures | Footage:
        """Do the job on these bytes or this file.

        InvalidRequest for a medium that is refused or on which the child fails; Overloaded when too many wait. A
        caller that leaves does not disturb the child: its job goes on to its end, which is near.
        """
        if self._waiting >= self._limits.waiting or self._closed:
            raise Overloaded("Too many pictures, videos and documents are waiting to be decoded.", retry_after=2)
        self._waiting += 1
        task = asyncio.create_task(self._run(job, medium))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        reply = await asyncio.shield(task)
        if isinstance(reply, Refused):
            raise InvalidRequest(reply.message, code=reply.code)
        return reply

    async def _run(self, job: Job, medium: bytes | Path) -> Reply:
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            with await asyncio.to_thread(_opened, medium) as file, _scratch() as result:
                return await self._with_child(job, file, result)
        finally:
            self._free.release()

    async def _with_child(self, job: Job, medium: BinaryIO, result: BinaryIO) -> Reply:
        child = self._idle.pop() if self._idle else await self._started()
        fit = False
        try:
            async with asyncio.timeout(self._limits.seconds):
                reply, fit = await child.do(job, medium, result)
        except (TimeoutError, OSError, EOFError, msgspec.DecodeError):
            self.deaths += 1
            log.info("a decoding child was lost over a %s job", type(job).__name__)
            return refusal(job)
        finally:
            if fit and child.done < self._limits.jobs:
                self._idle.append(child)
            else:
                self._replace(child)
        return reply

    async def _started(self) -> _Child:
        child = self._new()
        if await child.ready():
            return child
        await child.end()
        raise Overloaded("Nothing can be decoded now.", retry_after=5)

    def _new(self) -> _Child:
        return _Child(self._limits)

    def _replace(self, child: _Child) -> None:
        """End a child, and have another one ready when it is wanted."""

        async def renew() -> None:
            await child.end()
            if not self._closed and len(self._idle) < self._limits.children:
                self._idle.append(await self._started())

        task = asyncio.create_task(renew())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _opened(medium: bytes | Path) -> BinaryIO:
    """The medium as a file that a child can be handed."""
    if isinstance(medium, Path):
        return medium.open("rb")
    file = _scratch()
    file.write(medium)
    file.seek(0)
    return file


def _scratch() -> BinaryIO:
    """A file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("medium"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
