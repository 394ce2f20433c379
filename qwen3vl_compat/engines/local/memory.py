"""What a KV memory is: where keys and values stand while a sequence runs, and how a beginning is shared."""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from qwen3vl_compat.engines.local.attention import Step
from qwen3vl_compat.engines.local.scheduler import Piece
from qwen3vl_compat.engines.local.sequence import Sequence


class Shape:
    """The sizes of a text model's keys and values."""

    def __init__(self, layers: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
        self.layers, self.kv_heads, self.width, self.dtype = layers, kv_heads, width, dtype

    @classmethod
    def of(cls, text: Any) -> "Shape":
        """A text model's."""
        config = text.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, config.num_key_value_heads, width, text.dtype)

    @property
    def token_bytes(self) -> int:
        """Bytes that one token's keys and values take."""
        return 2 * self.layers * self.kv_heads * self.width * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a decode step stand: in `rows` rows, the i-th sequence's in row `order[i]`."""

    rows: int
    order: list[int]
    tensors: list[torch.Tensor]
    """What the memory's step is made from."""


class Memory(Protocol):
    """Slots on a CPU, pages on a GPU."""

    @property
    def make_step(self) -> Callable[..., Step]:
        """Makes the step of a layout's tensors."""
        ...

    def restore(self, sequence: Sequence) -> None:
        """Make the beginning that a sequence was given in shared blocks readable for it."""
        ...

    def publish(self, sequence: Sequence, blocks: Items[tuple[int, int]]) -> None:
        """Make full blocks of a sequence, given as (place in it, block), readable for others."""
        ...

    def fork(self, source: Sequence, target: Sequence) -> None:
        """Give `target`, which shares the full blocks of the prompt, what it may not share."""
        ...

    def move(self, sequence: Sequence, row: int) -> None:
        """A sequence that stood in `row` stands in another now."""
        ...

    def forget(self, row: int) -> None:
        """Nobody stands in this row any more."""
        ...

    def layout(self, sequences: Items[Sequence]) -> Layout:
        """The newest token of each of these sequences."""
        ...

    def piece_step(self, pieces: Items[Piece]) -> Step:
        """Pieces of prompts, one behind the other."""
        ...
