"""The GPU's decode kernel, run by Triton's interpreter on the CPU against attention over gathered blocks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRITON = ROOT / ".build" / "triton"
"""Made by `make slow`: Triton is 300 MB that nothing else here needs."""

PROGRAM = """
import torch
from qwen3vl_compat.engines.local.pages import gathered
from qwen3vl_compat.engines.local.paged_attention import fits, paged_attention

assert [fits(size, width) for size, width in ((32, 64), (16, 128), (8, 64), (32, 72), (33, 64))] == [1, 1, 0, 0, 0]
torch.manual_seed(0)
worst = 0.0
# The interpreter multiplies bfloat16 as whole numbers; float16 goes the same ways through the kernel.
for dtype, bound in ((torch.float32, 1e-5), (torch.float16, 4e-3)):
    for rows, kv_heads, group, width, size, longest in (
        (1, 2, 4, 64, 16, 1), (5, 8, 4, 128, 32, 9), (3, 1, 1, 64, 32, 3), (2, 2, 16, 64, 16, 20), (4, 2, 3, 32, 16, 2)
    ):
        keys, values = (torch.randn(40, kv_heads, size, width).to(dtype) for _ in range(2))
        tables = torch.stack([torch.randperm(40)[:longest] for _ in range(rows)]).int()
        ends = torch.randint(1, size * longest + 1, (rows,), dtype=torch.int32)
        ends[0], ends[-1] = 1, size * longest
        query = torch.randn(rows, kv_heads * group, width).to(dtype)
        got = paged_attention(query, keys, values, tables, ends)
        exact = [each.float() for each in (query, keys, values)]
        want = gathered(*exact, tables, ends)
        off = float((got.float() - want).abs().max())
        assert off < bound, (dtype, rows, kv_heads, group, width, size, off)
        wrong = gathered(*exact, tables, ends.clamp(max=size * longest // 2 + 1))
        worst = max(worst, float((got.float() - wrong).abs().max()))
assert worst > 0.1, "other lengths would not be noticed"
print("agrees")
"""


@pytest.mark.slow
def test_the_kernel_agrees_with_gathered_attention() -> None:
    assert (TRITON / "triton").is_dir(), "run `make slow`, which fetches Triton"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{TRITON}"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.stdout == "agrees\n", ran.stderr[-3000:]
