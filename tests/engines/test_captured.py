"""The ladder of captured decode steps. There is no GPU here: a recorder that runs the step again stands for a graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwen3vl_compat.engines.local import gpu
from qwen3vl_compat.engines.local.captured import Captured, Replay, ladder
from qwen3vl_compat.engines.local.decoding import Scores
from qwen3vl_compat.engines.local.memory import Shape
from qwen3vl_compat.engines.local.pages import gathered


def rerun(function: Callable[[], Scores]) -> tuple[Replay, Scores]:
    """What a CUDA graph does: the same work on the same inputs, into the same results."""
    results = function()

    def replay() -> None:
        for result, new in zip(results, function(), strict=True):
            result.copy_(new)

    return replay, results


@pytest.mark.parametrize(
    ("rows", "rungs"),
    [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 24, 32]), (33, [1, 2, 4, 8, 16, 24, 32, 33])],
)
def test_ladder(rows: int, rungs: list[int]) -> None:
    assert ladder(rows) == rungs


def test_a_step_is_filled_up_with_rows_that_touch_nobody() -> None:
    seen: list[list[list[int]]] = []

    def step(ids: torch.Tensor, places: torch.Tensor, tables: torch.Tensor, ends: torch.Tensor, *_: Any) -> Scores:
        seen.append([ids.tolist(), tables.tolist(), ends.tolist()])
        return torch.stack([ids, places[0]], dim=1).float(), ids * 2

    captured = Captured(step, 6, 3, 99, [torch.zeros(1)], rerun)  # type: ignore[arg-type]
    full = torch.arange(6)
    captured(full, full.expand(3, -1), torch.full((6, 3), 7), torch.full((6,), 20))
    logits, best = captured(full[:3] + 1, full[:3].expand(3, -1), torch.tensor([[1, 2], [3, 4], [5, 6]]), full[:3] + 1)
    assert logits.tolist() == [[1, 0], [2, 1], [3, 2]]
    assert best.tolist() == [2, 4, 6]
    ids, tables, ends = seen[-1]
    assert len(ids) == 4
    assert [row[:2] for row in tables[:3]] == [[1, 2], [3, 4], [5, 6]]
    assert (tables[3][0], ends) == (99, [1, 2, 3, 1])


def test_a_kernel_is_used_only_where_it_agrees(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, device = Shape(2, 2, 64, torch.float32), torch.device("cpu")
    assert gpu._difference(gathered, shape, 8, 16, device) == 0
    assert gpu._difference(lambda *inputs: gathered(*inputs) * 1.1, shape, 8, 16, device) > gpu.TOLERANCE[torch.float32]
    assert gpu.kernel_for(shape, 8, 16, device) is None
    assert "without the paged kernel and without CUDA graphs: " in caplog.text


def test_room_is_what_the_fullest_gpu_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {torch.device("cuda:0"): 10_000, torch.device("cuda:1"): 40_000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 0))
    one, two = free
    shape = Shape(4, 1, 10, torch.float32)
    assert shape.token_bytes == 320
    assert gpu.room(shape, [one] * 4, 0.5, 1000) == 4000 // 320
    assert gpu.room(shape, [one, two, two, two], 0.5, 1000) == min(4000 // 80, 20_000 // 240)
    assert gpu.room(shape, [one] * 4, 0.5, 9000) == 0
