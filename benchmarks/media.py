"""What normalisation saves, and what media cost to decode: `python -m benchmarks.media [--json FILE]`.

Tokens and bytes of keys and values are those of Qwen3-VL-4B (36 layers, 8 heads of 128, two bytes each) with its own
budgets; "without" is the processor's own resizing. Times are of one decoding child, from the file's bytes to patches
in this process, beside the same in this very process and transformers' own processor.
"""

import argparse
import asyncio
import hashlib
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path

import psutil
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen3vl_compat.media.image import decode_image, grid_for
from qwen3vl_compat.media.jobs import PictureJob
from qwen3vl_compat.media.limits import Bounds, VideoSpec, VisionSpec
from qwen3vl_compat.media.render import Medium, Renderer, Rendering
from qwen3vl_compat.media.sandbox import Sandbox, SandboxLimits
from qwen3vl_compat.messages import Media, Video
from tests.media.crafted import drawing
from tests.media.films import film, long_film, pdf_of, steady

SPEC = VisionSpec(min_pixels=65_536, max_pixels=16_777_216, video=VideoSpec(min_pixels=4096, max_pixels=25_165_824))
KV_BYTES = 36 * 2 * 8 * 128 * 2
"""Of one token: layers, keys and values, heads, width, bfloat16."""
PHOTOGRAPHS = {"12 Mpx": (4032, 3024), "24 Mpx": (5712, 4284), "48 Mpx": (8064, 6048)}


def jpeg(size: tuple[int, int], quality: int = 90) -> bytes:
    """A photograph-like picture as a file."""
    out = BytesIO()
    drawing(size[0] // 4, size[1] // 4).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def savings() -> list[dict[str, object]]:
    """Tokens and bytes with and without the cap on the longer side."""
    rows: list[dict[str, object]] = []
    for name, (width, height) in PHOTOGRAPHS.items():
        rows_, columns = grid_for(width, height, SPEC)
        plain_rows, plain_columns = grid_for(width, height, SPEC, longest_side=10**6)
        with_it, without = rows_ * columns // 4, plain_rows * plain_columns // 4
        rows.append(
            {
                "photograph": f"{name}, {width} x {height}",
                "tokens without": without,
                "tokens with": with_it,
                "KV MB without": round(without * KV_BYTES / 1e6),
                "KV MB with": round(with_it * KV_BYTES / 1e6),
                "saved": f"{1 - with_it / without:.0%}",
            }
        )
    return rows


async def median_ms(work: Callable[[], Awaitable[object]], repeats: int) -> float:
    """The median of several runs, in milliseconds."""
    taken: list[float] = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(taken[2:]), 1)


async def times(repeats: int) -> list[dict[str, object]]:
    """Pictures, from bytes to patches."""
    sandbox = Sandbox(SandboxLimits(children=1, jobs=10**6))
    await sandbox.start()
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": SPEC.min_pixels, "longest_edge": SPEC.max_pixels})
    rows: list[dict[str, object]] = []
    for name, size in {"1080p": (1920, 1080), **PHOTOGRAPHS}.items():
        data = jpeg(size)

        async def in_child(data: bytes = data) -> None:
            await sandbox.run(PictureJob(spec=SPEC, bounds=Bounds()), data)

        async def here(data: bytes = data) -> None:
            decode_image(data, SPEC)

        async def reference(data: bytes = data) -> None:
            processor(images=[Image.open(BytesIO(data)).convert("RGB")], return_tensors="np")

        runs = repeats if size[0] < 4000 else max(3, repeats // 5)
        rows.append(
            {
                "JPEG": f"{name}, {len(data) / 1e6:.1f} MB",
                "child ms": await median_ms(in_child, runs),
                "in process ms": await median_ms(here, runs),
                "transformers ms": await median_ms(reference, 3),
            }
        )
    await sandbox.close()
    return rows


def cpu_seconds() -> float:
    """Processor time of this process and its children, those that have ended too."""
    own = psutil.Process().cpu_times()
    living = [child.cpu_times() for child in psutil.Process().children()]
    return own.user + own.system + own.children_user + own.children_system + sum(t.user + t.system for t in living)


def _scenes(count: int, width: int, height: int) -> list[Image.Image]:
    """A scene for each."""
    return [drawing(width // 8, height // 8, seed=number).resize((width, height)) for number in range(count)]


async def longer(repeats: int) -> list[dict[str, object]]:
    """Documents and videos."""
    sandbox = Sandbox(SandboxLimits(children=1, jobs=10**6))
    await sandbox.start()
    renderer = Renderer(sandbox, Rendering(spec=SPEC))
    scenes = [drawing(1280, 720, seed=number) for number in range(5)]
    media = {
        "PDF, 10 pages of A4": ("pdf", pdf_of([drawing(1240, 1754, seed=page) for page in range(10)], 150)),
        "MP4 (H.264), 720p, 30 s": (
            "mp4", film(steady([scenes[number // 25 % 5] for number in range(750)], 25), gop=50,
                        options={"preset": "veryfast"})),
        "WebM (VP9), 720p, 10 s": (
            "webm", film(steady([scenes[number // 25 % 5] for number in range(250)], 25), gop=50, container="webm",
                         codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"})),
        "MP4, 720p, 2 hours, a key frame every 2 s": ("mp4", long_film(_scenes(24, 1280, 720), 300)),
        "MP4, 720p, 2 hours, a key frame every 10 s": ("mp4", long_film(_scenes(12, 1280, 720), 600, gop=250)),
        "MP4, 1080p, 10 min, a key frame every 10 s": ("mp4", long_film(_scenes(5, 1920, 1080), 120, gop=250)),
    }  # fmt: skip
    rows: list[dict[str, object]] = []
    for name, (kind, data) in media.items():
        file = Path(tempfile.gettempdir()) / "benchmark-medium"
        file.write_bytes(data)
        medium = Medium(Media(source=b""), file, kind, hashlib.sha256(data).hexdigest())
        runs = max(3, repeats // 5) if len(data) < 10**8 else 3
        (made,) = [part for part in await renderer.render(medium) if isinstance(part, Video)] or [None]

        async def shown(medium: Medium = medium) -> None:
            await Renderer(sandbox, Rendering(spec=SPEC)).render(medium)

        before = cpu_seconds()
        taken = await median_ms(shown, runs)
        rows.append(
            {
                "medium": f"{name}, {len(data) / 1e6:.1f} MB",
                "shown": f"{2 * len(made.pairs)} frames, {made.times[0]:.1f} to {made.times[-1]:.1f} s" if made else "",
                "s": round(taken / 1000, 2),
                "CPU s": round((cpu_seconds() - before) / (runs + 2), 2),
            }
        )
        file.unlink()
    await sandbox.close()
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """In Markdown."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {
        "savings": savings(),
        "times": asyncio.run(times(options.repeats)),
        "longer": asyncio.run(longer(options.repeats)),
    }
    print(
        f"{platform.machine()}, {psutil.cpu_count()} cores; medians of {options.repeats} runs, fewer of the large ones"
    )
    for rows in found.values():
        print("\n" + table(rows))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
