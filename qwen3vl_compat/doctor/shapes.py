"""What clients read out of answers, wire by wire: a field without a default has to be there.

Written anew and not taken from the server's own code, so that a fault there is not a fault here too.
"""

from typing import Literal

from msgspec import Struct

# -------------------------------------------------------------------------------------------------------- OpenAI chat


class ChatUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Function(Struct):
    name: str
    arguments: str


class Call(Struct):
    id: str
    type: Literal["function"]
    function: Function


class ChatMessage(Struct):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[Call] = []


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class Chat(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


class ChatDelta(Struct):
    role: str | None = None
    content: str | None = None


class ChunkChoice(Struct):
    index: int
    delta: ChatDelta
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"] | None


class Chunk(Struct):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None


# --------------------------------------------------------------------------------------------------- OpenAI responses


class ResponseUsage(Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class ResponsePart(Struct):
    type: str
    text: str = ""


class ResponseItem(Struct):
    type: str
    content: list[ResponsePart] = []


class Response(Struct):
    id: str
    object: Literal["response"]
    created_at: float
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[ResponseItem]
    usage: ResponseUsage | None


class ResponseEvent(Struct):
    type: str
    sequence_number: int
    delta: str = ""
    response: Response | None = None


# ------------------------------------------------------------------------------------------------------------- Google


class GooglePart(Struct, rename="camel"):
    text: str = ""


class GoogleContent(Struct, rename="camel"):
    role: Literal["model"]
    parts: list[GooglePart]


class Candidate(Struct, rename="camel"):
    content: GoogleContent
    index: int
    finish_reason: str | None = None


class UsageMetadata(Struct, rename="camel"):
    prompt_token_count: int
    total_token_count: int
    candidates_token_count: int = 0


class GenerateContent(Struct, rename="camel"):
    candidates: list[Candidate]
    model_version: str
    response_id: str
    usage_metadata: UsageMetadata | None = None


class CountTokens(Struct, rename="camel"):
    total_tokens: int


# ---------------------------------------------------------------------------------------------------------- Anthropic


class MessageUsage(Struct):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0


class Block(Struct):
    type: str
    text: str = ""


class Message(Struct):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: str | None
    usage: MessageUsage


class MessageDelta(Struct):
    text: str = ""
    stop_reason: str | None = None


class EndUsage(Struct):
    output_tokens: int


class MessageEvent(Struct):
    type: str
    message: Message | None = None
    delta: MessageDelta | None = None
    usage: EndUsage | None = None


class InputTokens(Struct):
    input_tokens: int
