"""A checkpoint folder or hub name to its parts: everything but the weights is read and checked here."""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.media.limits import VideoSpec, VisionSpec
from qwen3vl_compat.tokens import Vocabulary

ARCHITECTURES = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration"}
"""`model_type` in config.json -> the transformers class that runs it."""
SAMPLES, PIECE = 64, 2**16
"""Pieces of a large file that are read to know it, and their bytes."""
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself; limits in tokens."""

    folder: Path
    revision: str
    architecture: str
    vocabulary: Vocabulary
    template: str
    image_token: str
    video_token: str
    spec: VisionSpec
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale: float
    context: int
    end_ids: frozenset[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    vocabulary_size: int
    """Of the output layer, which may be larger than the vocabulary."""
    thinking: bool
    """Whether the template opens a thought."""


def locate(path: str, revision: str) -> Path:
    """The folder of a checkpoint; a hub name is downloaded first (HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME hold)."""
    folder = Path(path).expanduser()
    if folder.exists():
        if not folder.is_dir():
            raise EngineUnusable(f"The model path {path} is a file; give the folder that holds config.json.")
        return folder
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise EngineUnusable(f"The model folder {path} does not exist.")
    try:
        return Path(snapshot_download(path, revision=revision or None, allow_patterns=PATTERNS))
    except LocalEntryNotFoundError:
        raise EngineUnusable(
            f"The model {path} is not on this machine and cannot be fetched: the hub cannot be reached or is off."
        ) from None
    except HFValidationError:
        raise EngineUnusable(f"'{path}' is neither a folder on this machine nor a name a hub could know.") from None
    except (HfHubHTTPError, OSError):
        raise EngineUnusable(f"The model {path} cannot be fetched from the hub: no such name or no access.") from None


def read_checkpoint(path: str, revision: str) -> Checkpoint:
    """Read and check everything but the weights; EngineUnusable says in one sentence what is wrong."""
    folder = locate(path, revision)
    config = _json(folder, "config.json")
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise EngineUnusable(
            f"The model {path} is of type '{kind}'; this server runs {' and '.join(ARCHITECTURES)} only."
        )
    _check_weights(folder)
    generation = _json(folder, "generation_config.json", required=False)
    pictures = _json(folder, "preprocessor_config.json")
    try:
        vocabulary = Vocabulary.load(folder)
    except (OSError, ValueError, KeyError, InvalidRequest):
        raise EngineUnusable(f"The file {folder / 'tokenizer.json'} is missing or cannot be used.") from None
    try:
        return _checkpoint(folder, revision, config, generation, pictures, vocabulary)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise EngineUnusable(f"The settings in {folder} lack or misstate {error}.") from None


def _checkpoint(
    folder: Path,
    revision: str,
    config: dict[str, Any],
    generation: dict[str, Any],
    pictures: dict[str, Any],
    vocabulary: Vocabulary,
) -> Checkpoint:
    spelled = {token: text for text, token in vocabulary.added.items()}
    ends = generation.get("eos_token_id", [])
    ends = [ends] if isinstance(ends, int) else ends
    template = _template(folder)
    sampled = bool(generation.get("do_sample", False))
    mean, std = tuple(pictures.get("image_mean", (0.5,) * 3)), tuple(pictures.get("image_std", (0.5,) * 3))
    size = pictures.get("size", {})
    return Checkpoint(
        folder=folder,
        revision=revision or folder.name,
        architecture=ARCHITECTURES[config["model_type"]],
        vocabulary=vocabulary,
        template=template,
        image_token=spelled[config["image_token_id"]],
        video_token=spelled[config["video_token_id"]],
        spec=VisionSpec(
            patch_size=pictures.get("patch_size", 16),
            merge_size=pictures.get("merge_size", 2),
            temporal_patch_size=pictures.get("temporal_patch_size", 2),
            min_pixels=pictures.get("min_pixels") or size["shortest_edge"],
            max_pixels=pictures.get("max_pixels") or size["longest_edge"],
            video=_video_spec(_json(folder, "video_preprocessor_config.json", required=False)),
        ),
        image_mean=(mean[0], mean[1], mean[2]),
        image_std=(std[0], std[1], std[2]),
        rescale=pictures.get("rescale_factor", 1 / 255),
        context=config["text_config"]["max_position_embeddings"],
        end_ids=frozenset(ends) or frozenset({vocabulary.added["<|im_end|>"], vocabulary.added["<|endoftext|>"]}),
        temperature=float(generation.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(generation.get("top_p", 1.0)),
        top_k=int(generation.get("top_k", 0)) if sampled else 0,
        min_p=float(generation.get("min_p") or 0.0) if sampled else 0.0,
        repetition_penalty=float(generation.get("repetition_penalty") or 1.0),
        vocabulary_size=int(config["text_config"]["vocab_size"]),
        thinking="<think>\\n" in template.rpartition("add_generation_prompt")[2],
    )


def _video_spec(config: dict[str, Any]) -> VideoSpec:
    usual, size = VideoSpec(), config.get("size", {})
    return VideoSpec(
        min_pixels=int(size.get("shortest_edge", usual.min_pixels)),
        max_pixels=int(size.get("longest_edge", usual.max_pixels)),
        fps=float(config.get("fps") or usual.fps),
        min_frames=int(config.get("min_frames", usual.min_frames)),
        max_frames=int(config.get("max_frames", usual.max_frames)),
        frame_tokens=int(config.get("max_video_tokens", usual.frame_tokens)),
    )


def _json(folder: Path, name: str, *, required: bool = True) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise EngineUnusable(f"The model folder {folder} holds no {name}.") from None
    except (OSError, ValueError):
        raise EngineUnusable(f"The file {folder / name} cannot be read as JSON.") from None
    if not isinstance(value, dict):
        raise EngineUnusable(f"The file {folder / name} holds no JSON object.")
    return value  # pyright: ignore[reportUnknownVariableType]


def _template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _json(folder, name, required=False).get("chat_template")
        if isinstance(template, str):
            return template
    raise EngineUnusable(f"The model folder {folder} holds no chat template.")


def _check_weights(folder: Path) -> None:
    index = _json(folder, "model.safetensors.index.json", required=False)
    places = index.get("weight_map", {})
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
        raise EngineUnusable(f"The file {folder / 'model.safetensors.index.json'} holds no weight_map of file names.")
    names: list[str] = sorted(set(places.values())) or ["model.safetensors"]  # pyright: ignore[reportUnknownArgumentType,reportUnknownMemberType,reportUnknownVariableType]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise EngineUnusable(f"The model folder {folder} lacks the weights {missing[0]} (safetensors only).")


def digest_of(folder: Path, *more: str) -> str:
    """A name for what a checkpoint and `more` make of a prompt, hexadecimal digits.

    Of the small files all counts, of the weights their sizes and SAMPLES pieces: whoever trains changes them all.
    """
    digest = hashlib.sha256(repr((more, version("torch"), version("transformers"))).encode())
    for file in sorted(path for pattern in PATTERNS for path in folder.glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as held:
            for start in range(0, size, max(PIECE, size // SAMPLES)):
                held.seek(start)
                digest.update(held.read(PIECE))
    return digest.hexdigest()
