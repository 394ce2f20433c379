"""KV memory on a CPU: one contiguous slot for each row, and a pool of blocks that later prompts begin with.

Gathering scattered blocks in every step costs more than copying a known beginning in once, so a sequence's keys and
values stand in a row. A full block is copied to the pool as soon as it is computed. All of it is address space first:
memory is taken when it is written and given back when a row is free.
"""

import mmap
from collections.abc import Sequence as Items

import torch
from torch.nn.functional import scaled_dot_product_attention

from qwen3vl_compat.engines.local.attention import attend_piece
from qwen3vl_compat.engines.local.blocks import Blocks
from qwen3vl_compat.engines.local.memory import Layout, Shape
from qwen3vl_compat.engines.local.scheduler import Piece
from qwen3vl_compat.engines.local.sequence import Sequence

WINDOW = 64
"""Decoding looks at whole windows of so many tokens, masked behind each row's end."""
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class _Lazy:
    """Address space for a tensor; pages come with the first write and can be given back."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        count = torch.Size(shape).numel()
        self._memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self.tensor = torch.frombuffer(self._memory, dtype=dtype, count=count).view(shape)

    def forget(self, part: torch.Tensor) -> None:
        """Give back the pages that lie wholly inside a contiguous part; they read as zeros afterwards."""
        offset = part.data_ptr() - self.tensor.data_ptr()
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._memory.madvise(mmap.MADV_DONTNEED, start, end - start)


class Slots:
    """Rows of `context` tokens, and a pool for all the blocks there are."""

    def __init__(self, shape: Shape, rows: int, context: int, blocks: Blocks) -> None:
        self.shape, self.rows, self.context, self.size = shape, rows, context, blocks.size
        # One place more than the context: rows that do not take part in a step write there.
        parts = (shape.layers, 2, rows, shape.kv_heads, context + 1, shape.width)
        self._rows = _Lazy(parts, shape.dtype)
        self.layers = [half for layer in self._rows.tensor for half in layer]
        """Keys, then values, of each layer: [rows, kv heads, context + 1, width]."""
        self.make_step = _Decode
        self._pool = _Lazy((blocks.count, shape.layers, 2, shape.kv_heads, blocks.size, shape.width), shape.dtype)

    def restore(self, sequence: Sequence) -> None:
        """Copy what a sequence shares with earlier ones into its row."""
        for place, block in enumerate(sequence.blocks[: sequence.computed // self.size]):
            start = place * self.size
            self._rows.tensor[:, :, sequence.row, :, start : start + self.size] = self._pool.tensor[block]

    def publish(self, sequence: Sequence, blocks: Items[tuple[int, int]]) -> None:
        """Copy full blocks, given as (place in the sequence, block), from the row to the pool."""
        for place, block in blocks:
            start = place * self.size
            self._pool.tensor[block] = self._rows.tensor[:, :, sequence.row, :, start : start + self.size]

    def fork(self, source: Sequence, target: Sequence) -> None:
        """Copy a prompt's keys and values to another row."""
        end = source.prompt_length
        self._rows.tensor[:, :, target.row, :, :end] = self._rows.tensor[:, :, source.row, :, :end]

    def move(self, sequence: Sequence, row: int) -> None:
        """Copy what is computed of a sequence from `row` to where it stands now."""
        rows, end = self._rows.tensor, sequence.computed
        rows[:, :, sequence.row, :, :end] = rows[:, :, row, :, :end]
        self.forget(row)

    def forget(self, row: int) -> None:
        """Give a row's memory back."""
        for layer in range(self.shape.layers):
            for half in range(2):
                self._rows.forget(self._rows.tensor[layer, half, row])

    def layout(self, sequences: Items[Sequence]) -> Layout:
        """The newest token of each of these sequences, which stand in any rows; others write to the spare place."""
        order = [sequence.row or 0 for sequence in sequences]
        ends = torch.zeros(1 + max(order), dtype=torch.long)
        ends[order] = torch.tensor([len(sequence) for sequence in sequences])
        window = min(-(-int(ends.max()) // WINDOW) * WINDOW, self.context)
        places = torch.where(ends > 0, ends - 1, self.context)
        unseen = torch.arange(window) >= ends.clamp(min=1)[:, None]
        mask = torch.zeros(unseen.shape, dtype=self.shape.dtype).masked_fill_(unseen, -torch.inf)[:, None, None]
        return Layout(len(ends), order, [places, mask, *self.layers])

    def piece_step(self, pieces: Items[Piece]) -> "_Pieces":
        """Pieces of prompts, one behind the other."""
        return _Pieces(self._rows.tensor, pieces)


class _Decode:
    """One token for each row: the place [rows] it goes to, what it may look at [rows, 1, 1, window], the memory.

    The memory comes as one tensor for keys and one for values of each layer: the compiler knows then that nothing but
    one place of each is written, and writes there.
    """

    def __init__(self, places: torch.Tensor, mask: torch.Tensor, *layers: torch.Tensor) -> None:
        self._places, self._mask, self._layers = places, mask, layers

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See Step. Query heads that share a KV head become rows of one query: far faster than enable_gqa."""
        keys, values = self._layers[2 * layer], self._layers[2 * layer + 1]
        heads, rows, width = query.shape
        each, window = torch.arange(rows), self._mask.shape[3]
        keys[each, :, self._places] = key.transpose(0, 1)
        values[each, :, self._places] = value.transpose(0, 1)
        folded = query.transpose(0, 1).reshape(rows, keys.shape[1], -1, width)
        answer = scaled_dot_product_attention(
            folded, keys[:rows, :, :window], values[:rows, :, :window], attn_mask=self._mask
        )
        return answer.reshape(rows, heads, width).transpose(0, 1)


class _Pieces:
    """Pieces in a row; each is written to its slot and attends to all of it so far."""

    def __init__(self, memory: torch.Tensor, pieces: Items[Piece]) -> None:
        self._memory, self._pieces = memory, pieces

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See Step."""
        answers: list[torch.Tensor] = []
        place = 0
        for piece in self._pieces:
            keys, values = self._memory[layer, :, piece.sequence.row]
            until = place + piece.end - piece.start
            keys[:, piece.start : piece.end] = key[:, place:until]
            values[:, piece.start : piece.end] = value[:, place:until]
            answers.append(
                attend_piece(query[:, place:until], keys[:, : piece.end], values[:, : piece.end], piece.start)
            )
            place = until
        return torch.cat(answers, dim=1)
