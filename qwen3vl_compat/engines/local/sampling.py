"""Logits to the next token."""

import numpy as np
import torch
from msgspec import Struct


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

    def choose(self, logits: torch.Tensor, position: int) -> int:
        """The token for `position`, from logits [vocabulary] in any float type."""
        if self.temperature <= 1e-5:
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
