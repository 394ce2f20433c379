"""A process that decodes what strangers sent: one job at a time, within bounds, and then it may be thrown away.

It is started with a socket, gets a job and two open files with each message, reads the one and writes patches to the
other. Before the first job it gives up what it will not need: all free file descriptors but two, and memory beyond its
bound. So nothing a decoder does can open a file or a connection. It holds no secret and imports no torch.
"""

import codecs
import ctypes
import importlib
import os
import pkgutil
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import BinaryIO

import av
import msgspec
from msgspec.structs import replace
from PIL import Image

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media import frames, pdf
from qwen3vl_compat.media.image import decode_image, digest_of, fitted, opened_image
from qwen3vl_compat.media.jobs import (
    ANSWER,
    HEAD,
    MOST_WRITTEN,
    ClipJob,
    FramesJob,
    Job,
    LookJob,
    PagesJob,
    PictureJob,
    Pictures,
    Refused,
    Reply,
    refusal,
)
from qwen3vl_compat.media.limits import LONGEST_SIDE, Bounds, VisionSpec
from qwen3vl_compat.media.video import grid_of_frames
from qwen3vl_compat.messages import Picture

FAT = 2**29
"""Bytes held by a child that does not go on to another job."""
NO_NEW_PRIVILEGES, DIE_WITH_PARENT, KILL = 38, 1, 9


def made(job: Job, file: BinaryIO) -> Reply:
    """Do a job; raises InvalidRequest, and anything else that decoders raise."""
    match job:
        case PictureJob():
            picture = decode_image(file.read(), job.spec, job.bounds, longest_side=job.longest_side)
            return Pictures(pictures=(picture,))
        case LookJob():
            return frames.look(file, job)
        case ClipJob():
            return Pictures(pictures=tuple(frames.clip(file, job)))
        case FramesJob():
            return Pictures(pictures=tuple(_paired(file, job)))
        case PagesJob():
            return pdf.pages(file, job)


def _paired(file: BinaryIO, job: FramesJob) -> Iterator[Picture]:
    data = [file.read(length) for length in job.lengths]
    images: list[tuple[int, Image.Image]] = []
    grid = job.grid
    for number, each in enumerate(data, job.first):
        image, width, height = opened_image(each, job.bounds, job.spec, LONGEST_SIDE)
        grid = grid or grid_of_frames(job.count, width, height, job.spec)
        images.append((number, fitted(image, *grid, job.spec)))
    for at in range(0, len(images), 2):
        pair = images[at : at + 2] if at + 1 < len(images) else [images[at]] * 2
        name = digest_of(b"".join(data[at : at + 2]), job.spec, grid, job.first + at, *map(len, data[at : at + 2]))
        yield frames.pair(pair, job.spec, name)


def _answered(job: Job, file: BinaryIO) -> tuple[Reply, bool]:
    """The reply to a job, and whether the child is still fit for another."""
    try:
        return made(job, file), True
    except InvalidRequest as error:
        return Refused(error.message, error.code, error.param or ""), True
    except MemoryError:
        return refusal(job), False
    except Exception:
        return refusal(job), True


def _held(status: int | None) -> int:
    """Bytes of memory in use. (getrusage tells the most there ever was, and begins with the parent's.)"""
    return 0 if status is None else int(os.pread(status, 200, 0).split()[1]) * resource.getpagesize()


def _serve(channel: socket.socket, cpu_seconds: int, status: int | None) -> None:
    decoder = msgspec.msgpack.Decoder(Job)
    while True:
        head, files, _, _ = socket.recv_fds(channel, HEAD.size, 2)
        if not head:
            return
        job = decoder.decode(_exactly(channel, HEAD.unpack(head)[0]))
        used = resource.getrusage(resource.RUSAGE_SELF)
        end = int(used.ru_utime + used.ru_stime) + cpu_seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))
        with os.fdopen(files[0], "rb") as medium, os.fdopen(files[1], "wb", buffering=0) as result:
            reply, fit = _answered(job, medium)
            written = 0
            if isinstance(reply, Pictures):
                written = sum(_write(picture.patches, result) for picture in reply.pictures)
                reply = replace(reply, pictures=tuple(replace(picture, patches=b"") for picture in reply.pictures))
        fit = fit and _held(status) < FAT
        said = msgspec.msgpack.encode(reply)
        channel.sendall(ANSWER.pack(len(said), written, not fit) + said)
        if not fit:
            return


def _write(data: bytes, result: BinaryIO) -> int:
    view = memoryview(data)
    while view:
        view = view[result.write(view) :]
    return len(data)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            sys.exit(0)
        data += more
    return bytes(data)


def _warm() -> None:
    """Load all that decoders load on first use, while files can still be opened."""
    spec = VisionSpec(min_pixels=1024, max_pixels=2**20)
    for form in ("JPEG", "PNG", "WEBP", "GIF"):
        out = BytesIO()
        Image.new("RGB", (64, 64), "white").save(out, form)
        decode_image(out.getvalue(), spec, Bounds())
    for module in pkgutil.walk_packages(av.__path__, "av."):
        importlib.import_module(module.name)
    look = LookJob(container="mp4", spec=spec, bounds=Bounds(), fps=2)
    shots = frames.look(frames.blank(), look).parts[0]
    list(frames.clip(frames.blank(), ClipJob(container="mp4", spec=spec, grid=(4, 4), digest="", shots=shots)))
    codecs.lookup("utf-16-le")  # in which PDFium tells text
    pdf.pages(pdf.blank(), PagesJob(spec=spec, first=1, last=1, most=1, most_in_all=1, text=True, digest=""))


def _confine(memory: int) -> None:
    """Give up memory beyond `memory` bytes, new files, new privileges, and outliving the parent."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_WRITTEN, MOST_WRITTEN))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        libc.prctl(DIE_WITH_PARENT, KILL, 0, 0, 0)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, free + 2))  # two: a job's medium and its result


def main() -> None:
    """Run as `python -m qwen3vl_compat.media.child SOCKET MEMORY CPU_SECONDS`; ends when the socket is closed."""
    descriptor, memory, cpu_seconds = map(int, sys.argv[1:4])
    channel = socket.socket(fileno=descriptor)
    _warm()
    status = os.open("/proc/self/statm", os.O_RDONLY) if sys.platform == "linux" else None
    _confine(memory)
    with suppress(ConnectionError):
        channel.sendall(b"\x01")
        _serve(channel, cpu_seconds, status)


if __name__ == "__main__":
    main()
