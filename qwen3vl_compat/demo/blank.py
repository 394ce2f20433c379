"""Make the untrained demonstration checkpoint: configuration, vocabulary, chat template and random weights.

`python -m qwen3vl_compat.demo.blank FOLDER` writes a checkpoint with the file layout of a published Qwen3-VL.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from qwen3vl_compat.demo.pictures import CHATTER, MORE_QUESTIONS, QUESTIONS, SELF

CONTEXT = 32_768
"""Positions the demonstration model accepts, tokens."""

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN_ADDED_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""Qwen3's 26 added tokens, in their order; the second group is not 'special', so decoding shows it."""

WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's own way of cutting text into words before byte-pair merging."""


def vocabulary(size: int = 1024) -> Tokenizer:
    """A byte-level BPE of `size` ids plus the added tokens, in Qwen's form; any UTF-8 text can be carried.

    The merges are learnt from the questions and from the project's licence in lower case, so that capital letters and
    digits, which the answers consist of, stay one token each.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    licence = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").lower()
    corpus = [licence, *([*QUESTIONS, *MORE_QUESTIONS, *CHATTER, SELF, "system\nuser\nassistant\n"] * 50)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PLAIN_ADDED_TOKENS])
    return tokenizer


def configuration(tokenizer: Tokenizer) -> Qwen3VLConfig:
    """The shape: 6.4 million parameters, a four-layer tower with deepstack and a four-layer text model with M-RoPE."""
    ids = {text: tokenizer.token_to_id(text) or 0 for text in SPECIAL_TOKENS}
    return Qwen3VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 48,
            "max_position_embeddings": CONTEXT,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000,
                "mrope_section": [8, 8, 8],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 192,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def write_blank(folder: Path, seed: int = 0) -> None:
    """Write the untrained checkpoint into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = vocabulary()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(seed)
    model: Any = Qwen3VLForConditionalGeneration(configuration(tokenizer))
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    model.to(torch.bfloat16).save_pretrained(folder)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "split_special_tokens": False,
        },
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen3VLProcessor",
            "size": {"shortest_edge": 1024, "longest_edge": 16_777_216},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    )
    _write_json(
        folder / "video_preprocessor_config.json",
        {
            "video_processor_type": "Qwen3VLVideoProcessor",
            "processor_class": "Qwen3VLProcessor",
            # A frame may be as small as a picture; what is made larger than it is, this model cannot read.
            "size": {"shortest_edge": 2048, "longest_edge": 786_432},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "fps": 2,
            "min_frames": 4,
            "max_frames": 768,
            "cap_pixels_per_frame": True,
        },
    )
    template = Path(__file__).parent / "chat_template.jinja"
    (folder / "chat_template.jinja").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_blank(Path(sys.argv[1]))
