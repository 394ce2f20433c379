"""In bfloat16 the engine is near float32: a token that differs is a near-tie, and the logits are close."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.agreement import agreement
from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.local.checkpoint import read_checkpoint
from qwen3vl_compat.engines.local.runner import Runner
from qwen3vl_compat.settings import ModelSettings
from tests.engines.test_equivalence import prompts_of

NEAR_TIE = 0.15
"""A token may differ where the oracle prefers its own by less than this share of its logits' spread."""
BOUNDS = {"trained": (0.99, 0.05), "random": (0.99, 0.1), "moe": (0.9, 0.1)}
"""A quantile of the logits' errors, and what it may be. A router's near-tie sends a token to another expert, after
which nothing can be compared: so of the mixture of experts nine in ten count."""


@pytest.mark.parametrize("kind", ["trained", "random", "moe"])
def test_bfloat16_is_near_float32(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = MODEL if kind == "trained" else request.getfixturevalue({"random": "blank", "moe": "moe"}[kind])
    checkpoint = read_checkpoint(str(folder), "")
    runner = Runner(checkpoint, ModelSettings(device="cpu", dtype="bfloat16"))
    model_class: Any = getattr(transformers, checkpoint.architecture)
    oracle = model_class.from_pretrained(folder, dtype=torch.bfloat16).float().eval()
    found = agreement(checkpoint, runner, oracle, prompts_of(checkpoint), 24)
    print(kind, found)
    quantile, bound = BOUNDS[kind]
    assert found.tokens > 100
    assert found.worst_gap < NEAR_TIE or kind == "moe"
    assert 0 < found.errors[f"{quantile:g}"] < bound
    with torch.no_grad():  # and it would notice a layer that is a tenth off
        oracle.model.language_model.layers[1].self_attn.o_proj.weight.mul_(1.1)
    assert agreement(checkpoint, runner, oracle, prompts_of(checkpoint), 24).errors[f"{quantile:g}"] > bound
