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
from qwen3vl_compat.queue import Pool

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
    """Jobs that may wait for a child, each tenant's in turn; one more is refused with 503."""


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
        self._places: Pool[_Child | None] = Pool(
            [None] * limits.children,
            limits.waiting,
            "Too many pictures, videos and documents are waiting to be decoded.",
        )
        self._closed = False
        self._jobs: set[asyncio.Task[Reply]] = set()
        self._renewals: set[asyncio.Task[None]] = set()
        self.deaths = 0
        """Children that died or had to be killed over a job."""

    async def start(self) -> None:
        """Have all children ready."""
        self._renew_all()
        await asyncio.gather(*self._renewals)

    async def close(self) -> None:
        """End all children; jobs under way are given up."""
        self._closed = True
        self._places.refuse_all(_ended())
        await asyncio.sleep(0)  # a job that is cancelled before it began would not give its child back
        for job in self._jobs:
            job.cancel()
        while self._jobs or self._renewals:
            await asyncio.gather(*self._jobs, *self._renewals, return_exceptions=True)
        self._renew_all()
        await asyncio.gather(*self._renewals)

    def _renew_all(self) -> None:
        places, self._places.free = self._places.free, []
        for child in places:
            self._renew(child)

    async def run(self, job: Job, medium: bytes | Path, tenant: str = "") -> Pictures | Footage:
        """Do the job on these bytes or this file, when it is the tenant's turn.

        InvalidRequest for a medium that is refused or on which the child fails, its param `pages` or `start` where
        those are at fault; Overloaded when too many wait. A caller that leaves waits no longer; a job that has begun
        goes on to its end, which is near.
        """
        if self._closed:
            raise _ended()
        child = await self._places.take(tenant)
        if self._closed:
            self._places.give(child)
            raise _ended()
        task = asyncio.create_task(self._run(child, job, medium))
        self._jobs.add(task)
        task.add_done_callback(self._ended)
        reply = await asyncio.shield(task)
        if isinstance(reply, Refused):
            raise InvalidRequest(reply.message, code=reply.code, param=reply.about or None)
        return reply

    def _ended(self, task: asyncio.Task[Reply]) -> None:
        self._jobs.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if the caller has left

    async def _run(self, child: _Child | None, job: Job, medium: bytes | Path) -> Reply:
        fit = False
        try:
            child = child or await self._started()
            fit = True
            with await asyncio.to_thread(_opened, medium) as file, _scratch() as result:
                fit = False
                async with asyncio.timeout(self._limits.seconds):
                    reply, fit = await child.do(job, file, result)
        except (TimeoutError, ConnectionError, EOFError, msgspec.DecodeError):
            self.deaths += 1
            log.info("a decoding child was lost over a job of kind %s", type(job).__name__)
            return refusal(job)
        except OSError as error:
            log.error("a medium cannot be handed to the process that decodes it: %s", error.strerror)
            raise Overloaded("Nothing can be decoded now.", retry_after=5) from None
        finally:
            if fit and child is not None and child.done < self._limits.jobs:
                self._places.give(child)
            else:
                self._renew(child)
        return reply

    async def _started(self) -> _Child:
        child, ready = _Child(self._limits), False
        try:
            ready = await child.ready()
        finally:
            if not ready:
                await child.end()
        if not ready:
            log.error("the process that decodes media cannot start")
            raise Overloaded("Nothing can be decoded now.", retry_after=5)
        return child

    def _renew(self, old: _Child | None) -> None:
        """End a child, and put another one in its place."""

        async def renew() -> None:
            child = None
            try:
                if old is not None:
                    await old.end()
                if not self._closed:
                    child = await self._started()
            except Overloaded:
                pass  # the next job tries again, and says so
            finally:
                self._places.give(child)

        task = asyncio.create_task(renew())
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)


def _ended() -> Overloaded:
    return Overloaded("Nothing is decoded any more.", retry_after=5)


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
