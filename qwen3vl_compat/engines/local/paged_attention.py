"""Decode attention over paged memory in one Triton kernel; needs Triton and, for Triton, a C compiler.

Each program takes one row, one KV head and one stretch of the row's blocks, and keeps a running maximum and sum of
exponents (Milakov and Gimelshein, 2018); the stretches of a row are joined afterwards. The number of stretches is
fixed, so the launch is the same whatever the lengths and can be captured in a CUDA graph.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingImports=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportMissingParameterType=false, reportInvalidTypeForm=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl

STRETCHES = 8
"""Programs that share one row and KV head: with 8 KV heads even one row keeps 64 processors busy."""


@triton.jit
def _attend(  # noqa: PLR0913, PLR0917 - a kernel's arguments are all it has
    queries,
    keys,
    values,
    tables,
    ends,
    partial,
    sums,
    scale,
    table_width,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    group_padded: tl.constexpr,
    width: tl.constexpr,
    size: tl.constexpr,
    stretches: tl.constexpr,
):
    row, head, stretch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    end = tl.load(ends + row)
    blocks = tl.cdiv(end, size)
    each = tl.cdiv(blocks, stretches)
    member, lane, token = tl.arange(0, group_padded), tl.arange(0, width), tl.arange(0, size)
    first_query = (row * kv_heads + head) * group
    own = member[:, None] < group
    query = tl.load(queries + (first_query + member[:, None]) * width + lane[None, :], mask=own, other=0.0)
    most = tl.full([group_padded], float("-inf"), tl.float32)
    total = tl.zeros([group_padded], tl.float32)
    answer = tl.zeros([group_padded, width], tl.float32)
    for place in range(stretch * each, tl.minimum(stretch * each + each, blocks)):
        block = tl.load(tables + row * table_width + place).to(tl.int64)
        inside = (block * kv_heads + head) * size * width + token[:, None] * width + lane[None, :]
        scores = tl.dot(query, tl.trans(tl.load(keys + inside)), input_precision="ieee") * scale
        scores = tl.where((place * size + token < end)[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp(scores - higher[:, None])
        faded = tl.exp(most - higher)
        value = tl.load(values + inside)
        answer = answer * faded[:, None] + tl.dot(shares.to(value.dtype), value, input_precision="ieee")
        total = total * faded + tl.sum(shares, 1)
        most = higher
    # A stretch behind the row's end has seen nothing: its sum of exponents is zero, its logarithm minus infinity.
    seen = tl.where(total > 0, total, 1.0)
    store = ((row * kv_heads + head) * stretches + stretch) * group
    tl.store(partial + (store + member[:, None]) * width + lane[None, :], answer / seen[:, None], mask=own)
    tl.store(sums + store + member, tl.where(total > 0, most + tl.log(seen), float("-inf")), mask=member < group)


def paged_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tables: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """One query a row over its own blocks.

    `query` [rows, heads, width]; `keys` and `values` [blocks, kv heads, size, width]; `tables` [rows, blocks of a row]
    and `ends` [rows] (tokens, at least 1) of int32. Returns [rows, heads, width]. `size` and `width` are powers of two,
    16 or more.
    """
    rows, heads, width = query.shape
    kv_heads, size = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    parts = (rows, kv_heads, STRETCHES, group)
    partial = torch.empty((*parts, width), dtype=torch.float32, device=query.device)
    sums = torch.empty(parts, dtype=torch.float32, device=query.device)
    _attend[(rows, kv_heads, STRETCHES)](
        query.contiguous(), keys, values, tables, ends, partial, sums, width**-0.5, tables.shape[1],
        kv_heads, group, max(16, triton.next_power_of_2(group)), width, size, STRETCHES,
    )  # fmt: skip
    shares = sums.softmax(2)[..., None]
    return (partial * shares).sum(2).view(rows, heads, width).to(query.dtype)


def fits(size: int, width: int) -> bool:
    """Whether the kernel takes blocks of so many tokens and heads of this width."""
    return all(number >= 16 and number & (number - 1) == 0 for number in (size, width))
