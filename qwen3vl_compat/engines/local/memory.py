"""What a KV memory is: where keys and values stand while a sequence runs, and how a beginning is shared."""

from collections.abc import Sequence as Items
from typing import Protocol

import torch

from qwen3vl_compat.engines.local.attention import Step
from qwen3vl_compat.engines.local.scheduler import Piece
from qwen3vl_compat.engines.local.sequence import Sequence


class Shape:
    """The sizes of a text model's keys and values."""

    def __init__(self, layers: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
        self.layers, self.kv_heads, self.width, self.dtype = layers, kv_heads, width, dtype

    @property
    def token_bytes(self) -> int:
        """Bytes that one token's keys and values take."""
        return 2 * self.layers * self.kv_heads * self.width * self.dtype.itemsize


class DecodeStep(Step, Protocol):
    """A step over `rows` tokens; the sequence asked for at place i has its token in row `order[i]`."""

    rows: int
    order: list[int]


class Memory(Protocol):
    """Slots on a CPU, pages on a GPU."""

    def restore(self, sequence: Sequence) -> None:
        """Make the beginning that a sequence was given in shared blocks readable for it."""
        ...

    def publish(self, sequence: Sequence, blocks: Items[tuple[int, int]]) -> None:
        """Make full blocks of a sequence, given as (place in it, block), readable for others."""
        ...

    def fork(self, source: Sequence, target: Sequence) -> None:
        """Give `target`, which shares the full blocks of the prompt, what it may not share."""
        ...

    def forget(self, row: int) -> None:
        """Nobody stands in this row any more."""
        ...

    def decode_step(self, sequences: Items[Sequence]) -> DecodeStep:
        """The newest token of each of these sequences."""
        ...

    def piece_step(self, pieces: Items[Piece]) -> Step:
        """Pieces of prompts, one behind the other."""
        ...
