"""Train the demonstration model on pictures drawn as it goes; stop and start again at will.

`python -m qwen3vl_compat.demo.train WORK --pictures N` keeps its state in WORK and writes the finished checkpoint to
WORK/model. The curriculum begins with one character and adds one whenever the running share of right characters
passes 0.8; until it has reached the longest line, pictures are kept small and questions short, because those cost
least. Attention and the patch embedding are computed another way while training, with equal results: equal-sized
pictures share one attention call, and the embedding, whose kernel covers its whole input, is a matrix product.
"""

import argparse
import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Qwen3VLForConditionalGeneration

from qwen3vl_compat.demo.batches import BATCH, GRID, Batch, chatter, draw_batch, patches_of
from qwen3vl_compat.demo.blank import write_blank
from qwen3vl_compat.demo.pictures import LONGEST

PEAK_RATE, WARM_UP = 2e-3, 300


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """Attention [rows, heads, n, d] written out: for rows this short several times faster than the fused kernel."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, device=scores.device, dtype=scores.dtype).triu(1)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def equal_pictures_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the tower when all pictures have one size: [1, heads, pictures * n, d] as a batch of pictures."""
    assert cu_seq_lens_q is not None
    pictures = len(cu_seq_lens_q) - 1
    heads, total, width = query.shape[1:]
    q, k, v = (x.view(heads, pictures, total // pictures, width).transpose(0, 1) for x in (query, key, value))
    return _attend(q, k, v, causal=False).reshape(1, total, heads, width), None


def causal_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of the text model over whole rows that are padded on the right only, so that no mask is needed."""
    groups = module.num_key_value_groups
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return _attend(query, key, value, causal=True), None


def _linear_patch_embedding(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    weight = self.proj.weight
    return functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


def fast_to_train(model: Any) -> None:
    """Exchange the slow parts for others that compute the same."""
    AttentionInterface.register("flash_equal_pictures", equal_pictures_attention)
    AttentionInterface.register("causal_rows", causal_attention)
    AttentionMaskInterface.register("causal_rows", lambda **_: None)
    model.model.language_model.config._attn_implementation = "causal_rows"
    visual = model.model.visual
    visual.config._attn_implementation = "flash_equal_pictures"
    visual.patch_embed.forward = _linear_patch_embedding.__get__(visual.patch_embed)


def optimizers_of(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices inside the layers, AdamW for everything else.

    The mergers' first matrices are left to AdamW: making 768 x 768 orthogonal costs more than all the others together.
    """
    inside = {
        name for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and min(p.shape) <= 256
    }
    matrices = [p for name, p in model.named_parameters() if name in inside]
    others = [p for name, p in model.named_parameters() if name not in inside]
    return [
        torch.optim.Muon(matrices, lr=0, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0, betas=(0.9, 0.98), weight_decay=0.01),
    ]


class Trainer:
    """The model, its optimiser and the curriculum; `run` goes on from wherever the work folder stands."""

    def __init__(self, work: Path, total: int) -> None:
        self.work, self.total = work, total
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if not (work / "blank" / "config.json").exists():
            write_blank(work / "blank")
        # Any: the stubs of transformers take `model.to` and `forward` for something else
        self.model: Any = Qwen3VLForConditionalGeneration.from_pretrained(work / "blank", dtype=torch.float32)
        self.model.to(self.device).train()
        fast_to_train(self.model)
        self.tokenizer = Tokenizer.from_file(str(work / "blank" / "tokenizer.json"))
        self.end = self.encode("<|im_end|>")[0]
        self.optimizers = optimizers_of(self.model)
        self.seen, self.longest, self.running = 0, 1, 0.0
        if (work / "state.pt").exists():
            state = torch.load(work / "state.pt", weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.seen, self.longest, self.running = state["seen"], state["longest"], state["running"]

    def encode(self, text: str) -> list[int]:
        """Token ids of prompt text, control tokens included."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def save(self) -> None:
        """Write the state to go on from, and the checkpoint as it would be shipped."""
        state = {"model": self.model.state_dict(), "optimizers": [each.state_dict() for each in self.optimizers]}
        state |= {"seen": self.seen, "longest": self.longest, "running": self.running}
        torch.save(state, self.work / "state.tmp")
        (self.work / "state.tmp").replace(self.work / "state.pt")
        shipped: Any = Qwen3VLForConditionalGeneration.from_pretrained(self.work / "blank", dtype=torch.float32)
        shipped.load_state_dict(self.model.state_dict())
        shipped.to(torch.bfloat16).save_pretrained(self.work / "model")
        for file in (self.work / "blank").iterdir():
            if file.suffix in (".json", ".jinja") and not (self.work / "model" / file.name).exists():
                (self.work / "model" / file.name).write_bytes(file.read_bytes())

    def rate(self) -> float:
        """The learning rate now: linear warm-up, then half a cosine down to a fiftieth."""
        step = self.seen / BATCH
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, self.seen / self.total)))
        return PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * max(0.02, fall)

    def picture_loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the answers; also moves the running share of right characters."""
        rows, count, height, width, _ = batch.pixels.shape
        grids = torch.tensor([[1, height // 16, width // 16]]).expand(count, -1)
        picture = [self.model.config.image_token_id] * ((height // GRID) * (width // GRID))
        prompt = self.encode(batch.texts[0])
        for text in batch.texts[1:]:
            prompt += picture + self.encode(text)
        start = len(prompt)
        answers = [self.encode(text) + [self.end] for text in batch.answers]
        ids = torch.full((rows, start + max(map(len, answers))), self.end)
        ids[:, :start] = torch.tensor(prompt)
        targets = torch.full_like(ids, -100)
        for index, answer in enumerate(answers):
            ids[index, start : start + len(answer)] = torch.tensor(answer)
            targets[index, start : start + len(answer)] = torch.tensor(answer)
        slots = ids == picture[0]
        positions, _ = self.model.model.get_rope_index(ids[:1], slots[:1].int(), grids)
        patches = patches_of(batch.pixels)
        logits = self.forward_answers(ids, start, positions.expand(-1, rows, -1), patches, grids.repeat(rows, 1), slots)
        wanted = targets[:, start:].to(self.device)
        with torch.no_grad():
            counted = (wanted != -100) & (wanted != self.end)
            right = ((logits.argmax(-1) == wanted) & counted).sum() / counted.sum()
            self.running = 0.98 * self.running + 0.02 * right.item()
        return functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())

    def forward_answers(
        self,
        ids: torch.Tensor,
        start: int,
        positions: torch.Tensor,
        patches: torch.Tensor,
        grids: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [rows, answer length, vocabulary] that predict each answer token from those before it."""
        inner, rows = self.model.model, len(ids)
        seen = inner.visual(patches.to(self.device), grid_thw=grids.to(self.device))
        embeds = inner.get_input_embeddings()(ids.to(self.device))
        pictures = seen.pooler_output.view(rows, -1, embeds.shape[-1]).to(embeds.dtype)
        places = slots[0].nonzero().squeeze(1).to(self.device)
        hidden = inner.language_model(
            inputs_embeds=embeds.index_copy(1, places, pictures),
            position_ids=positions.to(self.device),
            visual_pos_masks=slots.to(self.device),
            deepstack_visual_embeds=seen.deepstack_features,
            use_cache=False,
        ).last_hidden_state
        return self.model.lm_head(hidden[:, start - 1 : -1])

    def chatter_loss(self, rng: Random) -> torch.Tensor:
        """Cross-entropy of the one sentence it says when shown nothing."""
        ids, targets = (x.to(self.device) for x in chatter(rng, self.encode))
        positions = torch.arange(ids.shape[1], device=self.device).expand(3, len(ids), -1)
        hidden = self.model.model.language_model(
            inputs_embeds=self.model.get_input_embeddings()(ids), position_ids=positions, use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1]).flatten(0, 1).float()
        return functional.cross_entropy(logits, targets[:, 1:].flatten())

    def batches(self) -> Iterator[Batch]:
        """Batches drawn ahead in a thread."""
        ahead: queue.Queue[Batch] = queue.Queue(maxsize=4)
        rng = Random(f"training {self.seen}")

        def draw() -> None:
            while True:
                ahead.put(draw_batch(rng, self.longest))

        threading.Thread(target=draw, daemon=True).start()
        while True:
            yield ahead.get()

    def run(self) -> None:
        """Train until `total` pictures have been seen, saving every few minutes."""
        began, first, saved, rng = time.monotonic(), self.seen, time.monotonic(), Random(self.seen)
        for step, batch in enumerate(self.batches()):
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = self.rate()
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.picture_loss(batch)
                if step % 4 == 0:
                    loss = loss + 0.1 * self.chatter_loss(rng)
            self.model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.seen += BATCH
            if self.running > 0.8 and self.longest < LONGEST:
                self.longest, self.running = self.longest + 1, 0.5
            if step % 50 == 0:
                speed = (self.seen - first) / (time.monotonic() - began)
                print(
                    f"{self.seen} pictures, up to {self.longest} characters, {self.running:.3f} of them right, "
                    f"loss {loss.item():.3f}, {speed:.0f} pictures/s",
                    flush=True,
                )
            if time.monotonic() - saved > 180 or self.seen >= self.total:
                self.save()
                saved = time.monotonic()
            if self.seen >= self.total:
                return


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pictures", type=int, default=1_200_000, help="how many pictures to see in all")
    arguments = parser.parse_args()
    Trainer(arguments.work, arguments.pictures).run()


if __name__ == "__main__":
    main()
