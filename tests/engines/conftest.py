"""Tiny checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.demo.blank import write_blank


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's shape with random weights."""
    folder = tmp_path_factory.mktemp("blank") / "model"
    write_blank(folder, seed=3)
    made = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    enliven(made)
    made.save_pretrained(folder)
    return folder


def enliven(model: torch.nn.Module) -> None:
    """Freshly drawn weights are so small that a model says one word for ever; these look at places and pictures."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.mul_(2 if "embed" in name else 6)


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint of the mixture-of-experts class."""
    folder = tmp_path_factory.mktemp("moe") / "model"
    shutil.copytree(MODEL, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"] | {
        "model_type": "qwen3_vl_moe_text", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
    }  # fmt: skip
    vision = config["vision_config"] | {"model_type": "qwen3_vl_moe_vision"}
    made = Qwen3VLMoeConfig(**(config | {"model_type": "qwen3_vl_moe", "text_config": text, "vision_config": vision}))
    torch.manual_seed(5)
    model = Qwen3VLMoeForConditionalGeneration(made)
    enliven(model)
    model.save_pretrained(folder)
    shutil.copy(MODEL / "generation_config.json", folder / "generation_config.json")
    return folder
