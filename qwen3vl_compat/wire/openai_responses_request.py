"""OpenAI's responses, the way in: a body as what is asked, and with what it refers to as a Request."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import Message, OutputFormat, Request, Sampling, Text, Thinking
from qwen3vl_compat.wire.asked import MOST_LOGPROBS, MOST_TOKENS, effort, schema_text
from qwen3vl_compat.wire.body import Bounds, Json, check_bounds, convert, decode_object
from qwen3vl_compat.wire.openai_items import Item, decode_items, kind_of, known, numbered
from qwen3vl_compat.wire.openai_responses_tools import decode_choice, decode_tools, echo_tool

INCLUDABLE = (
    "message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content",
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "computer_call_output.output.image_url", "code_interpreter_call.outputs",
)  # fmt: skip
LOGPROBS, IMAGES = INCLUDABLE[:2]
MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
REPEATED = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
"""Fields without effect that a response says again."""


class Asked(Struct, frozen=True, kw_only=True):
    """What a body asks for. `request` is without messages until it is known what the items refer to."""

    request: Request
    items: tuple[Json, ...]
    """Those that came with it."""
    instructions: str | None
    previous: str | None
    """The response to go on from."""
    store: bool
    """Whether the response is to be kept."""
    summary: bool
    """Thoughts are told as their own summary."""
    echo: Json
    """What the response says again of its request."""
    media: Mapping[str, bytes] = {}
    """Those that were taken out of the items, by SHA-256, once it is known that they are to be kept."""
    size: int = 0
    """Bytes of the items with these in their places."""

    @property
    def references(self) -> tuple[str, ...]:
        """Ids of items that stand for others."""
        return tuple(item["id"] for item in self.items if item.get("type") == "item_reference")

    @property
    def goes_on(self) -> bool:
        """Whether it stands on what is stored."""
        return self.previous is not None or bool(self.references)


class Body(Struct):
    """The honoured fields."""

    model: str
    input: str | list[Json]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    stream: bool = False
    stream_options: Json = {}
    tools: list[Json] = []
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool = True
    text: Json = {}
    reasoning: Json = {}
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    top_k: int | None = None
    seed: int | None = None
    metadata: dict[str, str] = {}
    include: list[str] = []
    truncation: Literal["auto", "disabled"] = "disabled"


BOUNDS: Bounds = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, MOST_TOKENS),
    "seed": (-(2**63), 2**63 - 1),
    "max_output_tokens": (1, MOST_TOKENS),
    "top_logprobs": (0, MOST_LOGPROBS),
}


class Thought(Struct):
    """How long to think, and what is told of it."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class Format(Struct):
    """The form of an answer."""

    type: str = "text"
    name: str = ""
    schema: Any = None
    strict: bool | None = None


def decode_request(body: bytes, *, request_id: str, now: int) -> Asked:
    """Read a whole request body; every fault is an InvalidRequest that names the field."""
    return _asked(decode_object(body), request_id, now)


def decode_count(body: bytes, *, request_id: str, now: int, model: str) -> Asked:
    """Read a request to count what would be asked, which may leave the model to the server."""
    usual: Json = {"model": model, "input": []}
    given = {name: value for name, value in decode_object(body).items() if value is not None}
    return _asked(usual | given, request_id, now)


def _asked(body: Json, request_id: str, now: int) -> Asked:
    ignored: list[str] = []
    fields = known(body, "request", "", ignored)
    for name in ("model", "input"):
        if name not in fields:
            raise InvalidRequest(f"{name}: is required", param=name, code="missing_required_parameter")
    top = convert(fields, Body, "")
    known(top.stream_options, "stream_options", "stream_options", ignored)
    tools = decode_tools(top.tools, ignored)
    choice = replace(decode_choice(top.tool_choice, tools), parallel=top.parallel_tool_calls)
    thinking, summary = _thinking(top, ignored)
    if top.truncation == "auto":
        ignored.append("truncation")
    _check_metadata(top.metadata)
    request = Request(
        id=request_id,
        created=now,
        model=top.model,
        messages=(),
        sampling=_sampling(top),
        tools=tools,
        tool_choice=choice,
        format=_format(top, ignored),
        thinking=thinking,
        stream=top.stream,
        stream_usage=True,
        ignored=tuple(ignored),
    )
    return Asked(
        request=request,
        items=_items(top.input),
        instructions=top.instructions,
        previous=top.previous_response_id,
        store=top.store,
        summary=summary is not None,
        echo=_echo(top, body, summary),
    )


