"""KV memory on a GPU: blocks anywhere, found through each sequence's list of them."""

from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch.nn.functional import scaled_dot_product_attention

from qwen3vl_compat.engines.local.attention import attend_piece
from qwen3vl_compat.engines.local.blocks import Blocks
from qwen3vl_compat.engines.local.memory import Layout, Shape
from qwen3vl_compat.engines.local.scheduler import Piece
from qwen3vl_compat.engines.local.sequence import Sequence

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""See paged_attention."""


class Pages:
    """All blocks: for each layer keys and values [blocks, kv heads, size, width]; what is shared is not copied.

    `devices` says where each layer's stand. There is one block more than can be allocated, for rows that only fill a
    step up. `kernel` is the attention over one token for each row; without one the blocks are gathered first.
    """

    def __init__(
        self, shape: Shape, blocks: Blocks, devices: Items[torch.device], kernel: Kernel | None = None
    ) -> None:
        self.size, self.spare, self._kernel = blocks.size, blocks.count, kernel or gathered
        parts = (blocks.count + 1, shape.kv_heads, blocks.size, shape.width)
        self.layers = [
            torch.zeros(parts, dtype=shape.dtype, device=device) for device in devices for _ in ("keys", "values")
        ]
        """Keys, then values, of each layer."""

    @property
    def captures(self) -> bool:
        """Whether the step's work does not depend on how wide the tables are, so that it can be captured once."""
        return self._kernel is not gathered

    def make_step(self, tables: torch.Tensor, ends: torch.Tensor, *layers: torch.Tensor) -> "_Decode":
        """One token for each row: its blocks [rows, blocks], how many tokens it has [rows], and the memory."""
        return _Decode(tables, ends, layers, self._kernel)

    def restore(self, sequence: Sequence) -> None:
        """Shared blocks are read where they are."""

    def publish(self, sequence: Sequence, blocks: Items[tuple[int, int]]) -> None:
        """Blocks are shared where they are."""

    def move(self, sequence: Sequence, row: int) -> None:
        """A row holds nothing."""

    def forget(self, row: int) -> None:
        """A row holds nothing."""

    def fork(self, source: Sequence, target: Sequence) -> None:
        """Copy the partial block at the end of a prompt, which the two may not share."""
        if source.prompt_length % self.size:
            place = source.prompt_length // self.size
            for half in self.layers:
                half[target.blocks[place]] = half[source.blocks[place]]

    def layout(self, sequences: Items[Sequence]) -> Layout:
        """The newest token of each of these sequences; rows stand in the order given."""
        device, widest = self.layers[0].device, max(len(sequence.blocks) for sequence in sequences)
        tables = [sequence.blocks + [self.spare] * (widest - len(sequence.blocks)) for sequence in sequences]
        ends = [len(sequence) for sequence in sequences]
        placed = [torch.tensor(each, dtype=torch.int32, device=device) for each in (tables, ends)]
        return Layout(len(sequences), list(range(len(sequences))), [*placed, *self.layers])

    def piece_step(self, pieces: Items[Piece]) -> "_Pieces":
        """Pieces of prompts, one behind the other."""
        return _Pieces(self.layers, pieces)


class _Decode:
    """The step that `make_step` makes."""

    def __init__(self, tables: torch.Tensor, ends: torch.Tensor, layers: Items[torch.Tensor], kernel: Kernel) -> None:
        self._layers, self._kernel, size = layers, kernel, layers[0].shape[2]
        self._tables, self._ends = tables, ends
        self._blocks = tables.gather(1, ((ends - 1) // size)[:, None].long())[:, 0].long()
        self._offsets = ((ends - 1) % size).long()

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See Step."""
        keys, values = self._layers[2 * layer], self._layers[2 * layer + 1]
        tables, ends, blocks, offsets = (
            each.to(keys.device) for each in (self._tables, self._ends, self._blocks, self._offsets)
        )
        keys[blocks, :, offsets] = key.transpose(0, 1)
        values[blocks, :, offsets] = value.transpose(0, 1)
        return self._kernel(query.transpose(0, 1), keys, values, tables, ends).transpose(0, 1)


def gathered(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tables: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """The kernel without a kernel: every row's blocks [rows, kv heads, places, width] are put in a row first."""
    rows, heads, width = query.shape
    folded = query.reshape(rows, keys.shape[1], -1, width)
    own_keys, own_values = (each[tables.long()].transpose(1, 2).flatten(2, 3) for each in (keys, values))
    seen = torch.arange(own_keys.shape[2], device=ends.device) < ends[:, None]
    answer = scaled_dot_product_attention(folded, own_keys, own_values, attn_mask=seen[:, None, None])
    return answer.reshape(rows, heads, width)


class _Pieces:
    """Pieces in a row, each gathered into one stretch to be attended to."""

    def __init__(self, layers: Items[torch.Tensor], pieces: Items[Piece]) -> None:
        self._layers, self._pieces, size = layers, pieces, layers[0].shape[2]
        device = layers[0].device
        self._tables = [torch.tensor(piece.sequence.blocks[: -(-piece.end // size)], device=device) for piece in pieces]
        places = [torch.arange(piece.start, piece.end, device=device) for piece in pieces]
        self._blocks = torch.cat([table[at // size] for table, at in zip(self._tables, places, strict=True)])
        self._offsets = torch.cat(places) % size

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See Step."""
        keys, values = self._layers[2 * layer], self._layers[2 * layer + 1]
        blocks, offsets = self._blocks.to(keys.device), self._offsets.to(keys.device)
        keys[blocks, :, offsets] = key.transpose(0, 1)
        values[blocks, :, offsets] = value.transpose(0, 1)
        answers: list[torch.Tensor] = []
        place = 0
        for piece, table in zip(self._pieces, self._tables, strict=True):
            until = place + piece.end - piece.start
            own_keys, own_values = (
                x[table.to(x.device)].transpose(0, 1).flatten(1, 2)[:, : piece.end] for x in (keys, values)
            )
            answers.append(attend_piece(query[:, place:until], own_keys, own_values, piece.start))
            place = until
        return torch.cat(answers, dim=1)
