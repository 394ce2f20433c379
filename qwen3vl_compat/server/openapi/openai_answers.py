"""What OpenAI's routes answer, as Structs of which OpenAPI's schemas are made. They read nothing."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Finish = Literal["stop", "length", "tool_calls", "content_filter"]


class Answered(Struct, kw_only=True, forbid_unknown_fields=True):
    """An answer that has no field but these."""


class Details(Answered):
    """Why an answer ended, where its reason does not say it all."""

    type: str


class PromptDetails(Answered):
    """The prompt's tokens by kind."""

    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int
    text_tokens: int
    image_tokens: int
    video_tokens: int


class CompletionDetails(Answered):
    """The answer's tokens by kind."""

    reasoning_tokens: int


class Usage(Answered):
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Likely(Answered):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(Likely):
    """A token, and the likeliest in its place."""

    top_logprobs: list[Likely]


class Logprobs(Answered):
    """The log-probabilities of an answer's tokens."""

    content: list[Logprob]
    refusal: None


class Function(Answered):
    """The function that is called, its arguments as JSON text."""

    name: str
    arguments: str


class Call(Answered):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: Function


class ChatMessage(Answered):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class ChatChoice(Answered):
    """One answer to a chat."""

    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: Finish
    finish_details: Details | UnsetType = UNSET


class ChatCompletion(Answered):
    """The whole answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default"]
    system_fingerprint: None


class TextLogprobs(Answered):
    """The log-probabilities of a text's tokens, list by list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Answered):
    """One way a text may go on."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish


class TextCompletion(Answered):
    """The whole answer to a prompt, or to several."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: None


class Response(Struct, kw_only=True):
    """A response; it says much of its request again."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None


class InputTokens(Answered):
    """How many tokens a request would be."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class ItemList(Answered):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class DeletedResponse(Answered):
    """That a response is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class Judged(Answered):
    """What is said of one input."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text", "image"]]]


class Moderated(Answered):
    """What moderators say."""

    id: str
    model: str
    results: list[Judged]


class OpenAIFault(Answered):
    """What is wrong; `param` is the field's path."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Answered):
    """An error, whole or as a stream's last event."""

    error: OpenAIFault


COMPONENTS = (
    ChatCompletion, TextCompletion, Response, InputTokens, ItemList, DeletedResponse, Moderated, OpenAIError,
)  # fmt: skip
