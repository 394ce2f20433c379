"""How far the engine in bfloat16, or on a GPU, is from the same weights in float32.

The engine answers greedily, all prompts at once. Then transformers' model in float32 reads every prompt with the
engine's own answer behind it: its logits at each place are what the engine's should have been (`generate()` in bfloat16
would be no oracle: its own tokens depend on how a prompt is divided). A token that is not the oracle's first choice
must be a near-tie there.
"""

from dataclasses import dataclass
from typing import Any

import torch

from qwen3vl_compat.engines.local.answer import Answer
from qwen3vl_compat.engines.local.checkpoint import Checkpoint
from qwen3vl_compat.engines.local.decoding import Scores
from qwen3vl_compat.engines.local.dialect import Dialect
from qwen3vl_compat.engines.local.guide import Rules
from qwen3vl_compat.engines.local.job import Job
from qwen3vl_compat.engines.local.prompt import Prompt
from qwen3vl_compat.engines.local.runner import Runner
from qwen3vl_compat.engines.local.sampling import Chooser, Seen
from qwen3vl_compat.engines.local.sequence import Sequence
from qwen3vl_compat.engines.local.worker import Worker
from qwen3vl_compat.messages import Caller, Request
from qwen3vl_compat.settings import ModelSettings


@dataclass(frozen=True)
class Agreement:
    """What came out. Errors are shares of the spread of the oracle's logits."""

    tokens: int
    differing: int
    """Tokens that are not the oracle's first choice."""
    worst_gap: float
    """Of those, by how much at most the oracle prefers its own."""
    errors: dict[str, float]
    """Quantiles of the logits' errors."""

    def __str__(self) -> str:
        quantiles = ", ".join(f"{name} {value:.4f}" for name, value in self.errors.items())
        return (
            f"{self.tokens} tokens, {self.differing} not the oracle's first choice, by {self.worst_gap:.4f} of the "
            f"spread at most; errors of the logits: {quantiles}"
        )


class Listening(Worker):
    """A worker that keeps the logits of every token it draws."""

    def listen(self) -> dict[int, list[torch.Tensor]]:
        """Logits by the id() of the job, from now on."""
        self.heard: dict[int, list[torch.Tensor]] = {}
        return self.heard

    def _extend(self, scores: Scores, rows: list[tuple[int, Sequence]]) -> None:
        for row, sequence in rows:
            self.heard.setdefault(id(sequence.owner), []).append(scores[0][row].float().cpu())
        super()._extend(scores, rows)


def model_inputs(config: Any, ids: torch.Tensor, prompt: Prompt, runner: Runner) -> dict[str, torch.Tensor]:
    """What transformers' model is called with for token ids [1, n] that begin with this prompt."""
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    if not prompt.pictures:
        return inputs
    pixels = torch.cat([runner._pixels(each) for each in prompt.pictures]).to(ids.device)
    grids = torch.tensor([each.grid for each in prompt.pictures], device=ids.device)
    if prompt.pictures[0].frames == 1:
        return inputs | {"pixel_values": pixels, "image_grid_thw": grids}
    whole = torch.cat([torch.tensor([len(grids)], device=ids.device), grids[0, 1:]])[None]
    return inputs | {"pixel_values_videos": pixels, "video_grid_thw": whole}


@torch.inference_mode()
def agreement(checkpoint: Checkpoint, runner: Runner, oracle: Any, prompts: list[Prompt], length: int) -> Agreement:
    """Ask the engine, then the oracle: transformers' model in float32."""
    worker = Listening(runner, ModelSettings(piece_tokens=64), lambda _: None)
    heard, jobs = worker.listen(), list[Job]()
    for prompt in prompts:
        request = Request(id="r", created=0, model="m", messages=(), caller=Caller("t", "k"))
        rules, words = Rules(eos=frozenset(), ends=frozenset(), limit=length), checkpoint.vocabulary
        jobs.append(Job(request, prompt, [Answer(Chooser(), Dialect(words, 0), rules, words, seen=Seen(()))]))
        worker.submit(jobs[-1])
    while worker.busy:
        worker.turn()
    device = next(oracle.parameters()).device
    gaps, errors, tokens = list[float](), list[torch.Tensor](), 0
    for job in jobs:
        logits = torch.stack(heard[id(job)])
        chosen = logits.argmax(-1)
        ids = torch.cat([torch.from_numpy(job.prompt.ids), chosen[:-1]])[None].to(device)
        wanted = oracle(**model_inputs(oracle.config, ids, job.prompt, runner), use_cache=False).logits[0]
        wanted = wanted[len(job.prompt.ids) - 1 :].float().cpu()
        spread, best = wanted.std(), wanted.argmax(-1)
        tokens += len(chosen)
        places = (chosen != best).nonzero()[:, 0]
        gaps += ((wanted[places, best[places]] - wanted[places, chosen[places]]) / spread).tolist()
        errors.append(((logits - wanted).abs() / spread).flatten())
    every = torch.cat(errors).numpy()
    quantiles = {f"{share:g}": float(torch.from_numpy(every).kthvalue(max(1, int(share * len(every)))).values)
                 for share in (0.5, 0.9, 0.99, 1.0)}  # fmt: skip
    return Agreement(tokens, len(gaps), max(gaps, default=0.0), quantiles)
