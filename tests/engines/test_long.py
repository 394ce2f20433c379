"""Long contexts: YaRN against transformers past the native length; memory kept to what was announced."""

import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from benchmarks.checkpoint import enliven
from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines import EngineUnusable
from qwen3vl_compat.engines.local.engine import LocalEngine
from qwen3vl_compat.events import Completion
from qwen3vl_compat.settings import load_settings
from tests.engines.test_worker import ask, idle, outcome
from tests.serving import UNCOMPILED


def tiny(folder: Path, length: int) -> Path:
    """A checkpoint small enough for very long prompts: two layers, one head of keys, `length` tokens native."""
    shutil.copytree(MODEL, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 24, "max_position_embeddings": length,
        "rope_parameters": config["text_config"]["rope_parameters"] | {"mrope_section": [4, 4, 4], "rope_theta": 500.0},
    }  # fmt: skip
    config["vision_config"] |= {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 48,
                                "intermediate_size": 32, "deepstack_visual_indexes": [0]}  # fmt: skip
    torch.manual_seed(2)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    enliven(model)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": [1038]}))
    return folder


async def served(folder: Path, **flags: Any) -> LocalEngine:
    named = {f"model.{name}": value for name, value in flags.items()}
    engine = LocalEngine(load_settings(flags=named | {"model.path": str(folder)}, environment=UNCOMPILED))
    await engine.start()
    return engine


async def test_yarn_past_the_native_length_is_that_of_generate(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", 128)
    engine = await served(folder, yarn=4.0, dtype="float32")
    assert engine.models()[0].context == 512
    request = ask(engine, "What time is it in the morning? " * 30, max_tokens=40)
    prompt = engine._prompts.build(request)
    assert 128 < len(prompt.ids) < 450
    config = AutoConfig.from_pretrained(folder)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    answers = []
    for rope in ({}, yarn):
        config.text_config.rope_parameters |= rope
        config.text_config.max_position_embeddings = 512
        reference = Qwen3VLForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32)
        ids = torch.from_numpy(prompt.ids)[None]
        kinds = torch.zeros_like(ids, dtype=torch.int)
        made = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, max_new_tokens=40,
            do_sample=False,
        )  # fmt: skip
        answers.append(made[0, len(prompt.ids) :].tolist())
    got = await outcome(engine, request)
    assert isinstance(got, Completion)
    spell = engine.checkpoint.vocabulary.bytes_of
    texts = [b"".join(map(spell, tokens)).decode("utf-8", "replace") for tokens in answers]
    assert got.choices[0].text == texts[1]
    assert texts[0] != texts[1], "without YaRN the answer would be another"
    await engine.close()


async def test_a_context_that_cannot_be_kept_ends_the_start_with_the_numbers(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", 100_000)
    with pytest.raises(EngineUnusable, match=r"100000 tokens takes 0\.\d+ GiB .* room for \d+ tokens"):
        await served(folder, max_model_len=100_000, kv_memory=0.01, dtype="float32")
    with pytest.raises(EngineUnusable, match="asks for 200000 tokens; this checkpoint reads 100000"):
        await served(folder, max_model_len=200_000)


@pytest.mark.slow
async def test_a_prompt_of_200_000_tokens_keeps_to_the_memory_announced(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", 262_144)
    engine = await served(folder, dtype="float32", kv_memory=0.25)
    assert engine._worker is not None
    runner = engine._worker.runner
    announced = runner.blocks.tokens * runner.token_bytes
    assert announced <= 0.25 * 2**30
    process = psutil.Process()
    short = await outcome(engine, ask(engine, "a " * 5_000, max_tokens=2))
    assert isinstance(short, Completion)
    before = process.memory_info().rss
    request = ask(engine, "a " * 200_000, max_tokens=4)
    answer = await outcome(engine, request)
    assert isinstance(answer, Completion)
    assert answer.usage.prompt > 200_000
    # The prompt itself, as text, ids and positions, is a few tens of MB beside the keys and values.
    assert process.memory_info().rss - before < announced + 200 * 2**20
    await idle(engine)
    await engine.close()
