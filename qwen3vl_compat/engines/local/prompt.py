"""A Request to what the model reads: token ids, where the pictures go, and M-RoPE positions."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers.utils.chat_template_utils import render_jinja_template

from qwen3vl_compat.engines.local.checkpoint import Checkpoint
from qwen3vl_compat.engines.local.sequence import Span
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.events import Usage
from qwen3vl_compat.messages import Message, Part, Picture, Request, Text
from qwen3vl_compat.tokens import unused_mark

MOST_CHARACTERS = 32
"""Characters of text taken for each token of the context. Words have 4 or 5; more than this is not worth counting."""


def too_long(limit: int, held: str) -> InvalidRequest:
    """The refusal of a prompt that leaves no room in a context of `limit` tokens; `held` says how many it has."""
    return InvalidRequest(
        f"Input tokens exceed the configured limit of {limit} tokens: the messages hold {held} and "
        "that exceeds the maximum number of tokens allowed (context_length_exceeded)",
        param="messages",
        code="context_length_exceeded",
    )


@dataclass(frozen=True)
class Prompt:
    """One prompt as the model takes it.

    `positions` is [3, length] (time, height, width); a token generated at place p of the whole sequence stands at
    p + `shift` in all three.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    shift: int
    pictures: tuple[Picture, ...]
    spans: tuple[Span, ...]
    usage: Usage

    def places(self, start: int, end: int) -> NDArray[np.int64]:
        """Position rows [3, end - start] of these places of the sequence that begins with this prompt."""
        inside = self.positions[:, start:end]
        behind = np.arange(max(start, len(self.ids)), max(end, len(self.ids))) + self.shift
        return np.concatenate([inside, np.broadcast_to(behind, (3, len(behind)))], axis=1)


class PromptBuilder:
    """The checkpoint's chat template and vocabulary, applied to requests."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._vocabulary, self._template = checkpoint.vocabulary, checkpoint.template
        self._image_id = checkpoint.vocabulary.added[checkpoint.image_token]
        self._spec, self._context = checkpoint.spec, checkpoint.context

    def build(self, request: Request) -> Prompt:
        """Render, encode and place; raises InvalidRequest for text no vocabulary can take."""
        texts = [part.text for message in request.messages for part in message.parts if isinstance(part, Text)]
        if sum(map(len, texts)) > MOST_CHARACTERS * self._context or len(request.messages) > self._context // 4:
            raise too_long(self._context, f"more than {self._context}")
        mark = unused_mark(texts)
        turns = [self._turn(message, mark) for message in request.messages]
        rendered = self._render(turns)
        slots = [part for message in request.messages for part in message.parts if isinstance(part, Picture)]
        ids = list(self._expand(self._vocabulary.encode_prompt(rendered, mark), slots))
        pictures = sum(self._spec.tokens(picture.grid) for picture in slots)
        is_slot = np.array(ids) == self._image_id
        positions, shift = mrope_positions(is_slot, slots, self._spec.merge_size)
        usage = Usage(prompt_text=len(ids) - pictures, prompt_image=pictures)
        spans = tuple(self._spans(np.flatnonzero(is_slot), slots))
        return Prompt(np.array(ids, dtype=np.int64), positions, shift, tuple(slots), spans, usage)

    def _spans(self, places: NDArray[np.int64], pictures: list[Picture]) -> Iterator[Span]:
        passed = 0
        for picture in pictures:
            length = self._spec.tokens(picture.grid)
            yield Span(int(places[passed]), length, picture.digest)
            passed += length

    def _render(self, turns: list[dict[str, Any]]) -> str:
        try:
            return render_jinja_template([turns], chat_template=self._template, add_generation_prompt=True)[0][0]
        except TemplateError:
            message = "messages: the model's template does not take these roles in this order"
            raise InvalidRequest(message, param="messages") from None

    def _turn(self, message: Message, mark: str) -> dict[str, Any]:
        parts = [self._part(part, mark) for part in message.parts]
        if all(part["type"] == "text" for part in parts):
            return {"role": message.role, "content": "".join(part["text"] for part in parts)}
        return {"role": message.role, "content": parts}

    def _part(self, part: Part, mark: str) -> dict[str, str]:
        match part:
            case Text(text):
                return {"type": "text", "text": self._vocabulary.shield(text, mark)}
            case Picture():
                return {"type": "image"}
            case _:
                raise AssertionError("an unchecked picture reached the engine")

    def _expand(self, ids: list[int], pictures: list[Picture]) -> Iterator[int]:
        """Each picture's single slot repeated to its true length."""
        waiting = iter(pictures)
        for token in ids:
            if token != self._image_id:
                yield token
                continue
            picture = next(waiting, None)
            assert picture is not None, "the template made more slots than there are pictures"
            yield from itertools.repeat(token, self._spec.tokens(picture.grid))
        if next(waiting, None) is not None:
            raise InvalidRequest("messages: the model's template has no place for a picture in that role")


def mrope_positions(
    is_slot: NDArray[np.bool_], pictures: list[Picture], merge_size: int
) -> tuple[NDArray[np.int64], int]:
    """Qwen3-VL's three position rows [3, length], and the shift of what follows.

    Text counts up in all rows at once; a picture keeps the time still, spreads height and width over its merged grid,
    and the text after it goes on behind the longer side (`get_rope_index` in transformers' qwen3_vl).
    """
    length = len(is_slot)
    positions = np.empty((3, length), dtype=np.int64)
    place, now, waiting = 0, 0, iter(pictures)
    while place < length:
        if is_slot[place]:
            _, rows, columns = next(waiting).grid
            rows, columns = rows // merge_size, columns // merge_size
            end = place + rows * columns
            positions[0, place:end] = now
            positions[1, place:end] = now + np.repeat(np.arange(rows), columns)
            positions[2, place:end] = now + np.tile(np.arange(columns), rows)
            now += max(rows, columns)
        else:
            following = np.flatnonzero(is_slot[place:])
            end = place + int(following[0]) if len(following) else length
            positions[:, place:end] = np.arange(now, now + end - place)
            now += end - place
        place = end
    return positions, now - length
