"""A checkpoint of the benchmark's shape: random weights in bf16, Qwen's own vocabulary of 151,936.

`python -m benchmarks.checkpoint FOLDER`. Text: hidden 512, 8 layers, 8 heads, 2 KV heads of 64; tower: 6 layers of 256.
The tokenizer is the one the tests use (.build/qwen3-tokenizer). No answer ends early: the end-of-sequence id is one
that greedy decoding does not choose.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from qwen3vl_compat.demo import MODEL

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / ".build" / "qwen3-tokenizer"
TEMPLATE = ROOT / "qwen3vl_compat" / "demo" / "chat_template.jinja"
NEVER = 151_935
"""An id that no token has."""
CONTROL = 151_643
"""The first control token. Their rows, and those of ids without a token, are made so small that none is ever chosen."""


def write_checkpoint(
    folder: Path, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, device: str = "cpu"
) -> None:
    """Write it, with the shapes of `text` and `vision` in place of the default ones; weights are drawn on `device`."""
    shape = {
        "vocab_size": 151_936, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000, "mrope_section": [12, 10, 10],
                            "mrope_interleaved": True},
    }  # fmt: skip
    tower = {
        "depth": 6, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 4, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [1, 3, 5],
    }  # fmt: skip
    shape |= text or {}
    tower |= vision or {}
    tower["out_hidden_size"] = shape["hidden_size"]
    config = Qwen3VLConfig(
        text_config=shape, vision_config=tower, tie_word_embeddings=shape["tie_word_embeddings"],
        image_token_id=151_655, video_token_id=151_656, vision_start_token_id=151_652, vision_end_token_id=151_653,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model: Any = Qwen3VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        model.lm_head.weight[CONTROL:] *= 0.001
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[NEVER], pad_token_id=151_643)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    shutil.copy(TEMPLATE, folder / "chat_template.jinja")
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}, "patch_size": 16, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    video = pictures | {"video_processor_type": "Qwen3VLVideoProcessor", "size": {"shortest_edge": 4096,
                        "longest_edge": 25_165_824}}  # fmt: skip
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))


def enliven(model: torch.nn.Module) -> None:
    """Freshly drawn weights are so small that a model says one word for ever; these look at places and pictures."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.mul_(2 if "embed" in name else 6)


def write_experts(folder: Path) -> None:
    """A tiny random checkpoint of the mixture-of-experts class, with the bundled model's vocabulary and template."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] | {
        "model_type": "qwen3_vl_moe_text", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
    }  # fmt: skip
    vision = config["vision_config"] | {"model_type": "qwen3_vl_moe_vision"}
    made = Qwen3VLMoeConfig(**(config | {"model_type": "qwen3_vl_moe", "text_config": text, "vision_config": vision}))
    torch.manual_seed(5)
    model: Any = Qwen3VLMoeForConditionalGeneration(made)
    enliven(model)
    model.save_pretrained(folder)
    shutil.copy(MODEL / "generation_config.json", folder / "generation_config.json")


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]))
