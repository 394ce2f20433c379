"""Writes `video.json` and `video.npz`: what transformers' own Qwen3VLProcessor makes of videos.

Run it from the repository's root, `python -m tests.golden.make_video`, in an environment with what this project asks
for (transformers 5.23.0, torch 2.13.0+cpu, numpy 2.4.6, pillow 13.0.0) and with torchvision 0.28.0 beside it, put in
with `pip install --no-deps torchvision==0.28.0`; the project itself never needs torchvision. It takes half a minute.

torchvision's compiled extension wants CUDA's libraries and does not load beside a CPU build of torch. Its import then
fails only because two detection operators, `nms` and `qnms`, have no schema to register a fake for: `declare_operators`
declares both, and the resizing, which is torch's own, works.

Nothing but numpy is imported outside the functions that need more, so that a test can take `drawn` from here and draw
the same frames again. What stands in the two files is told by `record` and `compare`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "qwen3vl_compat" / "demo" / "model"
REAL = {"shortest_edge": 4096, "longest_edge": 25165824}
"""The sizes in Qwen3-VL's own `video_preprocessor_config.json`."""
FEW_TOKENS = 160
"""Prompts of at most so many tokens have their positions written out; longer ones have the digest alone."""


def drawn(look: str, frame: int, width: int, height: int) -> np.ndarray:
    """Frame number `frame` of a clip, uint8 [height, width, 3]: the same on every machine, with numpy alone.

    Red grows to the right, green downwards, blue along the diagonal and with time; a yellow box moves over them.
    "noisy" adds up to 40 levels either way from a generator whose stream numpy has frozen, seeded by the frame.
    """
    y, x = np.mgrid[:height, :width]
    red = x * 255 // max(width - 1, 1)
    green = y * 255 // max(height - 1, 1)
    blue = ((x + y) * 255 // max(width + height - 2, 1) + 8 * frame) % 511
    picture = np.stack([red, green, np.minimum(blue, 510 - blue)], axis=-1)
    wide, high = max(width // 4, 1), max(height // 4, 1)
    left, top = 5 * frame % (width - wide + 1), 3 * frame % (height - high + 1)
    picture[top : top + high, left : left + wide] = (250, 240, 20)
    if look == "noisy":
        picture = picture + np.random.RandomState(frame).randint(-40, 41, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def clip(frames: int, fps: float | None, width: int = 96, height: int = 64, **more: Any) -> dict[str, Any]:
    """A video: its frames, how many of them a second, its size in pixels.

    `look`: how `drawn` draws it; without one its pixels do not matter. `metadata`: false where the processor is given
    none. `indices`: where the frames, all of them used, stood in the source that `fps` is of.
    """
    return {"frames": frames, "fps": fps, "width": width, "height": height, **more}


def case(name: str, *videos: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One call of the processor; by default a short question after the one video, sampled at the default 2 fps."""
    asked = {
        "messages": [{"role": "user", "content": [*[{"type": "video"}] * len(videos), text("What happens?")]}],
        "pictures": [],
        "size": None,
        "do_sample_frames": True,
        "sampling": {},
    }
    return {"name": name, "videos": list(videos), **asked, **more}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*content: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}

SAMPLED = [
    case("default sizes", clip(250, 25, 640, 360)),
    case("real sizes", clip(250, 25, 640, 360), size=REAL),
    case("real sizes, full HD", clip(300, 30, 1920, 1080), size=REAL),
    case("real sizes, a minute of full HD", clip(120, 2, 1920, 1080), size=REAL),
    case("real sizes, small frames", clip(90, 30, 320, 240), size=REAL),
    case("25 fps", clip(125, 25)),
    case("29.97 fps", clip(300, 29.97), size=REAL),
    case("30000/1001 fps", clip(300, 30000 / 1001), size=REAL),
    case("23.976 fps", clip(240, 23.976), size=REAL),
    case("60 fps", clip(330, 60), size=REAL),
    case("sampled at 1 fps", clip(300, 30), size=REAL, sampling={"fps": 1}),
    case("sampled at half a frame a second", clip(750, 25), size=REAL, sampling={"fps": 0.5}),
    case("sampled at 4 fps", clip(100, 23.976), size=REAL, sampling={"fps": 4}),
    case("sampled faster than the source", clip(12, 10), size=REAL, sampling={"fps": 30}),
    case("a number of frames", clip(200, 25), size=REAL, sampling={"fps": None, "num_frames": 7}),
    case("a number of frames beside the default rate", clip(200, 25), size=REAL, sampling={"num_frames": 7}),
    case("a number above the frames", clip(8, 25), size=REAL, sampling={"fps": None, "num_frames": 12}),
    case("a number above 768", clip(1200, 25, 32, 32), size=REAL, sampling={"fps": None, "num_frames": 770}),
    case("indices at ties", clip(10, 10), size=REAL, sampling={"fps": 7}),
    case("times at ties", clip(8, 2), size=REAL),
    case("an odd number sampled", clip(65, 25), size=REAL),
    case("14 frames and not 15, as floats divide", clip(30, 26), size=REAL, sampling={"fps": 13}),
    case("a short clip has four frames at least", clip(20, 25), size=REAL),
    case("no more frames than there are", clip(3, 25), size=REAL),
    case("two frames", clip(2, 25), size=REAL),
    case("one frame", clip(1, 25), size=REAL),
    case("no metadata", clip(48, None, metadata=False), size=REAL),
    case("an hour, 768 frames", clip(108000, 30, 32, 32), size=REAL),
    case("an hour, default sizes", clip(90000, 25, 48, 32)),
    case("768 frames at the real budget", clip(12000, 25, 320, 180), size=REAL),
    case("no rate asked is the default", clip(100, 25), size=REAL, sampling={"fps": None}),
    case("portrait", clip(100, 25, 360, 640), size=REAL),
    case("portrait, default sizes", clip(100, 25, 360, 640)),
    case("very wide", clip(50, 25, 3200, 32), size=REAL),
    case("very tall, default sizes", clip(50, 25, 40, 1600)),
    case("too wide", clip(50, 25, 6500, 32), size=REAL),
    case("too wide once enlarged", clip(50, 25, 2000, 8), size=REAL),
    case("tiny frames", clip(50, 25, 20, 12), size=REAL),
    case("tiny frames, default sizes", clip(50, 25, 20, 12)),
    case("tiny and narrow frames", clip(50, 25, 10, 70), size=REAL),
    case("sides at ties", clip(50, 25, 80, 48), size=REAL),
]

GIVEN = [
    case("frames given", clip(8, 2), size=REAL, do_sample_frames=False),
    case("five frames given", clip(5, 1), size=REAL, do_sample_frames=False),
    case("three frames given", clip(3, 2), size=REAL, do_sample_frames=False),
    case("two frames given", clip(2, 4), size=REAL, do_sample_frames=False),
    case("one frame given", clip(1, 2), size=REAL, do_sample_frames=False),
    case("one frame given twice", clip(2, 2, indices=[0, 0]), size=REAL, do_sample_frames=False),
    case(
        "frames with their indices", clip(6, 29.97, indices=[0, 15, 30, 61, 90, 299]), size=REAL, do_sample_frames=False
    ),
    case("frames without indices", clip(4, 2, indices=None), size=REAL, do_sample_frames=False),
    case("frames without metadata", clip(4, None, metadata=False), size=REAL, do_sample_frames=False),
    case("frames at a fraction", clip(7, 0.3), size=REAL, do_sample_frames=False),
    case(
        "five frames weigh as four",
        clip(5, 1, 160, 64),
        size={"shortest_edge": 4096, "longest_edge": 46080},
        do_sample_frames=False,
    ),
    case(
        "three frames weigh as four",
        clip(3, 1, 160, 64),
        size={"shortest_edge": 4096, "longest_edge": 30720},
        do_sample_frames=False,
    ),
]

MIXED = [
    case(
        "two videos and a picture",
        clip(100, 25),
        clip(60, 30, 64, 96),
        pictures=[{"width": 100, "height": 60}],
        messages=[user(text("First "), VIDEO, text(", then "), IMAGE, text(" and "), VIDEO, text(". Compare."))],
        size=REAL,
    ),
    case(
        "a picture before two videos of one size",
        clip(100, 25),
        clip(100, 50),
        pictures=[{"width": 64, "height": 64}],
        messages=[user(IMAGE, VIDEO, VIDEO)],
        size=REAL,
    ),
    case(
        "two given videos",
        clip(3, 2),
        clip(4, 1, 64, 64),
        messages=[user(VIDEO, text("\n\n"), VIDEO, text("Which is longer?"))],
        size=REAL,
        do_sample_frames=False,
    ),
    case(
        "several turns",
        clip(100, 25),
        clip(6, 3, 64, 64),
        messages=[
            {"role": "system", "content": "You watch closely."},
            user(VIDEO, text("What is it?")),
            {"role": "assistant", "content": "A box moves over a field of colours."},
            user(text("图中写了什么？ <0.5 seconds>"), VIDEO),
        ],
        size=REAL,
    ),
    case("digits around", clip(8, 4), messages=[user(text("12"), VIDEO, text("3<4.5 seconds>"))], size=REAL),
]

SMALL = {"shortest_edge": 4096, "longest_edge": 32768}
PIXELS = [
    case("pixels: shrunk, smooth", clip(4, 4, 320, 240, look="smooth"), size=SMALL),
    case("pixels: shrunk, noisy", clip(4, 4, 320, 240, look="noisy"), size=SMALL),
    case("pixels: shrunk far, noisy", clip(2, 4, 1280, 720, look="noisy"), size=SMALL),
    case("pixels: enlarged, smooth", clip(4, 4, 40, 24, look="smooth"), size={**SMALL, "shortest_edge": 24000}),
    case("pixels: enlarged, noisy", clip(4, 4, 40, 24, look="noisy"), size={**SMALL, "shortest_edge": 24000}),
    case("pixels: odd sides, five frames", clip(5, 2, 75, 101, look="noisy"), size=REAL, do_sample_frames=False),
    case("pixels: sampled", clip(60, 30, 111, 70, look="smooth"), size=REAL),
    case("pixels: as they are", clip(3, 2, 96, 64, look="noisy"), size=REAL, do_sample_frames=False),
]


def declare_operators() -> Any:
    """Lets torchvision be imported without its extension; what is returned must live as long as torchvision is used."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@cache
def processor_for(shortest_edge: int | None, longest_edge: int | None) -> Any:
    """The reference, with the demonstration model's vocabulary and template; no sizes are the class's own."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    size = {"shortest_edge": shortest_edge, "longest_edge": longest_edge}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(MODEL),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(MODEL / "tokenizer.json"))),
        video_processor=Qwen3VLVideoProcessor(cap_pixels_per_frame=True, **({"size": size} if shortest_edge else {})),
        chat_template=(MODEL / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def source(video: dict[str, Any]) -> np.ndarray:
    """All the frames of a clip; where its pixels do not matter, one black one seen many times."""
    width, height = video["width"], video["height"]
    if "look" in video:
        return np.stack([drawn(video["look"], frame, width, height) for frame in range(video["frames"])])
    return np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint8), (video["frames"], height, width, 3))


def metadata_of(video: dict[str, Any], sampling: bool) -> dict[str, Any]:
    """What is told of a clip. Frames that are given all stand where they stood in the source."""
    told = {name: video[name] for name in ("fps", "width", "height")} | {"total_num_frames": video["frames"]}
    return told if sampling else {**told, "frames_indices": video.get("indices", list(range(video["frames"])))}


def runs(ids: Iterable[int]) -> list[list[int]]:
    return [[number, len(list(run))] for number, run in groupby(ids)]


def positions_of(made: Any) -> tuple[np.ndarray, int]:
    """Positions, int64 [3, tokens], and the shift of the tokens that follow, as the model's own code has them."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)),
        get_vision_position_ids=partial(Qwen3VLModel.get_vision_position_ids, None),
    )
    grids = {name: made.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    positions, shift = Qwen3VLModel.get_rope_index(model, made["input_ids"], made["mm_token_type_ids"], **grids)
    return positions[:, 0].numpy(), int(shift)


def record(asked: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """A case with `text`, the prompt before videos and pictures are put in, and what becomes of it; and the raw output.

    `raises`: the error's class and message. Otherwise `videos_expected`, for each video `frames_indices` (into the
    source), `timestamps` (the words before each pair of frames) and `grid` (times, rows, columns of patches);
    `picture_grids`; `ids`, the whole prompt as [id, how many times running]; `shift`, what a later token's position is
    ahead of its index; `positions_sha256` over the int64 little-endian [3, tokens]; and `positions` if they are few.
    """
    processor = processor_for(**(asked["size"] or {"shortest_edge": None, "longest_edge": None}))
    prompt = processor.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True)
    told = [metadata_of(video, asked["do_sample_frames"]) for video in asked["videos"]]
    frames = [source(video) for video in asked["videos"]]
    pictures = [np.zeros((size["height"], size["width"], 3), np.uint8) for size in asked["pictures"]]
    try:
        made = processor(
            text=prompt,
            images=pictures or None,
            videos=frames if asked["do_sample_frames"] else [list(each) for each in frames],
            videos_kwargs={
                "video_metadata": None if any("metadata" in video for video in asked["videos"]) else told,
                "do_sample_frames": asked["do_sample_frames"],
                **asked["sampling"],
            },
            return_metadata=True,
            return_tensors="pt",
        )
    except Exception as error:  # whatever the reference raises is what it does
        return {**asked, "text": prompt, "raises": [type(error).__name__, str(error)]}, None
    ids = made["input_ids"][0].tolist()
    grids = made["video_grid_thw"].tolist()
    positions, shift = positions_of(made)
    found = {
        "videos_expected": [
            {"frames_indices": indices, "timestamps": words, "grid": grid}
            for indices, words, grid in zip(
                [list(map(int, each.frames_indices)) for each in made["video_metadata"]],
                words_before_frames(processor, ids, grids),
                grids,
                strict=True,
            )
        ],
        "picture_grids": made["image_grid_thw"].tolist() if pictures else [],
        "ids": runs(ids),
        "shift": shift,
        "positions_sha256": hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest(),
    }
    for video, expected in zip(asked["videos"], found["videos_expected"], strict=True):
        if not asked["do_sample_frames"]:  # the reference lengthens the list it is given when its length is odd
            expected["frames_indices"] = expected["frames_indices"][: video["frames"]]
    if len(ids) <= FEW_TOKENS:
        found["positions"] = positions.tolist()
    return {**asked, "text": prompt, **found}, made


def words_before_frames(processor: Any, ids: Sequence[int], grids: Sequence[Sequence[int]]) -> list[list[str]]:
    """For each video the words that stand between its own opening, or a pair of frames, and the next pair."""
    words: list[str] = []
    for number, token in enumerate(ids):
        if token == processor.video_token_id and ids[number - 1] == processor.vision_start_token_id:
            edges = (processor.vision_start_token_id, processor.vision_end_token_id)
            start = next(back for back in range(number - 2, -1, -1) if ids[back] in edges)
            words.append(processor.tokenizer.decode(ids[start + 1 : number - 1]))
    starts = np.cumsum([0, *(grid[0] for grid in grids)])
    assert starts[-1] == len(words)
    return [words[start:end] for start, end in pairwise(starts)]


def compare(found: dict[str, Any], made: Any) -> tuple[dict[str, Any], np.ndarray]:
    """What the pixels of a case with one video became, and how far PIL's resizing of each frame is from that.

    The array, uint8 [frames, height, width, 3], is the processor's normalised patches put back in order as levels; an
    odd clip has its last frame twice. `source_sha256` is over the frames as drawn, those that were sampled;
    `patches_sha256` over the patches as levels, [patches, 3 x 2 x 16 x 16]. `pil`: the largest difference in levels,
    the mean, and the share of values that differ at all.
    """
    from PIL import Image

    times, rows, columns = found["videos_expected"][0]["grid"]
    levels = (made["pixel_values_videos"].double().numpy() * 0.5 + 0.5) * 255
    patches = levels.round().astype(np.uint8)
    assert abs(levels - patches).max() < 1e-3
    ordered = patches.reshape(times, rows // 2, columns // 2, 2, 2, 3, 2, 16, 16).transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    golden = ordered.reshape(times * 2, rows * 16, columns * 16, 3)
    video, indices = found["videos"][0], found["videos_expected"][0]["frames_indices"]
    frames = np.stack([drawn(video["look"], index, video["width"], video["height"]) for index in indices])
    size = (columns * 16, rows * 16)
    resized = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]
    apart = abs(np.stack(resized).astype(int) - golden[: len(frames)])
    pixels = {
        "source_sha256": hashlib.sha256(frames.tobytes()).hexdigest(),
        "patches_sha256": hashlib.sha256(patches.tobytes()).hexdigest(),
        "pil": {"max": int(apart.max()), "mean": round(apart.mean(), 4), "share": round((apart > 0).mean(), 4)},
    }
    return {**found, "pixels": pixels}, golden


def main() -> None:
    library = declare_operators()
    import PIL
    import torch
    import torchvision
    import transformers

    found, arrays = list[dict[str, Any]](), dict[str, np.ndarray]()
    for asked in (*SAMPLED, *GIVEN, *MIXED):
        found.append(record(asked)[0])
    for asked in PIXELS:
        written, arrays[asked["name"]] = compare(*record(asked))
        found.append(written)
    del library
    versions = {module.__name__: module.__version__ for module in (transformers, torch, torchvision, np, PIL)}
    lines = ",\n".join(json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in found)
    (HERE / "video.json").write_text(f'{{"versions":{json.dumps(versions)},"cases":[\n{lines}\n]}}\n', encoding="utf-8")
    np.savez_compressed(HERE / "video.npz", **arrays)


if __name__ == "__main__":
    main()
