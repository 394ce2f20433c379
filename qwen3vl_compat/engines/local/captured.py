"""The decode step as CUDA graphs, one for each of a ladder of batch sizes: launching a step costs one call.

A step of fewer rows than its rung is filled up with rows that have one token, in a block nobody else uses.
"""

from bisect import bisect_left
from collections.abc import Callable

import torch

from qwen3vl_compat.engines.local.decoding import Decoding, Scores

Replay = Callable[[], None]


def ladder(rows: int) -> list[int]:
    """1, 2, 4, 8, then every 8 up to `rows`."""
    return sorted({rows, *(rung for rung in (1, 2, 4, 8, *range(16, rows, 8)) if rung < rows)})


class Captured:
    """To be called as the plain step is, over pages: ids, places, tables, ends and the memory itself.

    All rungs read the same inputs and share their workspace; results are valid until the next call.
    """

    def __init__(
        self,
        step: Decoding,
        rows: int,
        table_width: int,
        spare_block: int,
        memory: list[torch.Tensor],
        record: Callable[[Callable[[], Scores]], tuple[Replay, Scores]] | None = None,
    ) -> None:
        device = memory[0].device
        self._ids = torch.zeros(rows, dtype=torch.long, device=device)
        self._places = torch.zeros(3, rows, dtype=torch.long, device=device)
        self._tables = torch.full((rows, table_width), spare_block, dtype=torch.int32, device=device)
        self._ends = torch.ones(rows, dtype=torch.int32, device=device)
        self._spare = spare_block
        self._rungs = ladder(rows)
        record = record or _Recorder()
        # The largest first: the others then fit into the workspace it has taken.
        self._graphs = {
            rung: record(lambda rung=rung: step(*self._inputs(rung), *memory)) for rung in reversed(self._rungs)
        }

    def _inputs(self, rung: int) -> tuple[torch.Tensor, ...]:
        return self._ids[:rung], self._places[:, :rung], self._tables[:rung], self._ends[:rung]

    def __call__(
        self, ids: torch.Tensor, places: torch.Tensor, tables: torch.Tensor, ends: torch.Tensor, *_: torch.Tensor
    ) -> Scores:
        """See Decoding; `tables` may be narrower than the widest."""
        rows = len(ids)
        rung = self._rungs[bisect_left(self._rungs, rows)]
        self._ids[:rows], self._places[:, :rows], self._ends[:rows] = ids, places, ends
        self._tables[:rows, : tables.shape[1]] = tables
        self._tables[rows:rung, 0], self._ends[rows:rung] = self._spare, 1
        replay, (logits, best) = self._graphs[rung]
        replay()
        return logits[:rows], best[:rows]


class _Recorder:
    """Captures functions of no arguments in CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Scores]) -> tuple[Replay, Scores]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # libraries choose their kernels and take their memory before the capture
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            scores = function()
        return graph.replay, scores
