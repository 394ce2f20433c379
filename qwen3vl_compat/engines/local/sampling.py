"""Logits to the next tokens."""

from collections.abc import Sequence as Items

import numpy as np
import torch
from msgspec import Struct

from qwen3vl_compat.engines.local.decoding import Scores


class Chooser(Struct, frozen=True, kw_only=True):
    """How one choice's tokens are drawn.

    The draw at a position is a function of (seed, choice, position) alone, so an answer can be repeated whatever else
    the engine was doing.
    """

    temperature: float
    top_p: float
    top_k: int
    """0 keeps every token."""
    seed: int
    choice: int

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature <= 1e-5

    def choose(self, logits: torch.Tensor, position: int) -> int:
        """The token for `position`, from logits [vocabulary] in any float type."""
        if self.greedy:
            return int(logits.argmax())
        scaled = logits.float() / self.temperature
        kept, ids = scaled.topk(min(self.top_k, len(scaled))) if self.top_k else scaled.sort(descending=True)
        shares = kept.softmax(-1)
        reached = shares.cumsum(-1)
        # The smallest set whose share reaches top_p: a token stays while those before it have not reached it yet.
        inside = max(1, int((reached - shares < self.top_p).sum()))
        draw = self._uniform(position) * float(reached[inside - 1])
        return int(ids[min(int((reached[:inside] <= draw).sum()), inside - 1)])

    def _uniform(self, position: int) -> float:
        key = np.array([self.seed % 2**64, self.choice], dtype=np.uint64)
        generator = np.random.Philox(key=key, counter=position)
        return float(np.random.Generator(generator).random())


def choose_all(scores: Scores, rows: Items[tuple[int, Chooser, int]]) -> list[int]:
    """A token for each (row of scores, chooser, position)."""
    logits, best = scores[0], scores[1].tolist()
    return [best[row] if chooser.greedy else chooser.choose(logits[row], position) for row, chooser, position in rows]
