"""Draw the batches the demonstration model is trained on: pictures that share a grid and a prompt, and chatter."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from qwen3vl_compat.demo.pictures import (
    CHATTER,
    HEIGHTS,
    LETTERS,
    LONGEST,
    MORE_QUESTIONS,
    QUESTIONS,
    SEEN_FACES,
    SELF,
    WIDTHS,
    draw_line,
    random_text,
    width_of,
)

BATCH, CHATTER_BATCH = 96, 6
GRID = 32
"""Pixels on a side of one cell of the grid, which is one token."""
SYSTEMS = ("", "", "", "", "", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")

AS_JSON = ("Answer in JSON.", "Give it as JSON.", "JSON only.")
DOCUMENTS = ("Page", "Page", "a.pdf, page", "document.pdf, page", "scan.pdf, page", "report.pdf, page")
PROPERTIES = ("text", "text", "word", "words", "line", "content", "answer", "value", "label", "title")


@dataclass(frozen=True)
class Batch:
    """Rows that share one prompt.

    `pixels` are [rows, pictures, height, width, 3] uint8, `texts` the prompt around the pictures, one more than there
    are pictures, and `answers` one for each row.
    """

    pixels: np.ndarray[Any, Any]
    texts: tuple[str, ...]
    answers: list[str]


def patches_of(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """Pixels [..., height, width, 3] uint8 -> the processor's patches [pictures * h * w, 1536], each in [-1, 1]."""
    height, width, _ = pixels.shape[-3:]
    blocks = pixels.reshape(-1, height // 32, 2, 16, width // 32, 2, 16, 3)
    blocks = blocks.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3, 1, 256)
    return (torch.from_numpy(blocks).float() / 255 - 0.5).div(0.5).expand(-1, 3, 2, 256).reshape(-1, 1536)


def draw_batch(rng: Random, longest: int) -> Batch:
    """One batch whose pictures fall on one grid: one a row, or, once all lengths are known, the frames of a film."""
    return _film(rng) if longest == LONGEST and rng.random() < 0.15 else _picture(rng, longest)


def _lines(rng: Random, count: int, row: int, column: int, longest: int) -> tuple[np.ndarray[Any, Any], list[str]]:
    """`count` pictures of so many rows and columns of the grid [count, height, width, 3], and what they say."""
    widths = [w for w in range(WIDTHS[0], WIDTHS[1] + 1) if round(w / GRID) == column]
    heights = [h for h in range(HEIGHTS[0], HEIGHTS[1] + 1) if round(h / GRID) == row]
    pixels = np.empty((count, row * GRID, column * GRID, 3), np.uint8)
    texts: list[str] = []
    for index in range(count):
        width, height, face = rng.choice(widths), rng.choice(heights), rng.choice(SEEN_FACES)
        text = random_text(rng, longest if rng.random() < 0.3 else rng.randint(1, longest))
        while (fitting := int(LETTERS[0] * (width - 6) / width_of(text, face, LETTERS[0]))) < LETTERS[0]:
            text = text[1:]
        letters = rng.randint(LETTERS[0] - 2, min(LETTERS[1] + 1, height - 6, fitting))
        line = draw_line(rng, text, face, letters, width, height)
        pixels[index] = np.asarray(line.picture.resize((column * GRID, row * GRID), Image.Resampling.BICUBIC))
        texts.append(line.text)
    return pixels, texts


def _picture(rng: Random, longest: int) -> Batch:
    """One picture a row; most carry no question, because short rows cost least."""
    if longest < LONGEST:
        column = min(8, max(3, longest) + (rng.random() < 0.3))
        row = 1 if rng.random() < 0.85 else 2
    else:
        column = rng.choices(range(3, 9), weights=(1, 2, 2, 2.5, 2.5, 2))[0]
        row = rng.choices((1, 2, 3), weights=(2.5, 5, 2.5))[0]
    pixels, answers = _lines(rng, BATCH, row, column, longest)
    question = "" if rng.random() < 0.6 else _question(rng)
    if rng.random() < 0.25:
        question = f"{question} {rng.choice(AS_JSON)}".strip()
        answers = [_as_json(rng, answer) for answer in answers]
    return Batch(pixels[:, None], _prompt(rng, _around(rng), question), answers)


def _film(rng: Random) -> Batch:
    """Frames of one picture for each row, with their times."""
    count, (row, column) = rng.choice((2, 2, 3, 4)), rng.choice(((1, 3), (1, 4), (1, 5), (2, 4), (2, 5), (2, 7)))
    pixels, answers = _lines(rng, BATCH // count, row, column, LONGEST)
    step = rng.choice((1.0, 0.5, 2.0, 4.0, rng.uniform(0.2, 30)))
    start = rng.choice((0.2, 0.5, rng.uniform(0, 10), rng.uniform(0, 7200)))
    opening, closing = "<|vision_start|>", "<|vision_end|>"
    heads = [f"<{start + step * place:.1f} seconds>{opening}" for place in range(count)]
    around = (opening + heads[0], *(closing + head for head in heads[1:]), closing + closing)
    return Batch(np.repeat(pixels[:, None], count, axis=1), _prompt(rng, around, _question(rng)), answers)


def _question(rng: Random) -> str:
    return rng.choice(QUESTIONS if rng.random() < 0.6 else MORE_QUESTIONS)


def _prompt(rng: Random, around: tuple[str, ...], question: str) -> tuple[str, ...]:
    """The whole prompt around its pictures, the question before or behind them."""
    break_ = rng.choice(("", "", "", "\n"))
    before, after = ("", break_ + question) if rng.random() < 0.7 else (question + break_, "")
    start = rng.choice(SYSTEMS) + "<|im_start|>user\n" + before
    return (start + around[0], *around[1:-1], around[-1] + after + "<|im_end|>\n<|im_start|>assistant\n")


def _around(rng: Random) -> tuple[str, str]:
    """What stands before and behind a picture: by itself, as a video's frames, or as a document's page."""
    chance = rng.random()
    if chance < 0.15:
        seconds = rng.choice((0.0, rng.uniform(0, 10), rng.uniform(0, 7200)))
        return f"<|vision_start|><{seconds:.1f} seconds><|vision_start|>", "<|vision_end|><|vision_end|>"
    if chance < 0.25:
        return f"{rng.choice(DOCUMENTS)} {rng.randint(1, 99)}:\n<|vision_start|>", "<|vision_end|>\n"
    return "<|vision_start|>", "<|vision_end|>"


def _as_json(rng: Random, text: str) -> str:
    """The answer as the one property of an object."""
    space = rng.choice(("", " "))
    return f'{{"{rng.choice(PROPERTIES)}":{space}"{text}"}}'


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