def completed(asked: Asked, history: Sequence[Json], referenced: Mapping[str, Json]) -> Asked:
    """What is asked, with the conversation before it and the items that others stand for."""
    items = [referenced.get(item["id"], item) if item.get("type") == "item_reference" else item for item in asked.items]
    own, ignored = [Item(item, f"input[{place}]") for place, item in enumerate(items)], [*asked.request.ignored]
    before = [Item(item, f"previous_response_id.input[{place}]") for place, item in enumerate(history)]
    noted: list[str] = []
    messages = decode_items([*before, *own], noted)
    ignored += [name for name in noted if name.startswith("input[")]
    system = (Message("system", (Text(asked.instructions),)),) if asked.instructions else ()
    if not messages:
        raise InvalidRequest("input: must hold at least one item", param="input")
    request = replace(asked.request, messages=(*system, *messages), ignored=tuple(ignored))
    return replace(asked, request=request, items=tuple(numbered(items, request.id)))


def _items(value: str | list[Json]) -> tuple[Json, ...]:
    if isinstance(value, str):
        return ({"type": "message", "role": "user", "content": value},)
    items: list[Json] = []
    for place, item in enumerate(value):
        kind = kind_of(Item(item, f"input[{place}]"))
        if kind == "item_reference":
            where = f"input[{place}].id"
            item = {"type": kind, "id": convert(item.get("id"), str, where)}
        items.append(item)
    return tuple(items)


def _sampling(top: Body) -> Sampling:
    check_bounds(top, BOUNDS)
    check_include(top.include)
    return Sampling(
        temperature=top.temperature,
        top_p=top.top_p,
        top_k=None if top.top_k is None else max(0, top.top_k),
        logprobs=(top.top_logprobs or 0) if LOGPROBS in top.include else None,
        max_tokens=top.max_output_tokens,
        seed=top.seed,
    )


def check_include(names: Sequence[str]) -> None:
    """Refuse what there is not to include; what there never is here may be asked for."""
    for place, name in enumerate(names):
        if name not in INCLUDABLE:
            where = f"include[{place}]"
            raise InvalidRequest(f"{where}: must be one of {', '.join(INCLUDABLE)}", param=where)


def _format(top: Body, ignored: list[str]) -> OutputFormat:
    path = "text.format"
    given = known(top.text, "text", "text", ignored).get("format", {})
    form = convert(known(convert(given, Json, path), "format", path, ignored), Format, path)
    match form.type:
        case "text":
            return OutputFormat()
        case "json_object":
            return OutputFormat(kind="json_object", param=path)
        case "json_schema":
            text = schema_text({} if form.schema is None else form.schema, f"{path}.schema")
            return OutputFormat(kind="json_schema", value=text, strict=bool(form.strict), param=f"{path}.schema")
        case _:
            raise InvalidRequest(f"{path}.type: must be text, json_object or json_schema", param=f"{path}.type")


def _thinking(top: Body, ignored: list[str]) -> tuple[Thinking, str | None]:
    """How long to think, and the kind of summary that is asked for."""
    path = "reasoning"
    given = convert(known(top.reasoning, path, path, ignored), Thought, path)
    summary = given.summary or given.generate_summary
    thinking = Thinking() if given.effort is None else effort(given.effort, f"{path}.effort")
    return thinking, None if summary == "none" else summary


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if len(metadata) > MOST_METADATA:
        raise InvalidRequest(f"metadata: at most {MOST_METADATA} pairs", param="metadata")
    if any(len(key) > LONGEST_KEY or len(value) > LONGEST_VALUE for key, value in metadata.items()):
        bounds = f"keys of at most {LONGEST_KEY} characters, values of at most {LONGEST_VALUE}"
        raise InvalidRequest(f"metadata: takes {bounds}", param="metadata")


def _echo(top: Body, body: Json, summary: str | None) -> Json:
    return {
        "background": False,
        "instructions": top.instructions,
        "max_output_tokens": top.max_output_tokens,
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": top.metadata,
        "parallel_tool_calls": top.parallel_tool_calls,
        "previous_response_id": top.previous_response_id,
        "reasoning": {"effort": top.reasoning.get("effort"), "summary": summary},
        "temperature": top.temperature,
        "text": top.text | {"format": top.text.get("format") or {"type": "text"}},
        "tool_choice": top.tool_choice or "auto",
        "tools": [echo_tool(tool) for tool in top.tools],
        "top_logprobs": top.top_logprobs or 0,
        "top_p": top.top_p,
        "truncation": "disabled",
    } | {name: body.get(name) for name in REPEATED}
