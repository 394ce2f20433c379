"""Decodes hostile files while somebody watches what it opens: `python -m tests.media.exposed MODE CANARY PORT`.

`sandboxed` does it all in children, as the server does. `guarded` gives FFmpeg the texts it takes for addresses in this
very process, and `unguarded` does so without telling it the format: what it opens then is what the guard prevents.
"""

import asyncio
import os
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import av

from qwen3vl_compat.errors import ApiError, InvalidRequest
from qwen3vl_compat.media import child, frames
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.media.render import Medium, Renderer, Rendering
from qwen3vl_compat.media.sandbox import Sandbox, SandboxLimits
from qwen3vl_compat.media.sniff import kind_of
from qwen3vl_compat.messages import Media
from tests.media.hostile import address_takers, corpus

SPEC = VisionSpec(min_pixels=65_536, max_pixels=16_777_216)
USUAL = {"image": "png", "video": "mp4", "document": "pdf"}
BEGIN = "/the-watch-begins"


def watched() -> None:
    """Say in the trace that from here on it counts."""
    with suppress(OSError):
        os.close(os.open(BEGIN, os.O_RDONLY))


async def sandboxed(canary: Path, port: int) -> None:
    files = [*corpus(), *((name, "video", data) for name, data in address_takers(canary, port).items())]
    sandbox = Sandbox(SandboxLimits(memory=2**30))
    await sandbox.start()
    renderer = Renderer(sandbox, Rendering(spec=SPEC))
    for _, claim, data in files:
        kind = kind_of(data)
        fitting = kind if kind in ("jpeg", "png", "webp", "gif", "mp4", "webm", "pdf") else USUAL[claim]
        with suppress(ApiError):
            await renderer.render(Medium(Media(source=data), data, fitting))
    await sandbox.close()


def in_process(canary: Path, port: int) -> None:
    child._warm()
    files = address_takers(canary, port)
    os.chdir(canary.parent)
    watched()
    for data in files.values():
        with suppress(InvalidRequest, av.FFmpegError, OSError, ValueError):
            # Without the look at its boxes that comes first: this is about FFmpeg's own guard.
            list(frames._Film(BytesIO(data), "mp4").packets())


def main() -> None:
    mode, canary, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if mode == "sandboxed":
        asyncio.run(sandboxed(canary, port))
        return
    if mode == "unguarded":
        formats: Any = {"mp4": None}
        frames._FORMATS = formats
    in_process(canary, port)


if __name__ == "__main__":
    main()
