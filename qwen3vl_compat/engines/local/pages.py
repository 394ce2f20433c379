"""KV memory on a GPU: blocks anywhere, found through each sequence's list of them."""

from collections.abc import Sequence as Items

import torch
from torch.nn.functional import scaled_dot_product_attention

from qwen3vl_compat.engines.local.attention import attend_piece
from qwen3vl_compat.engines.local.blocks import Blocks
from qwen3vl_compat.engines.local.memory import Layout, Shape
from qwen3vl_compat.engines.local.scheduler import Piece
from qwen3vl_compat.engines.local.sequence import Sequence


class Pages:
    """All blocks of a device in one tensor [layers, 2, blocks, kv heads, size, width]; what is shared is not copied."""

    def __init__(self, shape: Shape, blocks: Blocks, device: torch.device) -> None:
        self.size = blocks.size
        parts = (shape.layers, 2, blocks.count, shape.kv_heads, blocks.size, shape.width)
        self._store = torch.empty(parts, dtype=shape.dtype, device=device)
        self.make_step = _Decode

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
            self._store[:, :, target.blocks[place]] = self._store[:, :, source.blocks[place]]

    def layout(self, sequences: Items[Sequence]) -> Layout:
        """The newest token of each of these sequences; rows stand in the order given."""
        device, widest = self._store.device, max(len(sequence.blocks) for sequence in sequences)
        tables = [sequence.blocks + [0] * (widest - len(sequence.blocks)) for sequence in sequences]
        ends = [len(sequence) for sequence in sequences]
        tensors = [torch.tensor(tables, device=device), torch.tensor(ends, device=device), self._store]
        return Layout(len(sequences), list(range(len(sequences))), tensors)

    def piece_step(self, pieces: Items[Piece]) -> "_Pieces":
        """Pieces of prompts, one behind the other."""
        return _Pieces(self._store, pieces)


class _Decode:
    """One token for each row: its blocks [rows, blocks], how many tokens it has [rows], and the memory."""

    def __init__(self, tables: torch.Tensor, ends: torch.Tensor, store: torch.Tensor) -> None:
        self._store, self._tables, size = store, tables, store.shape[4]
        self._blocks = tables[torch.arange(len(ends), device=store.device), (ends - 1) // size]
        self._offsets = (ends - 1) % size
        unseen = torch.arange(tables.shape[1] * size, device=store.device) >= ends[:, None]
        self._mask = torch.zeros(unseen.shape, dtype=store.dtype, device=store.device)
        self._mask = self._mask.masked_fill_(unseen, -torch.inf)[:, None, None]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See Step."""
        keys, values = self._store[layer]
        keys[self._blocks, :, self._offsets] = key.transpose(0, 1)
        values[self._blocks, :, self._offsets] = value.transpose(0, 1)
        heads, rows, width = query.shape
        folded = query.transpose(0, 1).reshape(rows, keys.shape[1], -1, width)
        answer = scaled_dot_product_attention(folded, self._read(keys), self._read(values), attn_mask=self._mask)
        return answer.reshape(rows, heads, width).transpose(0, 1)

    def _read(self, blocks: torch.Tensor) -> torch.Tensor:
        """[rows, kv heads, places, width] of every row's blocks."""
        return blocks[self._tables].transpose(1, 2).flatten(2, 3)


class _Pieces:
    """Pieces in a row, each gathered into one stretch to be attended to."""

    def __init__(self, store: torch.Tensor, pieces: Items[Piece]) -> None:
        self._store, self._pieces, size = store, pieces, store.shape[4]
        self._tables = [
            torch.tensor(piece.sequence.blocks[: -(-piece.end // size)], device=store.device) for piece in pieces
        ]
        places = [torch.arange(piece.start, piece.end, device=store.device) for piece in pieces]
        self._blocks = torch.cat([table[at // size] for table, at in zip(self._tables, places, strict=True)])
        self._offsets = torch.cat(places) % size

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See Step."""
        keys, values = self._store[layer]
        keys[self._blocks, :, self._offsets] = key.transpose(0, 1)
        values[self._blocks, :, self._offsets] = value.transpose(0, 1)
        answers: list[torch.Tensor] = []
        place = 0
        for piece, table in zip(self._pieces, self._tables, strict=True):
            until = place + piece.end - piece.start
            own_keys, own_values = (x[table].transpose(0, 1).flatten(1, 2)[:, : piece.end] for x in (keys, values))
            answers.append(attend_piece(query[:, place:until], own_keys, own_values, piece.start))
            place = until
        return torch.cat(answers, dim=1)
