"""A Request to what the model reads: token ids, where the pictures go, and M-RoPE positions."""

import itertools
import json
from collections.abc import Iterator
from collections.abc import Sequence as Items
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
from qwen3vl_compat.messages import (
    Content,
    Message,
    Picture,
    Reasoning,
    Request,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    Video,
)
from qwen3vl_compat.tokens import unused_mark

OPENED, CLOSED = "<think>\n", "\n</think>\n\n"
"""How a template ends that opens a thought, and what closes an empty one: as Qwen3's own templates do."""
MOST_CHARACTERS = 32
"""Characters of text taken for each token of the context. Words have 4 or 5; more than this is not worth counting."""


def too_long(limit: int, held: str, field: str) -> InvalidRequest:
    """The refusal of a prompt that leaves no room in a context of `limit` tokens; `held` says how many it has."""
    holds = "prompt holds" if field == "prompt" else f"{field} hold"
    return InvalidRequest(
        f"Input tokens exceed the configured limit of {limit} tokens: the {holds} {held} and "
        "that exceeds the maximum number of tokens allowed (context_length_exceeded)",
        param=field,
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
    thinking: bool = False
    """Whether it ends inside a thought that the template has opened."""

    def places(self, start: int, end: int) -> NDArray[np.int64]:
        """Position rows [3, end - start] of these places of the sequence that begins with this prompt."""
        inside = self.positions[:, start:end]
        behind = np.arange(max(start, len(self.ids)), max(end, len(self.ids))) + self.shift
        return np.concatenate([inside, np.broadcast_to(behind, (3, len(behind)))], axis=1)


class PromptBuilder:
    """The checkpoint's chat template and vocabulary, applied to requests."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._vocabulary, self._template = checkpoint.vocabulary, checkpoint.template
        added = checkpoint.vocabulary.added
        self._image_id, self._video_id = added[checkpoint.image_token], added[checkpoint.video_token]
        self._begin, self._end = added["<|vision_start|>"], added["<|vision_end|>"]
        self._spec, self._context = checkpoint.spec, checkpoint.context

    def build(self, request: Request) -> Prompt:
        """Render, encode and place; raises InvalidRequest for text no vocabulary can take."""
        texts = list(_texts(request))
        if sum(map(len, texts)) > MOST_CHARACTERS * self._context or len(request.messages) > self._context // 4:
            raise too_long(self._context, f"more than {self._context}", request.field)
        slots = [part for message in request.messages for part in message.leaves if isinstance(part, Picture | Video)]
        encoded, thinking = self._encoded(request, texts)
        ids = np.fromiter(self._expand(encoded, slots), dtype=np.int64)
        pictures = [picture for slot in slots for picture in (slot.pairs if isinstance(slot, Video) else (slot,))]
        is_slot = (ids == self._image_id) | (ids == self._video_id)
        positions, shift = mrope_positions(is_slot, pictures, self._spec.merge_size)
        images, videos = (int((ids == token).sum()) for token in (self._image_id, self._video_id))
        usage = Usage(prompt_text=len(ids) - images - videos, prompt_image=images, prompt_video=videos)
        spans = tuple(self._spans(np.flatnonzero(is_slot), pictures))
        return Prompt(ids, positions, shift, tuple(pictures), spans, usage, thinking)

    def _encoded(self, request: Request, texts: Items[str]) -> tuple[list[int], bool]:
        """The prompt's ids, media at one slot each, and whether it ends inside a thought."""
        if request.raw:
            return self._vocabulary.encode("".join(texts)), False
        mark = unused_mark(texts)
        rendered, thinking = self._render(request, mark)
        return self._vocabulary.encode_prompt(rendered, mark), thinking

    def _spans(self, places: NDArray[np.int64], pictures: list[Picture]) -> Iterator[Span]:
        passed = 0
        for picture in pictures:
            length = self._spec.tokens(picture.grid)
            yield Span(int(places[passed]), length, picture.digest)
            passed += length

    def _render(self, request: Request, mark: str) -> tuple[str, bool]:
        """The prompt's text, and whether it ends inside a thought. A thought that is not wanted is closed at once."""
        turns = [turn for message in request.messages for turn in self._turns(message, mark)]
        tools = request.tools if request.tool_choice.mode != "none" else ()
        thinking = request.thinking
        unwanted = thinking.enabled is False or thinking.budget == 0
        wish: dict[str, Any] = {}
        if unwanted or thinking.enabled is not None:
            wish["enable_thinking"] = not unwanted
        try:
            rendered = render_jinja_template(
                [turns],
                chat_template=self._template,
                tools=[self._tool(tool, mark) for tool in tools] or None,
                add_generation_prompt=True,
                **wish,
            )[0][0]
        except TemplateError:
            message = "messages: the model's template does not take these roles in this order"
            raise InvalidRequest(message, param="messages") from None
        opened = rendered.endswith(OPENED)
        return (rendered + CLOSED, False) if opened and unwanted else (rendered, opened)

    def _turns(self, message: Message, mark: str) -> Iterator[dict[str, Any]]:
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        if results:
            for result in results:
                yield {"role": "tool", "content": self._content(result.parts, mark)}
            return
        turn: dict[str, Any] = {
            "role": message.role,
            "content": self._content([part for part in message.parts if isinstance(part, Content)], mark),
        }
        calls = [part for part in message.parts if isinstance(part, ToolCall)]
        if calls:
            turn["tool_calls"] = [{"type": "function", "function": self._call(call, mark)} for call in calls]
        thoughts = [part.text for part in message.parts if isinstance(part, Reasoning)]
        if thoughts:
            turn["reasoning_content"] = self._shield("".join(thoughts), mark)
        yield turn

    def _content(self, parts: Items[Content], mark: str) -> str | list[dict[str, str]]:
        made = [self._part(part, mark) for part in parts]
        if all(part["type"] == "text" for part in made):
            return "".join(part["text"] for part in made)
        return made

    def _part(self, part: Content, mark: str) -> dict[str, str]:
        match part:
            case Text(text):
                return {"type": "text", "text": self._shield(text, mark)}
            case Picture():
                return {"type": "image"}
            case Video():
                return {"type": "video"}
            case _:
                raise AssertionError("an unchecked medium reached the engine")

    def _call(self, call: ToolCall, mark: str) -> dict[str, str]:
        """The arguments as the model itself would write them, if they are JSON at all, and not nested too deep."""
        try:
            arguments = json.dumps(json.loads(call.arguments), ensure_ascii=False)
        except (ValueError, RecursionError):
            arguments = call.arguments
        return {"name": self._shield(call.name, mark), "arguments": self._shield(arguments, mark)}

    def _tool(self, tool: Tool, mark: str) -> Any:
        function = {"name": tool.name, "description": tool.description}
        parameters = json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
        return self._shielded({"type": "function", "function": {**function, "parameters": parameters}}, mark)

    def _shield(self, text: str, mark: str) -> str:
        return self._vocabulary.shield(text, mark)

    def _shielded(self, value: Any, mark: str) -> Any:
        """The same value with every text in it shielded."""
        match value:
            case str():
                return self._shield(value, mark)
            case dict():
                return {self._shield(key, mark): self._shielded(item, mark) for key, item in value.items()}
            case list():
                return [self._shielded(item, mark) for item in value]
            case _:
                return value

    def _expand(self, ids: list[int], slots: list[Picture | Video]) -> Iterator[int]:
        """Each medium's single slot at its true length; each pair of a video's frames behind its time."""
        waiting = iter(slots)
        for token in ids:
            if token not in (self._image_id, self._video_id):
                yield token
                continue
            slot = next(waiting, None)
            assert isinstance(slot, Picture if token == self._image_id else Video), "the template made other slots"
            if isinstance(slot, Picture):
                yield from itertools.repeat(token, self._spec.tokens(slot.grid))
                continue
            for pair, seconds in zip(slot.pairs, slot.times, strict=True):
                yield from self._vocabulary.encode(f"<{seconds:.1f} seconds>")
                yield self._begin
                yield from itertools.repeat(token, self._spec.tokens(pair.grid))
                yield self._end
        if next(waiting, None) is not None:
            raise InvalidRequest("messages: the model's template has no place for a picture or video in that role")


def _texts(request: Request) -> Iterator[str]:
    """All a prompt holds of a client's own words."""
    for message in request.messages:
        for part in message.leaves:
            match part:
                case Text(text) | Reasoning(text):
                    yield text
                case ToolCall():
                    yield from (part.name, part.arguments)
                case _:
                    pass
    for tool in request.tools:
        yield from (tool.name, tool.description, tool.parameters)


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
