"""Answers as LangChain's messages, whole and piece by piece, and the blocks that these hold."""

from typing import Any, cast

import msgspec
from langchain_core.messages import AIMessage, AIMessageChunk, UsageMetadata
from langchain_core.messages import content as blocks
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails
from langchain_core.messages.block_translators import register_translator
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from qwen3vl_compat.adapters.calling.answers import Answer
from qwen3vl_compat.events import Choice, Delta, Logprob, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from qwen3vl_compat.wire.openai_chat import encode_logprobs

PROVIDER = "qwen3vl"


def generation(answer: Answer, choice: Choice, model: str) -> ChatGeneration:
    """One of an answer's choices; the usage is that of all."""
    message = AIMessage(
        content=choice.text,
        additional_kwargs=_thought(choice.reasoning),
        response_metadata=_about(answer, choice, model),
        usage_metadata=usage_of(answer.usage),
    )
    for call in choice.calls:
        try:
            arguments = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
            message.tool_calls.append(tool_call(name=call.name, args=arguments, id=call.id))
        except (msgspec.DecodeError, RecursionError) as error:
            message.invalid_tool_calls.append(
                invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=str(error))
            )
    return ChatGeneration(message=message, generation_info=_told(choice.logprobs))


def piece(delta: Delta) -> ChatGenerationChunk:
    """What a stream tells next."""
    metadata = {"model_provider": PROVIDER}
    match delta:
        case TextDelta(text=text, logprobs=logprobs):
            message = AIMessageChunk(content=text, response_metadata=metadata)
            return ChatGenerationChunk(message=message, generation_info=_told(logprobs))
        case ReasoningDelta(text=text):
            message = AIMessageChunk(content="", additional_kwargs=_thought(text), response_metadata=metadata)
        case ToolCallDelta(call=place, id=number, name=name, arguments=arguments):
            call = tool_call_chunk(name=name or None, args=arguments, id=number or None, index=place)
            message = AIMessageChunk(content="", tool_call_chunks=[call], response_metadata=metadata)
    return ChatGenerationChunk(message=message)


def end(answer: Answer, model: str) -> ChatGenerationChunk:
    """The last piece of a stream: what is known of the whole."""
    message = AIMessageChunk(
        content="",
        response_metadata=_about(answer, answer.choices[0], model),
        usage_metadata=usage_of(answer.usage),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def usage_of(usage: Usage) -> UsageMetadata:
    """Tokens as they are charged. Pictures and videos are told with their cached tokens, as the server does."""
    known: dict[str, int] = {"cache_read": usage.cached}
    seen = {"image": usage.prompt_image, "video": usage.prompt_video}
    return UsageMetadata(
        input_tokens=usage.prompt,
        output_tokens=usage.completion,
        total_tokens=usage.total,
        input_token_details=cast("InputTokenDetails", known | {name: count for name, count in seen.items() if count}),
        output_token_details=OutputTokenDetails(reasoning=usage.reasoning),
    )


def _thought(text: str) -> dict[str, Any]:
    """Where LangChain looks for thoughts that stand beside the content."""
    return {"reasoning_content": text} if text else {}


def _told(logprobs: tuple[Logprob, ...]) -> dict[str, Any] | None:
    return {"logprobs": encode_logprobs(logprobs)} if logprobs else None


def _about(answer: Answer, choice: Choice, model: str) -> dict[str, Any]:
    """`model` is the name that was asked for: the server answers under no other."""
    known: dict[str, Any] = {
        "finish_details": choice.details,
        "request_id": answer.request_id,
        "cost": None if answer.cost is None else str(answer.cost),
        "currency": answer.currency,
        "cached": answer.cached,
        "replayed": answer.replayed,
        "ignored": list(answer.ignored),
    }
    told = {name: value for name, value in known.items() if value}
    return {"model_provider": PROVIDER, "model_name": model, "finish_reason": choice.reason, **told}


# ------------------------------------------------------------------------------------------------------------ blocks


def content_blocks(message: AIMessage) -> list[blocks.ContentBlock]:
    """The standard blocks of a whole message: thought, text, calls."""
    return [*_said(message, numbered=False), *_calls(message)]


def chunk_blocks(chunk: AIMessageChunk) -> list[blocks.ContentBlock]:
    """Those of a piece, numbered by what they belong to: LangChain joins what has one number."""
    if chunk.chunk_position == "last":
        return [*_said(chunk, numbered=True), *_calls(chunk)]
    pieces: list[blocks.ContentBlock] = [
        blocks.ToolCallChunk(
            type="tool_call_chunk",
            id=call["id"],
            name=call["name"],
            args=call["args"],
            index=f"lc_call_{call['index']}",
        )
        for call in chunk.tool_call_chunks
    ]
    return [*_said(chunk, numbered=True), *pieces]


def _said(message: AIMessage, *, numbered: bool) -> list[blocks.ContentBlock]:
    if not isinstance(message.content, str):
        raise NotImplementedError  # which has LangChain read the blocks that are there
    thought = message.additional_kwargs.get("reasoning_content")
    said: list[blocks.ContentBlock] = []
    if thought:
        said.append(blocks.ReasoningContentBlock(type="reasoning", reasoning=thought))
    if message.content:
        said.append(blocks.TextContentBlock(type="text", text=message.content))
    for block in said if numbered else ():
        block["index"] = f"lc_{block['type']}"
    return said


def _calls(message: AIMessage) -> list[blocks.ContentBlock]:
    """A fresh copy of each."""
    good = [
        blocks.ToolCall(type="tool_call", id=call["id"], name=call["name"], args=call["args"])
        for call in message.tool_calls
    ]
    bad = [
        blocks.InvalidToolCall(
            type="invalid_tool_call", id=call["id"], name=call["name"], args=call["args"], error=call["error"]
        )
        for call in message.invalid_tool_calls
    ]
    return [*good, *bad]


register_translator(PROVIDER, content_blocks, chunk_blocks)
