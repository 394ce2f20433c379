"""Tiny checkpoints."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from benchmarks.checkpoint import enliven, write_experts
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


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint of the mixture-of-experts class."""
    folder = tmp_path_factory.mktemp("moe") / "model"
    write_experts(folder)
    return folder
