"""What a client is told once, and what each call may be asked for beside the prompt."""

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from qwen3vl_compat.adapters.calling.failures import InvalidInput
from qwen3vl_compat.adapters.calling.prompt import Prompt
from qwen3vl_compat.adapters.calling.sending import Sending, Told
from qwen3vl_compat.messages import Message, OutputFormat, Request, Sampling, Text, Thinking, Tool, ToolChoice
from qwen3vl_compat.wire.asked import MOST_TOKENS

USUAL_URL = "http://localhost:8080"
AGENT = f"qwen3vl-compat/{version('qwen3vl-compat')}"


class Configuration(Struct, frozen=True):
    """Where the server is, and how it is asked."""

    base_url: str
    api_key: str | None
    model: str
    timeout: float
    """Seconds that a call may take, its pauses included."""
    retries: int
    longest_side: int
    """Pixels that pictures are brought down to; 0 sends all files as they are."""

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.base_url)
            usable = address.scheme in ("http", "https") and address.hostname and address.port != 0
        except ValueError:  # of a port that is none
            usable = False
        if not usable:
            raise InvalidInput("base_url: must be like http://localhost:8080", param="base_url")
        if self.api_key is not None:
            _check_header("api_key", self.api_key)
        if not self.timeout > 0:
            raise InvalidInput("timeout: must be a number of seconds above 0", param="timeout")
        for name in ("retries", "longest_side"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"{name}: must not be below 0", param=name)

    @classmethod
    def of(cls, base_url: str | None, api_key: str | None, **others: Any) -> "Configuration":
        """The same with the address and the key from the environment where they are None."""
        return cls(
            base_url=os.environ.get("QWEN3VL_BASE_URL", USUAL_URL) if base_url is None else base_url,
            api_key=os.environ.get("QWEN3VL_API_KEY") if api_key is None else api_key,
            **others,
        )

    @property
    def origin(self) -> str:
        """The address that paths are put behind; OpenAI's clients have it end with /v1."""
        return self.base_url.rstrip("/").removesuffix("/v1")


class Common(TypedDict, total=False):
    """What any call may be told."""

    timeout: float
    """Seconds it may take, in place of the client's own."""
    headers: Mapping[str, str]
    """More headers, as `Cache-Control: no-cache`."""
    on_progress: Told


class Options(Common, total=False):
    """What an answer may be asked for."""

    model: str
    system: str
    """What goes before the conversation."""
    schema: Mapping[str, Any] | type
    """The JSON Schema that the answer is held to, or a dataclass, Struct or pydantic model that has one."""
    regex: str
    choice: Sequence[str]
    """The answer is one of these."""
    format: OutputFormat
    """The same as a value, in place of these three."""
    tools: Sequence[Tool]
    tool_choice: str | ToolChoice
    """`auto`, `none`, `required`, or the name of a tool that must be called; the value says more."""
    sampling: Sampling
    """All else about how tokens are chosen: seed, stop strings, penalties, logprobs ..."""
    thinking: Thinking
    choices: int
    """How many answers."""
    idempotency_key: str
    """Under which the server carries the request out once, whoever sends it again; "" for none.

    A whole answer has one of its own if none is given. A stream has none: closing it ends the generation then.
    """


class Question(Struct, frozen=True):
    """What one call asks, as it was given."""

    prompt: Prompt
    image_path: str | Path | None
    temperature: float | None
    max_tokens: int | None
    options: Options


def request_of(
    question: Question, messages: tuple[Message, ...], configuration: Configuration, *, stream: bool
) -> Request:
    """The request that a call comes to; raises InvalidInput."""
    options = question.options
    system = (Message("system", (Text(options["system"]),)),) if options.get("system") else ()
    return Request(
        id="",
        created=0,
        model=options.get("model", configuration.model),
        messages=(*system, *messages),
        sampling=_sampling(question),
        tools=tuple(options.get("tools", ())),
        tool_choice=_tool_choice(options.get("tool_choice", "auto")),
        format=_format(options),
        thinking=options.get("thinking", Thinking()),
        choices=options.get("choices", 1),
        stream=stream,
        stream_usage=stream,
    )


