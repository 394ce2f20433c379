"""The attention functions registered with transformers: one for the text model over KV memory, one for the tower.

The model is called with `step=`, which reaches the text function untouched: a step knows where the keys and values of
its tokens go and what each token may look at.
"""

from itertools import pairwise
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

TEXT, TOWER = "qwen3vl_text", "qwen3vl_flash_tower"
"""Registered names. transformers makes one call for all pictures only if the tower's name contains 'flash'."""


class Step(Protocol):
    """One call of the text model."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store the keys and values [kv heads, tokens, width] and answer the queries [heads, tokens, width] alike."""
        ...


def _text(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, *, step: Step, **__: Any
) -> tuple[torch.Tensor, None]:
    answer = step.attend(module.layer_idx, query[0], key[0], value[0])
    return answer.transpose(0, 1)[None], None


def _tower(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Frames attend within themselves: [1, heads, patches, width] with borders; one call for each distinct length."""
    borders: list[int] = kwargs["cu_seq_lens_q"].tolist()
    answer = torch.empty_like(query)
    by_length: dict[int, list[int]] = {}
    for start, end in pairwise(borders):
        by_length.setdefault(end - start, []).append(start)
    for length, starts in by_length.items():
        places = torch.tensor(starts, device=query.device)[:, None] + torch.arange(length, device=query.device)
        q, k, v = (x[0][:, places].transpose(0, 1) for x in (query, key, value))
        answer[0][:, places] = scaled_dot_product_attention(q, k, v, scale=kwargs["scaling"]).transpose(0, 1)
    return answer.transpose(1, 2), None


def register(model: Any) -> None:
    """Make `model` use these functions."""
    AttentionInterface.register(TEXT, _text)
    AttentionInterface.register(TOWER, _tower)
    AttentionMaskInterface.register(TEXT, lambda *_, **__: None)  # pyright: ignore[reportArgumentType]
    AttentionMaskInterface.register(TOWER, lambda *_, **__: None)  # pyright: ignore[reportArgumentType]
    model.model.language_model.config._attn_implementation = TEXT
    model.model.visual.config._attn_implementation = TOWER


def attend_piece(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int) -> torch.Tensor:
    """A piece of a prompt, queries [heads, tokens, width], over all keys [kv heads, start + tokens, width] so far.

    What came before is seen whole and the piece itself causally; the two are joined by their sums of exponents, so that
    no mask of tokens x context is ever made.
    """
    heads, tokens, width = query.shape
    kv_heads = keys.shape[0]
    group = heads // kv_heads
    own_keys, own_values = (x[:, start:].repeat_interleave(group, dim=0) for x in (keys, values))
    own, own_sum = _with_sums(query, own_keys, own_values, causal=True)
    if start == 0:
        return own
    folded = query.reshape(kv_heads, group * tokens, width)
    past, past_sum = _with_sums(folded, keys[:, :start], values[:, :start], causal=False)
    past, past_sum = past.reshape(heads, tokens, width), past_sum.reshape(heads, tokens)
    share = torch.sigmoid(own_sum - past_sum)[..., None]
    return (own * share + past * (1 - share)).to(query.dtype)


def _with_sums(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [heads, tokens, width] in the kernel that also returns the logarithm of each row's sum of exponents."""
    q, k, v = query[None], keys[None], values[None]
    if query.device.type == "cpu":
        answer, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    else:
        answer, sums, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal)
    return answer[0], sums[0, :, : query.shape[1]]
