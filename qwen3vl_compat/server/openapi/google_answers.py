"""What Google's routes answer, as Structs of which OpenAPI's schemas are made. They read nothing."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType


class Told(Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """An answer that has no field but these."""


class TokensOf(Told):
    """How many tokens there are of one kind."""

    modality: Literal["TEXT", "IMAGE", "VIDEO"]
    token_count: int


class UsageMetadata(Told):
    """What a request took."""

    prompt_token_count: int
    total_token_count: int
    candidates_token_count: int | UnsetType = UNSET
    prompt_tokens_details: list[TokensOf] | UnsetType = UNSET
    candidates_tokens_details: list[TokensOf] | UnsetType = UNSET
    cached_content_token_count: int | UnsetType = UNSET
    thoughts_token_count: int | UnsetType = UNSET


class FunctionCall(Told):
    """A call that the model asks for."""

    id: str
    name: str
    args: dict[str, Any]


class Part(Told):
    """A piece of an answer."""

    text: str | UnsetType = UNSET
    thought: bool | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class Content(Told):
    """What the model says."""

    parts: list[Part]
    role: Literal["model"]


class Candidate(Told):
    """One answer."""

    content: Content
    index: int
    finish_reason: Literal["STOP", "MAX_TOKENS", "SAFETY"] | UnsetType = UNSET
    finish_message: str | UnsetType = UNSET
    avg_logprobs: float | UnsetType = UNSET
    logprobs_result: dict[str, Any] | UnsetType = UNSET


class Blocked(Told):
    """Why there are no candidates."""

    block_reason: Literal["SAFETY"]


class GeneratedContent(Told):
    """The whole answer, or a piece of it; without candidates where moderators object to what was asked."""

    candidates: list[Candidate] | UnsetType = UNSET
    prompt_feedback: Blocked | UnsetType = UNSET
    usage_metadata: UsageMetadata | UnsetType = UNSET
    model_version: str | UnsetType = UNSET
    response_id: str | UnsetType = UNSET


class CountedTokens(Told):
    """How many tokens a request would be."""

    total_tokens: int
    prompt_tokens_details: list[TokensOf]


class GoogleFault(Told):
    """What is wrong; the details name the field and when to come back."""

    code: int
    message: str
    status: str
    details: list[dict[str, Any]]


class GoogleError(Told):
    """An error, whole or as a stream's last message."""

    error: GoogleFault


COMPONENTS = (GeneratedContent, CountedTokens, GoogleError)
