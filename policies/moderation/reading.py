"""What moderators are shown of a request: its words as the model would read them, its pictures as it would see them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from qwen3vl_compat.media.image import jpeg_of
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.messages import (
    Frames,
    Media,
    Message,
    Part,
    Picture,
    Reasoning,
    Request,
    Text,
    ToolCall,
    ToolResult,
    Video,
)


def words_of(request: Request) -> list[str]:
    """All words of a request, whoever is said to have said them: a caller writes every role's."""
    tools = [f"{tool.name} {tool.description}\n{tool.parameters}" for tool in request.tools]
    texts = [text for message in request.messages for text in texts_of(message)]
    return [*texts, *tools, *filter(None, (request.format.value,))]


def texts_of(message: Message) -> list[str]:
    """The words of a turn. Texts in a row are one, as they are to the model: a word may be cut between them."""
    return list(_joined(message.parts))


def shown_in(messages: Iterable[Message]) -> list[Message]:
    """Those that hold a picture or video."""
    return [each for each in messages if any(isinstance(part, Picture | Video) for part in each.leaves)]


def jpegs_of(messages: Iterable[Message], spec: VisionSpec, frames: int) -> list[bytes]:
    """The checked pictures, and of each video so many frames, evenly spread, as JPEG. Takes a while: for a thread."""
    pictures: list[Picture] = []
    for message in messages:
        for part in message.leaves:
            if isinstance(part, Picture):
                pictures.append(part)
            elif isinstance(part, Video):
                pictures += _spread(part.pairs, frames)
    return [jpeg_of(picture, spec) for picture in pictures]


def _joined(parts: Iterable[Part]) -> Iterator[str]:
    for are_texts, run in groupby(parts, lambda part: isinstance(part, Text)):
        if are_texts:
            text = "".join(part.text for part in run if isinstance(part, Text))
            if text:
                yield text
        else:
            for part in run:
                yield from _texts_in(part)


def _texts_in(part: Part) -> Iterator[str]:
    match part:
        case Reasoning(text):
            yield text
        case ToolCall(_, name, arguments):
            yield f"{name} {arguments}"
        case ToolResult(_, _, parts):
            yield from _joined(parts)
        case Media() if part.name:
            yield part.name
        case Text() | Media() | Frames() | Picture() | Video():
            pass


def _spread(pairs: Sequence[Picture], most: int) -> list[Picture]:
    """At most so many, the first and the last among them."""
    if len(pairs) <= most or most == 1:
        return list(pairs[:most])
    return [pairs[round(place * (len(pairs) - 1) / (most - 1))] for place in range(most)]
