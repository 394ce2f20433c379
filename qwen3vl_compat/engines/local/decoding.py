"""One decode step as a function of tensors alone, so that it can be run, compiled or captured alike."""

from collections.abc import Callable
from typing import Any

import torch

from qwen3vl_compat.engines.local.attention import Step

Scores = tuple[torch.Tensor, torch.Tensor]
"""Logits [rows, vocabulary], and the likeliest token of each row."""


def score(logits: torch.Tensor) -> Scores:
    """In bfloat16 on a CPU max() takes a quarter of argmax()'s time, and compiled a tenth."""
    return logits, logits.max(-1).indices


class Decoding(torch.nn.Module):
    """The text model and its output layer over one token for each row.

    `make_step` makes the attention's step from the tensors that the KV memory adds.
    """

    def __init__(self, text: Any, head: torch.nn.Module, make_step: Callable[..., Step]) -> None:
        super().__init__()
        self.text, self.head, self._make_step = text, head, make_step

    def forward(self, ids: torch.Tensor, places: torch.Tensor, *memory: torch.Tensor) -> Scores:
        """Token ids [rows], their places [3, rows] and the memory's tensors -> scores of what follows."""
        hidden = self.text(
            inputs_embeds=self.text.embed_tokens(ids)[None],
            position_ids=places[:, None],
            use_cache=False,
            step=self._make_step(*memory),
        ).last_hidden_state[0]
        return score(self.head(hidden))

    def weights(self) -> dict[str, torch.Tensor]:
        """Every tensor of it by its name; one that stands in two places has both names."""
        return {
            **dict(self.named_parameters(remove_duplicate=False)),
            **dict(self.named_buffers(remove_duplicate=False)),
        }
