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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Qwen3VLForConditionalGeneration

from qwen3vl_compat.demo.blank import write_blank
from qwen3vl_compat.demo.pictures import (
    CHATTER,
    HEIGHTS,
    LONGEST,
    MORE_QUESTIONS,
    QUESTIONS,
    SEEN_FACES,
    SELF,
    WIDTHS,
    draw_line,
    random_text,
)

BATCH, CHATTER_BATCH = 96, 6
PEAK_RATE, WARM_UP = 1.2e-3, 300
GRID = 32
SYSTEMS = ("", "", "", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")


@dataclass(frozen=True)
class Batch:
    """Rows that share one prompt: pixels [rows, height, width, 3] uint8, the prompt's halves and each row's answer."""

    pixels: np.ndarray[Any, Any]
    before: str
    after: str
    answers: list[str]


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


def patches_of(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """Pixels [rows, height, width, 3] uint8 -> the processor's patches [rows * h * w, 1536], each in [-1, 1]."""
    rows, height, width, _ = pixels.shape
    blocks = pixels.reshape(rows, height // 32, 2, 16, width // 32, 2, 16, 3)
    blocks = blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3, 1, 256)
    return (torch.from_numpy(blocks).float() / 255 - 0.5).div(0.5).expand(-1, 3, 2, 256).reshape(-1, 1536)


def draw_batch(rng: Random, longest: int) -> Batch:
    """One batch whose pictures fall on one grid; sizes and letters cover a little more than the promised range."""
    learning = longest < LONGEST
    if learning:
        column = min(8, max(3, longest) + (rng.random() < 0.3))
        row = 1 if rng.random() < 0.85 else 2
    else:
        column = rng.choices(range(3, 9), weights=(1, 1, 1.5, 2, 2.5, 2.5))[0]
        row = rng.choices((1, 2, 3), weights=(3, 3.5, 1.5))[0]
    widths = [w for w in range(WIDTHS[0], WIDTHS[1] + 1) if round(w / GRID) == column]
    heights = [h for h in range(HEIGHTS[0], HEIGHTS[1] + 1) if round(h / GRID) == row]
    pixels = np.empty((BATCH, row * GRID, column * GRID, 3), np.uint8)
    answers: list[str] = []
    for index in range(BATCH):
        length = longest if rng.random() < 0.3 else rng.randint(1, longest)
        width, height = rng.choice(widths), rng.choice(heights)
        length = min(length, width // 20)
        letters = rng.randint(14, min(33, height - 4, max(14, int(1.15 * width / length))))
        line = draw_line(rng, random_text(rng, length), rng.choice(SEEN_FACES), letters, width, height)
        pixels[index] = np.asarray(line.picture.resize((column * GRID, row * GRID), Image.Resampling.BICUBIC))
        answers.append(line.text)
    question = rng.choice(QUESTIONS if rng.random() < 0.6 else MORE_QUESTIONS)
    if learning and rng.random() < 0.7:
        question = ""
    slot = "<|vision_start|>" + "<|image_pad|>" * (row * column) + "<|vision_end|>"
    break_ = rng.choice(("", "", "", "\n"))
    turn = slot + break_ + question if rng.random() < 0.5 else question + break_ + slot
    before, after = turn.split(slot)
    start = rng.choice(SYSTEMS) + "<|im_start|>user\n" + before + "<|vision_start|>"
    return Batch(pixels, start, "<|vision_end|>" + after + "<|im_end|>\n<|im_start|>assistant\n", answers)


def chatter(rng: Random, encode: Callable[[str], list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows without a picture: (ids, targets) [rows, length]; targets are -100 outside the answer."""
    rows: list[tuple[list[int], int]] = []
    for _ in range(CHATTER_BATCH):
        words = rng.sample(SELF.split() + [random_text(rng, 4), "picture", "please"], rng.randint(1, 6))
        prompts = (*QUESTIONS, *MORE_QUESTIONS, *CHATTER, *CHATTER, " ".join(words), random_text(rng, 5))
        prompt = rng.choice(SYSTEMS) + f"<|im_start|>user\n{rng.choice(prompts)}<|im_end|>\n<|im_start|>assistant\n"
        ids = encode(prompt)
        rows.append((ids + encode(SELF + "<|im_end|>\n"), len(ids)))
    ids = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long)
    targets = torch.full_like(ids, -100)
    for index, (row, answer) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        targets[index, answer : len(row) - 1] = torch.tensor(row[answer:-1])
    return ids, targets


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
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0, betas=(0.9, 0.98), weight_decay=0.01)
        self.seen, self.longest, self.running = 0, 1, 0.0
        if (work / "state.pt").exists():
            state = torch.load(work / "state.pt", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.seen, self.longest, self.running = state["seen"], state["longest"], state["running"]

    def encode(self, text: str) -> list[int]:
        """Token ids of prompt text, control tokens included."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def save(self) -> None:
        """Write the state to go on from, and the checkpoint as it would be shipped."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"seen": self.seen, "longest": self.longest, "running": self.running}
        torch.save(state, self.work / "state.tmp")
        (self.work / "state.tmp").replace(self.work / "state.pt")
        shipped: Any = Qwen3VLForConditionalGeneration.from_pretrained(self.work / "blank", dtype=torch.float32)
        shipped.load_state_dict(self.model.state_dict())
        shipped.to(torch.bfloat16).save_pretrained(self.work / "model")
        for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"):
            (self.work / "model" / file).write_bytes((self.work / "blank" / file).read_bytes())

    def rate(self) -> float:
        """The learning rate now: linear warm-up, then half a cosine down to a fiftieth."""
        step = self.seen / BATCH
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, self.seen / self.total)))
        return PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * max(0.02, fall)

    def picture_loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the answers; also moves the running share of right characters."""
        rows, height, width, _ = batch.pixels.shape
        grid = torch.tensor([[1, height // 16, width // 16]], device=self.device)
        before, after = self.encode(batch.before), self.encode(batch.after)
        slots = (height // GRID) * (width // GRID)
        start = len(before) + slots + len(after)
        answers = [self.encode(text) + [self.end] for text in batch.answers]
        ids = torch.full((rows, start + max(map(len, answers))), self.end)
        ids[:, :start] = torch.tensor(before + [self.model.config.image_token_id] * slots + after)
        targets = torch.full_like(ids, -100)
        for index, answer in enumerate(answers):
            ids[index, start : start + len(answer)] = torch.tensor(answer)
            targets[index, start : start + len(answer)] = torch.tensor(answer)
        kinds = torch.zeros(1, ids.shape[1], dtype=torch.int)
        kinds[:, len(before) : len(before) + slots] = 1
        positions, _ = self.model.model.get_rope_index(ids[:1], kinds, grid.cpu())
        logits = self.forward_answers(
            ids.to(self.device), start, positions.expand(-1, rows, -1), patches_of(batch.pixels), grid, len(before)
        )
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
        grid: torch.Tensor,
        slot: int,
    ) -> torch.Tensor:
        """Logits [rows, answer length, vocabulary] that predict each answer token from those before it."""
        inner, rows = self.model.model, len(ids)
        seen = inner.visual(patches.to(self.device), grid_thw=grid.expand(rows, -1))
        width = seen.pooler_output.shape[0] // rows
        embeds = inner.get_input_embeddings()(ids)
        picture = seen.pooler_output.view(rows, width, -1).to(embeds.dtype)
        embeds = torch.cat([embeds[:, :slot], picture, embeds[:, slot + width :]], dim=1)
        where = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        where[:, slot : slot + width] = True
        hidden = inner.language_model(
            inputs_embeds=embeds,
            position_ids=positions.to(self.device),
            visual_pos_masks=where,
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
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.picture_loss(batch)
                if step % 4 == 0:
                    loss = loss + 0.1 * self.chatter_loss(rng)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
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
