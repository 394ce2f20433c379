"""OpenAI's completions of plain texts: `POST /v1/completions` and its stream; its errors are those of chats."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import msgspec

from qwen3vl_compat.errors import ApiError
from qwen3vl_compat.events import Completion, Event, Finish, Likely, Logprob, TextDelta, Usage
from qwen3vl_compat.messages import Request, Text
from qwen3vl_compat.wire import sse
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_chat import encode_error, encode_usage
from qwen3vl_compat.wire.openai_completions_request import decode_request

__all__ = ["decode_request", "encode_completion", "encode_error", "encode_stream"]


def encode_completion(request: Request, completion: Completion) -> bytes:
    """The whole answer as one body; with `echo` each text begins with its prompt."""
    choices: list[Json] = []
    for choice in completion.choices:
        text = _prompt(request, choice.index) + choice.text
        logprobs = None if request.sampling.logprobs is None else encode_logprobs(choice.logprobs)
        choices.append({"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason})
    return msgspec.json.encode(_head(request) | {"choices": choices, "usage": encode_usage(completion.usage)})


def _head(request: Request) -> Json:
    return {
        "id": f"cmpl-{request.id}",
        "object": "text_completion",
        "created": request.created,
        "model": request.called,
        "system_fingerprint": None,
    }


def _prompt(request: Request, index: int) -> str:
    """The prompt that a choice begins with, if it is to."""
    if not request.echo:
        return ""
    parts = request.messages[index // request.choices].parts
    return "".join(part.text for part in parts if isinstance(part, Text))


def encode_logprobs(logprobs: Sequence[Logprob], start: int = 0) -> Json:
    """The log-probabilities of tokens, list by list; the first one's text is `start` characters into the whole."""
    offsets: list[int] = []
    for each in logprobs:
        offsets.append(start)
        start += len(each.chosen.data.decode(errors="ignore"))
    return {
        "tokens": [_spelt(each.chosen) for each in logprobs],
        "token_logprobs": [each.chosen.logprob for each in logprobs],
        "top_logprobs": [{_spelt(each): each.logprob for each in (*each.top, each.chosen)} for each in logprobs],
        "text_offset": offsets,
    }


def _spelt(token: Likely) -> str:
    """A token as a text; one that is not whole characters by its bytes, so that no two are the same."""
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


async def encode_stream(request: Request, events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events: texts, one end per choice, the usage if asked for, [DONE].

    A failure after the first byte becomes the stream's last event.
    """
    told: dict[int, int] = {}
    last: Usage | None = None
    try:
        async for event in events:
            match event:
                case TextDelta(index, text):
                    if index not in told:
                        told[index] = 0
                        text = _prompt(request, index) + text
                    logprobs = encode_logprobs(event.logprobs, told[index]) if event.logprobs else None
                    told[index] += len(text)
                    yield _chunk(request, {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None})
                case Finish(index, reason, usage):
                    last = usage
                    text = "" if index in told else _prompt(request, index)
                    yield _chunk(request, {"index": index, "text": text, "logprobs": None, "finish_reason": reason})
                case _:
                    pass
    except ApiError as error:
        yield sse.encode(encode_error(error))
        return
    if request.stream_usage and last is not None:
        yield sse.encode(msgspec.json.encode(_head(request) | {"choices": [], "usage": encode_usage(last)}))
    yield sse.DONE


def _chunk(request: Request, choice: Json) -> bytes:
    return sse.encode(msgspec.json.encode(_head(request) | {"choices": [choice]}))