def check(question: Question) -> None:
    """Raise InvalidInput for an argument that cannot be meant, before anything is done for it."""
    check_names(question.options, Options)
    temperature, most = question.temperature, question.max_tokens
    if temperature is not None and not (isinstance(temperature, int | float) and math.isfinite(temperature)):
        raise InvalidInput("temperature: must be a number", param="temperature")
    if most is not None and not (isinstance(most, int) and 1 <= most <= MOST_TOKENS):
        raise InvalidInput(f"max_tokens: must be a whole number from 1 to {MOST_TOKENS:,}", param="max_tokens")
    key = question.options.get("idempotency_key")
    if key:
        _check_header("idempotency_key", key)


def check_names(options: Mapping[str, Any], known: type) -> None:
    """Raise InvalidInput for an argument that there is not."""
    for name in sorted(options.keys() - known.__optional_keys__):
        raise InvalidInput(f"{name}: there is no such argument", param=name)


def sending_of(configuration: Configuration, common: Common) -> Sending:
    """How the requests of a call are sent, from now on; raises InvalidInput."""
    headers = {"user-agent": AGENT, "accept-encoding": "identity"}
    if configuration.api_key is not None:
        headers["authorization"] = f"Bearer {configuration.api_key}"
    for name, value in common.get("headers", {}).items():
        _check_header(f"headers[{name}]", value)
        headers[name.lower()] = value
    seconds = common.get("timeout", configuration.timeout)
    if not seconds > 0:
        raise InvalidInput("timeout: must be a number of seconds above 0", param="timeout")
    return Sending(
        headers=headers,
        retries=configuration.retries,
        deadline=time.monotonic() + seconds,
        told=common.get("on_progress"),
    )


def key_of(options: Options, *, stream: bool) -> str:
    """The idempotency key to send, "" for none."""
    return options.get("idempotency_key", "" if stream else uuid4().hex)


def _check_header(param: str, value: str) -> None:
    if not re.fullmatch(r"[\x20-\x7e]{1,4096}", value):
        raise InvalidInput(f"{param}: must be printable ASCII characters", param=param)


def _sampling(question: Question) -> Sampling:
    """The two arguments win over what `sampling` has, unless they are None."""
    named = {"temperature": question.temperature, "max_tokens": question.max_tokens}
    given = {name: value for name, value in named.items() if value is not None}
    return replace(question.options.get("sampling", Sampling()), **given)


def _tool_choice(choice: str | ToolChoice) -> ToolChoice:
    match choice:
        case ToolChoice():
            return choice
        case "auto" | "none" | "required":
            return ToolChoice(mode=choice)
        case name:
            return ToolChoice(mode="required", names=(name,))


def _format(options: Options) -> OutputFormat:
    forms = [name for name in ("schema", "regex", "choice", "format") if name in options]
    if len(forms) > 1:
        raise InvalidInput(f"{forms[1]}: an answer can have one form only", param=forms[1])
    if "format" in options:
        return options["format"]
    if "schema" in options:
        return OutputFormat(kind="json_schema", value=schema_text(options["schema"]), strict=True)
    if "regex" in options:
        return OutputFormat(kind="regex", value=options["regex"])
    if "choice" in options:
        return OutputFormat(kind="choice", value=json.dumps(list(options["choice"]), ensure_ascii=False))
    return OutputFormat()


def tool(name: str, description: str = "", parameters: Mapping[str, Any] | type | None = None) -> Tool:
    """A function the model may ask for; `parameters` is the JSON Schema of its arguments, or a type that has one."""
    return Tool(name=name, description=description, parameters="" if parameters is None else schema_text(parameters))


def schema_text(schema: Mapping[str, Any] | type) -> str:
    """A JSON Schema, given or a type's own, as JSON text; raises InvalidInput."""
    try:
        if isinstance(schema, type):
            own = getattr(schema, "model_json_schema", None)
            return json.dumps(_schema_of(schema) if own is None else own(), ensure_ascii=False)
        return json.dumps(dict(schema), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"schema: is no JSON Schema ({error})", param="schema") from error


def _schema_of(kind: type) -> dict[str, Any]:
    """A type's own schema, not a mere reference to it."""
    schema = msgspec.json.schema(kind)
    reference = schema.pop("$ref", None)
    return schema if reference is None else {**schema["$defs"][reference.rpartition("/")[2]], **schema}
