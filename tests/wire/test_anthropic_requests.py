"""What becomes of a body sent to Anthropic's Messages API: tables of what is read, ignored and refused."""

import base64
import json
from collections.abc import Iterable
from typing import Any

import pytest
from anthropic import types
from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import (
    Link,
    Media,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Request,
    Sampling,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Upload,
)
from qwen3vl_compat.wire.anthropic_fields import ANTHROPIC
from qwen3vl_compat.wire.anthropic_messages import decode_count, decode_request

HI = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
USER = Message("user", (Text("Hi"),))
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
F = {"name": "f", "description": "does", "input_schema": SCHEMA}
DATA = base64.b64encode(b"bytes").decode()
FILE = "file-0123456789abcdef01234567"


def read(**fields: Any) -> Request:
    """The body with these fields added or, where they are None, taken away."""
    body = {name: value for name, value in (HI | fields).items() if value is not None}
    return decode_request(json.dumps(body).encode(), request_id="r1", now=1)


def asked(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


def told(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def image(**source: str) -> dict[str, Any]:
    return {"type": "image", "source": source}


def document(source: Any, **more: Any) -> dict[str, Any]:
    return {"type": "document", "source": source, **more}


def placeless(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Media without the field that each came in, which is looked at by itself."""

    def bare(part: Any) -> Any:
        match part:
            case Media():
                return replace(part, param="")
            case ToolResult():
                return replace(part, parts=tuple(map(bare, part.parts)))
            case _:
                return part

    return tuple(map(bare, parts))


def test_a_plain_request() -> None:
    asked = Request(
        id="r1", created=1, model="m", messages=(USER,), sampling=Sampling(max_tokens=9), thinking=Thinking(shown=False)
    )
    assert read() == asked


BLOCKS: list[tuple[Any, tuple[Part, ...]]] = [
    ({"type": "text", "text": "a"}, (Text("a"),)),
    ({"type": "text", "text": "", "cache_control": {"type": "ephemeral"}, "citations": None}, (Text(""),)),
    (image(type="base64", media_type="image/PNG", data=DATA),
     (Media(source=b"bytes", wanted="image", mime_type="image/png"),)),
    (image(type="url", url="https://h/a.png"), (Media(source=Link("https://h/a.png"), wanted="image"),)),
    (image(type="file", file_id=FILE), (Media(source=Upload(FILE), wanted="image"),)),
    (document({"type": "base64", "media_type": "application/pdf", "data": DATA}, title="The law"),
     (Media(source=b"bytes", wanted="document", mime_type="application/pdf", name="The law"),)),
    (document({"type": "url", "url": "http://h/a.pdf"}, title=None, context="Of 1949.", citations={"enabled": False}),
     (Text("Of 1949.\n"), Media(source=Link("http://h/a.pdf"), wanted="document"))),
    (document({"type": "file", "file_id": FILE}), (Media(source=Upload(FILE), wanted="document"),)),
    (document({"type": "text", "media_type": "text/plain", "data": "All men"}, title="The law", context="Old"),
     (Text("The law\n"), Text("Old\n"), Text("All men\n"))),
    (document({"type": "content", "content": "x"}), (Text("x"), Text("\n"))),
    (document({"type": "content", "content": [{"type": "text", "text": "x"}, image(type="file", file_id=FILE)]}),
     (Text("x"), Media(source=Upload(FILE), wanted="image"), Text("\n"))),
]  # fmt: skip


@pytest.mark.parametrize(("block", "parts"), BLOCKS)
def test_blocks_of_the_user(block: Any, parts: tuple[Part, ...]) -> None:
    (message,) = read(**asked(block)).messages
    assert placeless(message.parts) == parts


def test_media_say_which_field_they_came_in() -> None:
    pdf = document({"type": "content", "content": [image(type="base64", media_type="image/png", data=DATA)]})
    (message,) = read(**asked(image(type="url", url="http://h"), pdf)).messages
    params = [part.param for part in message.parts if isinstance(part, Media)]
    assert params == ["messages[0].content[0].source.url", "messages[0].content[1].source.content[0].source.data"]


def test_a_conversation_with_tools() -> None:
    """Results stand in messages of their own, under the name of the function that was called."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"b": "ü", "a": 1}, "caller": {"type": "direct"}}
    answers = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "ok"},
         image(type="base64", media_type="image/png", data=DATA)]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True, "content": "no such file"},
        {"type": "tool_result", "tool_use_id": "toolu_2"},
        {"type": "text", "text": "Go on."},
    ]  # fmt: skip
    thought = {"type": "thinking", "thinking": "I must look.", "signature": "abc"}
    second = {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}}
    request = read(
        system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        **told(("user", "Hi"), ("assistant", [thought, {"type": "text", "text": "So."}, use, second]),
               ("user", answers), ("system", "Hurry."), ("user", "?")),
    )  # fmt: skip
    picture = Media(source=b"bytes", wanted="image", mime_type="image/png")
    assert [(each.role, placeless(each.parts)) for each in request.messages] == [
        ("system", (Text("Be brief."), Text("Be kind."))),
        ("user", (Text("Hi"),)),
        ("assistant", (Reasoning("I must look."), Text("So."), ToolCall("toolu_1", "f", '{"b": "ü", "a": 1}'),
                       ToolCall("toolu_2", "g", "{}"))),
        ("tool", (ToolResult("toolu_1", "f", (Text("ok"), picture)),)),
        ("tool", (ToolResult("toolu_2", "g", (Text("Error: "), Text("no such file"))),)),
        ("tool", (ToolResult("toolu_2", "g", (Text(""),)),)),
        ("user", (Text("Go on."),)),
        ("system", (Text("Hurry."),)),
        ("user", (Text("?"),)),
    ]  # fmt: skip
    assert request.ignored == ("messages[1].content[0].signature", "messages[1].content[2].caller")


FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"stream": True}, {"stream": True}),
    ({"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["x", "yy"]},
     {"sampling": Sampling(temperature=0.5, top_p=0.9, top_k=5, stop=("x", "yy"), max_tokens=9)}),
    ({"temperature": None}, {"sampling": Sampling(max_tokens=9)}),
    ({"tools": [F]}, {"tools": (Tool(name="f", description="does", parameters=json.dumps(SCHEMA),
                                     param="tools[0].input_schema"),)}),
    ({"tools": [{**F, "type": "custom", "strict": True}], "tool_choice": {"type": "any"}},
     {"tool_choice": ToolChoice(mode="required")}),
    ({"tools": [F], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
     {"tool_choice": ToolChoice(parallel=False)}),
    ({"tools": [F], "tool_choice": {"type": "tool", "name": "f"}},
     {"tool_choice": ToolChoice(mode="required", names=("f",))}),
    ({"tools": [F], "tool_choice": {"type": "none"}}, {"tool_choice": ToolChoice(mode="none")}),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, {"thinking": Thinking(enabled=True, budget=2000)}),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000, "display": "omitted"}},
     {"thinking": Thinking(enabled=True, budget=2000, shown=False)}),
    ({"thinking": {"type": "disabled"}}, {"thinking": Thinking(enabled=False, budget=0, shown=False)}),
    ({"thinking": {"type": "adaptive", "display": "summarized"}}, {"thinking": Thinking()}),
    ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"thinking": Thinking(budget=1024)}),
    ({"output_config": {"effort": "max", "format": None}}, {"thinking": Thinking(shown=False)}),
    ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
     {"format": OutputFormat(kind="json_schema", value=json.dumps(SCHEMA), strict=True,
                             param="output_config.format.schema")}),
    ({"output_format": {"type": "json_schema", "schema": SCHEMA}},
     {"format": OutputFormat(kind="json_schema", value=json.dumps(SCHEMA), strict=True, param="output_format.schema")}),
    ({"system": ""}, {"messages": (Message("system", (Text(""),)), USER)}),
    ({"metadata": {"user_id": "u"}, "service_tier": "auto", "speed": "fast"},
     {"ignored": ("metadata", "service_tier", "speed")}),
    ({"context_management": {"edits": []}, "a_beta_field": {"x": 1}, "betas": ["y"]},
     {"ignored": ("context_management", "a_beta_field", "betas")}),
    ({"mcp_servers": [], "inference_geo": "global", "container": None}, {"ignored": ()}),
    ({"tools": [{**F, "cache_control": {"type": "ephemeral"}, "defer_loading": False, "allowed_callers": ["direct"],
                 "eager_input_streaming": True}]},
     {"ignored": ("tools[0].cache_control", "tools[0].eager_input_streaming")}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "meant"), FIELDS)
def test_fields(fields: dict[str, Any], meant: dict[str, Any]) -> None:
    request = read(**fields)
    assert {name: getattr(request, name) for name in meant} == meant


