"""Everything about the engine that takes a GPU, in one run of less than 8 minutes: `python -m benchmarks.gpu`.

1. What this torch, Triton and card support: `varlen_attn`'s paths, the paged kernel, CUDA graphs.
2. Agreement with float32 of tiny checkpoints, dense and mixture of experts, in float32 and bfloat16.
3. A checkpoint of Qwen3-VL-4B's shape with random weights, beside transformers' `generate()`, which is what
   `transformers serve` calls for a vision-language model: decoding alone and 32 at once, and the time to the first
   token of a 1080p picture cold, remembered by the tower's cache, and remembered whole.

Prints Markdown; `--json FILE` keeps the figures. It needs no network and no server.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from PIL import Image

from benchmarks.agreement import agreement, model_inputs
from benchmarks.checkpoint import write_checkpoint, write_experts
from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.demo.pictures import examination
from qwen3vl_compat.engines.local.checkpoint import Checkpoint, read_checkpoint
from qwen3vl_compat.engines.local.engine import LocalEngine
from qwen3vl_compat.engines.local.prompt import Prompt, PromptBuilder
from qwen3vl_compat.engines.local.runner import Runner
from qwen3vl_compat.events import TextDelta
from qwen3vl_compat.media.image import decode_image
from qwen3vl_compat.messages import Caller, Message, Picture, Request, Sampling, Text
from qwen3vl_compat.settings import ModelSettings, load_settings

FOUR_B = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262_144,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000, "mrope_section": [24, 20, 20],
                        "mrope_interleaved": True},
}  # fmt: skip
FOUR_B_TOWER = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
    "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
Figures = dict[str, Any]


def said(title: str, figures: Figures) -> Figures:
    """Print a section as it is done: a run that is cut short has told what it knew."""
    print(f"\n## {title}\n", *(f"- {name}: {value}" for name, value in figures.items()), sep="\n", flush=True)
    return figures


def tried(call: Callable[[], Any]) -> str:
    """What became of it, in a line."""
    try:
        result = call()
        torch.cuda.synchronize()
    except Exception as error:  # whatever torch raises for a path it lacks
        return f"no: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return f"yes{'' if result is None else f', {result}'}"


def support() -> Figures:
    """Which of varlen_attn's paths work, by trying each."""
    figures: Figures = {
        "torch": torch.__version__, "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(0), "GPUs": torch.cuda.device_count(),
    }  # fmt: skip
    query, keys, values = (torch.randn(96, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (32, 8, 8))
    wide = [each.repeat_interleave(4, dim=1) for each in (keys, values)]
    borders = torch.tensor([0, 32, 96], dtype=torch.int32, device="cuda")
    blocks = torch.randn(8, 256, 8, 128, device="cuda", dtype=torch.bfloat16)
    table = torch.tensor([[3], [5]], dtype=torch.int32, device="cuda")
    used = torch.tensor([20, 40], dtype=torch.int32, device="cuda")

    def varlen(*more: Any, **options: Any) -> None:
        from torch.nn.attention.varlen import varlen_attn

        pair = more or wide
        varlen_attn(query, *pair, borders, borders, 64, 64, **options)

    for name, call in {
        "varlen_attn": varlen,
        "varlen_attn, causal": lambda: varlen(window_size=(-1, 0)),
        "varlen_attn, grouped heads": lambda: varlen(keys, values, enable_gqa=True),
        "varlen_attn, seqused_k": lambda: varlen(seqused_k=used),
        "varlen_attn, block_table": lambda: varlen(blocks, blocks, enable_gqa=True, seqused_k=used, block_table=table),
        "varlen_attn, num_splits": lambda: varlen(num_splits=1),
    }.items():
        figures[name] = tried(call)
    return said("What is supported here", figures)


def asked(checkpoint: Checkpoint, *users: tuple[Text | Picture, ...]) -> list[Prompt]:
    """Prompts of one turn each."""
    build = PromptBuilder(checkpoint).build
    return [build(Request(id="r", created=0, model="m", messages=(Message("user", user),))) for user in users]


def drawn(picture: Image.Image, checkpoint: Checkpoint, folder: Path) -> Picture:
    """A picture as a client's would come."""
    picture.save(folder / "picture.png")
    return decode_image((folder / "picture.png").read_bytes(), checkpoint.spec)


def equivalence(work: Path) -> Figures:
    """Dense and mixture of experts, float32 and bfloat16, against float32 on the same GPU."""
    figures: Figures = {}
    for name in ("dense", "mixture of experts"):
        folder = MODEL if name == "dense" else work / "experts"
        if folder != MODEL:
            write_experts(folder)
        checkpoint = read_checkpoint(str(folder), "")
        one, two = (drawn(item.picture, checkpoint, work) for item in islice(examination(1, 40), 2))
        prompts = asked(
            checkpoint, (Text("Hello"),), (one, Text("Read the text.")), (one, Text(" and "), two, Text("?")),
            (Text("What time is it? " * 8),), (two, Text("Read the text.")),
        )  # fmt: skip
        for dtype in ("float32", "bfloat16"):
            runner = Runner(checkpoint, ModelSettings(device="cuda", dtype=dtype, kv_share=0.02))  # type: ignore[arg-type]
            model_class: Any = getattr(transformers, checkpoint.architecture)
            oracle = model_class.from_pretrained(folder, dtype=getattr(torch, dtype)).float().to("cuda").eval()
            found = agreement(checkpoint, runner, oracle, prompts, 32)
            figures[f"{name}, {dtype}, {type(runner.decoding).__name__}"] = str(found)
    return said("Agreement with float32", figures)


def noise(seed: int, width: int = 1920, height: int = 1080) -> Image.Image:
    """A photograph of nothing."""
    coarse = Image.frombytes("RGB", (60, 34), Random(seed).randbytes(60 * 34 * 3))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Wall-clock seconds, with the GPU idle at both ends."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    yield
    torch.cuda.synchronize()
    into.append(time.perf_counter() - began)


def request(parts: tuple[Text | Picture, ...], tokens: int, tenant: str = "t") -> Request:
    """A greedy request."""
    sampling = Sampling(temperature=0.0, max_tokens=tokens)
    messages = (Message("user", parts),)
    return Request(
        id="r", created=0, model="qwen3-vl", messages=messages, sampling=sampling, caller=Caller(tenant, "k")
    )


async def first_and_rest(engine: LocalEngine, each: Request) -> tuple[float, float]:
    """Seconds to the first token, and from there to the last."""
    began, first = time.perf_counter(), 0.0
    async for event in engine.generate(each):
        if isinstance(event, TextDelta):
            first = first or time.perf_counter()
    return first - began, time.perf_counter() - first


async def ours(folder: Path, checkpoint: Checkpoint, work: Path) -> Figures:
    """The engine, in this process."""
    engine = LocalEngine(load_settings(flags={"model.path": str(folder), "model.device": "cuda"}, environment={}))
    began = time.perf_counter()
    await engine.start()
    assert engine._worker is not None
    runner = engine._worker.runner
    figures: Figures = {
        "start, s": round(time.perf_counter() - began, 1),
        "decode step": type(runner.decoding).__name__,
    }
    words = (Text("Tell me about the sea. "),)
    await first_and_rest(engine, request(words, 64))
    alone = [await first_and_rest(engine, request(words, 256)) for _ in range(3)]
    step = statistics.median(rest for _, rest in alone) / 255
    weights = sum(each.nbytes for each in {id(w): w for w in runner.decoder(runner.memory).parameters()}.values())
    source = torch.empty(2**30, dtype=torch.int32, device="cuda")
    copies = list[float]()
    for _ in range(5):
        with timed(copies):
            source.clone()
    bandwidth = 2 * source.nbytes / min(copies)
    del source
    floor = weights / bandwidth
    figures |= {
        "one alone, ms a token": round(1000 * step, 2), "one alone, tokens/s": round(1 / step, 1),
        "weights read for a token, GB": round(weights / 1e9, 2),
        "bandwidth of a copy, TB/s": round(bandwidth / 1e12, 2),
        "floor, ms": round(1000 * floor, 2), "share of the floor's speed": round(floor / step, 2),
    }  # fmt: skip
    began = time.perf_counter()
    await asyncio.gather(*(first_and_rest(engine, request((Text(f"{number}: go on. "),), 256)) for number in range(32)))
    figures["32 at once, tokens/s"] = round(32 * 256 / (time.perf_counter() - began))
    cold, kept, whole = list[float](), list[float](), list[float]()
    for seed in range(4):
        shown = drawn(noise(seed), checkpoint, work)
        firsts = [
            (await first_and_rest(engine, request((*before, shown, Text("Read it.")), 4)))[0]
            for before in ((), (Text(f"Number {seed}. "),), (Text(f"Number {seed}. "),))
        ]
        for times, first in zip((cold, kept, whole), firsts, strict=True):
            times.append(first)
    for name, times in (("cold", cold), ("tower's cache", kept), ("prefix", whole)):
        figures[f"1080p picture, first token, {name}, ms"] = round(1000 * statistics.median(times[1:]))
    await engine.close()
    return said("Qwen3-VL-4B's shape, this engine", figures)


@torch.inference_mode()
def theirs(folder: Path, checkpoint: Checkpoint, work: Path) -> Figures:
    """`generate()`, one request at a time, as `transformers serve` runs it."""
    model_class: Any = getattr(transformers, checkpoint.architecture)
    model = model_class.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda:0").eval()
    runner: Any = type("Pixels", (), {})()
    runner._spec, runner.device = checkpoint.spec, torch.device("cuda:0")
    from qwen3vl_compat.engines.local.runner import pixel_table

    runner._table = pixel_table(checkpoint).to("cuda:0")
    runner._pixels = lambda picture: Runner._pixels(runner, picture).to(torch.bfloat16)
    shown = drawn(noise(9), checkpoint, work)
    text, picture = asked(checkpoint, (Text("Tell me about the sea. "),), (shown, Text("Read it.")))
    times: dict[str, list[float]] = {"text": [], "picture": []}
    for name, prompt, tokens in (("text", text, 128), ("picture", picture, 1)):
        ids = torch.from_numpy(prompt.ids)[None].to("cuda:0")
        inputs = model_inputs(model.config, ids, prompt, runner)
        for _ in range(3):
            with timed(times[name]):
                model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    step = min(times["text"][1:]) / 128
    return said(
        "Qwen3-VL-4B's shape, generate()",
        {
            "one alone, ms a token": round(1000 * step, 2),
            "one alone, tokens/s": round(1 / step, 1),
            "1080p picture, first token, ms": round(1000 * statistics.median(times["picture"][1:])),
        },
    )


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This takes a GPU, and torch sees none.")
    began = time.perf_counter()
    found: dict[str, Figures] = {"support": support()}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        found["agreement"] = equivalence(work)
        folder = work / "four-b"
        write_checkpoint(folder, FOUR_B, FOUR_B_TOWER, device="cuda")
        checkpoint = read_checkpoint(str(folder), "")
        found["generate()"] = theirs(folder, checkpoint, work)
        torch.cuda.empty_cache()
        found["engine"] = asyncio.run(ours(folder, checkpoint, work))
    found["run"] = said("This run", {"seconds": round(time.perf_counter() - began)})
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