CALLED = ("assistant", [{"type": "tool_use", "id": "1", "name": "f", "input": {}}])
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"model": None}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"system": 5}, "system"),
    ({"system": [image(type="file", file_id=FILE)]}, "system[0].type"),
    ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"inference_geo": "us"}, "inference_geo"),
    (told(("user", "Hi"), ("assistant", "The answer is (")), "messages"),
    (told(("robot", "Hi")), "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (asked("Hi"), "messages[0].content[0]"),
    (asked({"type": "text"}), "messages[0].content[0].text"),
    (asked({"type": "video", "source": {}}), "messages[0].content[0].type"),
    (asked({"type": "search_result"}), "messages[0].content[0].type"),
    (asked({"type": "tool_use", "id": "1", "name": "f", "input": {}}), "messages[0].content[0].type"),
    (asked(image(type="file", file_id=FILE), role="assistant"), "messages[0].content[0].type"),
    (asked({"type": "image"}), "messages[0].content[0].source"),
    (asked(image(type="text", data="x")), "messages[0].content[0].source.type"),
    (asked(image(type="base64", media_type="image/png")), "messages[0].content[0].source.data"),
    (asked(image(type="base64", media_type="image/png", data="!!")), "messages[0].content[0].source.data"),
    (asked(image(type="url", url="file:///x")), "messages[0].content[0].source.url"),
    (asked({**image(type="url", url="http://h"), "transformations": {"oversized_image": "error"}}),
     "messages[0].content[0].transformations"),
    (asked(document({"type": "url", "url": "http://h"}, citations={"enabled": True})),
     "messages[0].content[0].citations"),
    (asked(document({"type": "content", "content": [document({"type": "content", "content": "x"})]})),
     "messages[0].content[0].source.content[0].type"),
    (asked({"type": "tool_result", "tool_use_id": "9"}), "messages[0].content[0].tool_use_id"),
    (told(CALLED, ("user", [{"type": "tool_result", "tool_use_id": "1", "is_error": "yes"}])),
     "messages[1].content[0].is_error"),
    (told(CALLED, ("user", [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "tool_reference"}]}])),
     "messages[1].content[0].content[0].type"),
    (told(("assistant", [{"type": "tool_use", "id": "1", "name": "f", "input": "{}"}]), ("user", "Hi")),
     "messages[0].content[0].input"),
    (told(("assistant", [{"type": "tool_use", "id": "1", "name": "f g", "input": {}}]), ("user", "Hi")),
     "messages[0].content[0].name"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{**F, "input_schema": "x"}]}, "tools[0].input_schema"),
    ({"tools": [F, F]}, "tools"),
    ({"tools": [{**F, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [F], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [F], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"thinking": {"type": "adaptive", "display": "all"}}, "thinking.display"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_config": {"format": {}}, "output_format": {}}, "output_format"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(**fields)
    assert refused.value.param == param
    assert refused.value.message.startswith(f"{param}: ")


def test_a_count_needs_no_length_and_is_otherwise_the_same() -> None:
    body = {name: value for name, value in HI.items() if name != "max_tokens"} | {"tools": [F], "system": "Be brief."}
    counted = decode_count(json.dumps(body).encode(), request_id="r1", now=1)
    request = read(tools=[F], system="Be brief.")
    assert replace(counted, sampling=request.sampling) == request


PARAMS: dict[str, Any] = {
    "output_config": types.OutputConfigParam,
    "format": types.JSONOutputFormatParam,
    "thinking config": types.ThinkingConfigEnabledParam,
    "tool_choice": types.ToolChoiceToolParam,
    "tool": types.ToolParam,
    "message": types.MessageParam.__args__[0],  # type: ignore[attr-defined]
    "text": types.TextBlockParam,
    "image": types.ImageBlockParam,
    "document": types.DocumentBlockParam,
    "base64 source": types.Base64PDFSourceParam,
    "text source": types.PlainTextSourceParam,
    "url source": types.URLImageSourceParam,
    "content source": types.ContentBlockSourceParam,
    "tool_use": types.ToolUseBlockParam,
    "tool_result": types.ToolResultBlockParam,
    "thinking": types.ThinkingBlockParam,
    "request": types.message_create_params.MessageCreateParamsNonStreaming,
}
LATER = {"toolset_name", "workspace_id"}
"""Of tools that this server has not; a header."""


@pytest.mark.parametrize("kind", PARAMS)
def test_no_field_of_the_client_is_forgotten(kind: str) -> None:
    """Each field that the official client can send is told of in the table."""
    assert set(PARAMS[kind].__annotations__) <= set(ANTHROPIC[kind]) | LATER
