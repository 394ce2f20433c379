"""What becomes of the body of a request for a response, field by field and item by item."""

import base64
import hashlib
import json
from typing import Any

import pytest
from msgspec.structs import replace

from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.messages import (
    Link,
    Media,
    Message,
    OutputFormat,
    Reasoning,
    Request,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Upload,
)
from qwen3vl_compat.wire.body import Json
from qwen3vl_compat.wire.openai_chat import decode_request as decode_chat
from qwen3vl_compat.wire.openai_items import apart, item_id, media_of, response_of, together
from qwen3vl_compat.wire.openai_responses_request import Asked, completed, decode_count, decode_request

ID = "01a219e8522ba58bad627dad"
PNG = b"\x89PNG"
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
F = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "done"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]}


def asked(body: Json | None = None, **fields: Any) -> Asked:
    whole = {"model": "m", "input": "Hello"} | (body or {}) | fields
    return decode_request(json.dumps(whole).encode(), request_id=ID, now=7)


def read(body: Json | None = None, **fields: Any) -> Request:
    return completed(asked(body, **fields), [], {}).request


def said(*items: Json | str) -> tuple[Message, ...]:
    given = [{"role": "user", "content": item} if isinstance(item, str) else item for item in items]
    return read(input=given).messages


def user(*parts: Json) -> Json:
    return {"type": "message", "role": "user", "content": list(parts)}


def text(role: Any, words: str) -> Message:
    return Message(role, (Text(words),))


def test_a_string_is_what_the_user_says() -> None:
    request = read()
    assert request.messages == (text("user", "Hello"),)
    assert (request.id, request.created, request.model, request.stream) == (ID, 7, "m", False)
    assert read(instructions="Be brief.").messages == (text("system", "Be brief."), text("user", "Hello"))


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        (["a", "b"], [text("user", "a"), text("user", "b")]),
        ([{"role": "developer", "content": "d"}, "a"], [text("system", "d"), text("user", "a")]),
        ([{"role": "assistant", "content": "b"}, "c"], [text("assistant", "b"), text("user", "c")]),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
         [text("assistant", "a"), text("assistant", "b")]),
        ([user({"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"})],
         [Message("user", (Text("a"), Text("b")))]),
        ([{"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
         [text("assistant", "no")]),
        (["a", CALL, OUTPUT],
         [text("user", "a"), Message("assistant", (Text(""), ToolCall("c1", "f", "{}"))),
          Message("tool", (ToolResult("c1", "f", (Text("done"),)),))]),
        ([THOUGHT, {"role": "assistant", "content": "b"}, CALL, CALL | {"call_id": "c2"}, OUTPUT],
         [Message("assistant", (Reasoning("so"), Text("b"), ToolCall("c1", "f", "{}"), ToolCall("c2", "f", "{}"))),
          Message("tool", (ToolResult("c1", "f", (Text("done"),)),))]),
        ([THOUGHT, CALL, OUTPUT, THOUGHT, {"role": "assistant", "content": "b"}],
         [Message("assistant", (Reasoning("so"), Text(""), ToolCall("c1", "f", "{}"))),
          Message("tool", (ToolResult("c1", "f", (Text("done"),)),)),
          Message("assistant", (Reasoning("so"), Text("b")))]),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "sum"}]}, "a"],
         [Message("assistant", (Reasoning("sum"), Text(""))), text("user", "a")]),
        ([{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, "a"], [text("user", "a")]),
    ],
)  # fmt: skip
def test_items_become_messages(items: list[Any], messages: list[Message]) -> None:
    assert said(*items) == tuple(messages)


def test_a_conversation_is_the_same_as_in_a_chat() -> None:
    """So that the cache, and the model, see no difference."""
    chat = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": None, "reasoning_content": "so",
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "done"},
        ],
    }  # fmt: skip
    items = [{"role": "user", "content": "u"}, THOUGHT, CALL, OUTPUT]
    ours = read(instructions="s", input=items)
    assert ours.messages == decode_chat(json.dumps(chat).encode(), request_id=ID, now=7).messages


@pytest.mark.parametrize(
    ("part", "medium"),
    [
        ({"type": "input_image", "image_url": DATA_URL}, Media(source=PNG, wanted="image", mime_type="image/png")),
        ({"type": "input_image", "image_url": "https://a.example/b", "detail": "low"},
         Media(source=Link("https://a.example/b"), wanted="image", detail="low")),
        ({"type": "input_image", "file_id": "file-1", "image_url": None},
         Media(source=Upload("file-1"), wanted="image")),
        ({"type": "input_file", "file_id": "file-1"}, Media(source=Upload("file-1"))),
        ({"type": "input_file", "file_url": "https://a.example/b"}, Media(source=Link("https://a.example/b"))),
        ({"type": "input_file", "file_data": DATA_URL, "filename": "a/b.png"},
         Media(source=PNG, mime_type="image/png", name="b.png")),
        ({"type": "input_file", "file_data": base64.b64encode(PNG).decode()}, Media(source=PNG)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["message", "output"])
def test_media(part: Json, medium: Media, inside: str) -> None:
    items = [user(part)] if inside == "message" else [CALL, OUTPUT | {"output": [part]}]
    (found,) = said(*items)[-1].leaves
    assert isinstance(found, Media)
    where = "input[0].content[0]." if inside == "message" else "input[1].output[0]."
    assert (
        found.param.startswith(where + part["type"].removeprefix("input_").replace("image", "")) or "id" in found.param
    )
    assert replace(found, param="", start_param="", pages_param="") == medium


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 0.5, "top_p": 0.25, "seed": 3}, {"temperature": 0.5, "top_p": 0.25, "seed": 3}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_logprobs": 2}, {"logprobs": None}),
        ({"top_logprobs": 2, "include": ["message.output_text.logprobs"]}, {"logprobs": 2}),
        ({"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}, {"logprobs": 0}),
    ],
)  # fmt: skip
def test_sampling(fields: Json, expected: Json) -> None:
    sampling = read(fields).sampling
    assert {name: getattr(sampling, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({}, OutputFormat()),
        ({"format": {"type": "text"}, "verbosity": "low"}, OutputFormat()),
        ({"format": {"type": "json_object"}}, OutputFormat(kind="json_object", param="text.format")),
        ({"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
         OutputFormat(kind="json_schema", value='{"type": "object"}', strict=True, param="text.format.schema")),
    ],
)  # fmt: skip
def test_the_form_of_the_answer(form: Json, expected: OutputFormat) -> None:
    assert read(text=form).format == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ("required", ToolChoice(mode="required")),
        ("none", ToolChoice(mode="none")),
        ({"type": "function", "name": "f"}, ToolChoice(mode="required", names=("f",))),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
         ToolChoice(names=("f",))),
    ],
)  # fmt: skip
def test_tools(choice: Any, expected: ToolChoice) -> None:
    request = read(tools=[F | {"description": "d", "strict": True}], tool_choice=choice, parallel_tool_calls=False)
    tool = Tool(name="f", description="d", parameters='{"type": "object"}', strict=True, param="tools[0].parameters")
    assert request.tools == (tool,)
    assert request.tool_choice == replace(expected, parallel=False)


def test_functions_of_a_namespace_are_known_by_their_full_names() -> None:
    space = {"type": "namespace", "name": "crm", "description": "d", "tools": [F, F | {"name": "g"}]}
    request = read(tools=[F, space])
    assert [(tool.name, tool.param) for tool in request.tools] == [
        ("f", "tools[0].parameters"),
        ("crm.f", "tools[1].tools[0].parameters"),
        ("crm.g", "tools[1].tools[1].parameters"),
    ]
    assert request.ignored == ("tools[1].description",)
    call = said("a", CALL | {"namespace": "crm"}, OUTPUT)
    assert call[1:] == (
        Message("assistant", (Text(""), ToolCall("c1", "crm.f", "{}"))),
        Message("tool", (ToolResult("c1", "crm.f", (Text("done"),)),)),
    )
    assert asked(tools=[space]).echo["tools"] == [space]


@pytest.mark.parametrize(
    ("reasoning", "thinking", "summary"),
    [
        ({}, Thinking(), False),
        ({"effort": None, "summary": "auto"}, Thinking(), True),
        ({"effort": "low"}, Thinking(enabled=True, budget=1024), False),
        ({"effort": "none", "summary": "none"}, Thinking(enabled=False, budget=0), False),
        ({"generate_summary": "concise"}, Thinking(), True),
    ],
)
def test_thinking(reasoning: Json, thinking: Thinking, summary: bool) -> None:
    found = asked(reasoning=reasoning)
    assert (found.request.thinking, found.summary) == (thinking, summary)


REFUSED = [
    ({"model": None}, "model"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": ["a"]}, "input[0]"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "compaction"}]}, "input[0].type"),
    ({"input": [{}]}, "input[0].id"),
    ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0].id"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [user({"type": "input_audio"})]}, "input[0].content[0].type"),
    ({"input": [user({"type": "input_text"})]}, "input[0].content[0].text"),
    ({"input": [user({"type": "input_image"})]}, "input[0].content[0]"),
    ({"input": [user({"type": "input_image", "image_url": {"url": DATA_URL}})]}, "input[0].content[0].image_url"),
    ({"input": [user({"type": "input_image", "image_url": "data:,!"})]}, "input[0].content[0].image_url"),
    ({"input": [user({"type": "input_image", "image_url": DATA_URL, "detail": "x"})]}, "input[0].content[0].detail"),
    ({"input": [user({"type": "input_image", "image_url": DATA_URL, "prompt_embeds": "x"})]},
     "input[0].content[0].prompt_embeds"),
    ({"input": [user({"type": "input_file", "file_id": "a", "file_url": "https://a"})]}, "input[0].content[0]"),
    ({"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": DATA_URL}]}]},
     "input[0].content[0]"),
    ({"input": [OUTPUT]}, "input[0].call_id"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"input": [CALL, OUTPUT | {"output": {"a": 1}}]}, "input[1].output"),
    ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name"),
    ({"input": [CALL | {"name": "a b"}]}, "input[0].name"),
    ({"input": [{"type": "reasoning", "summary": "x"}]}, "input[0].summary"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [F, {"type": "mcp", "server_label": "x"}]}, "tools[1].type"),
    ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tools": [F | {"parameters": 5}]}, "tools[0].parameters"),
    ({"tools": [F, F]}, "tools"),
    ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
    ({"tools": [{"type": "namespace", "name": "a b", "tools": [F]}]}, "tools[0].tools[0].name"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": "x"}]}]},
     "tools[0].tools[0].type"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [F, F]}]}, "tools"),
    ({"input": [CALL | {"namespace": 5}]}, "input[0].namespace"),
    ({"input": [{"type": {}, "role": "user", "content": "a"}]}, "input[0].type"),
    ({"input": [{"type": "", "role": "user", "content": "a"}]}, "input[0].type"),
    ({"input": [{"id": {}, "role": "user", "content": "a"}]}, "input[0].id"),
    ({"input": [CALL | {"id": 5}]}, "input[0].id"),
    ({"input": [THOUGHT | {"status": []}]}, "input[0].status"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"tools": [F], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "schema": 5}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "json_schema": {}}}}, "text.format.json_schema"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"include": ["everything"]}, "include[0]"),
    ({"truncation": "some"}, "truncation"),
    ({"metadata": {"a": 1}}, "metadata[...]"),
    ({"metadata": {"a" * 65: "x"}}, "metadata"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"stop": ["x"]}, "stop"),
    ({"n": 2}, "n"),
    ({"chat_template": "x"}, "chat_template"),
    ({"messages": []}, "messages"),
    ({"previous_response_id": 5}, "previous_response_id"),
    ({"store": "yes"}, "store"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{at}-{param}" for at, (_, param) in enumerate(REFUSED)])
def test_a_refusal_names_the_field(fields: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read(fields)
    assert refusal.value.param == param
    assert refusal.value.message.startswith(f"{param}: ")


def test_what_codex_sends_is_accepted() -> None:
    request = read(
        store=False, include=["reasoning.encrypted_content"], client_metadata={"a": "b"}, prompt_cache_key="k",
        parallel_tool_calls=False, reasoning={"effort": "medium", "summary": "auto"}, text={"verbosity": "low"},
        tools=[F], tool_choice="auto", stream=True, instructions="You are",
    )  # fmt: skip
    assert set(request.ignored) == {"client_metadata", "prompt_cache_key", "text.verbosity"}


def test_fields_without_effect_are_named() -> None:
    request = read(user="u", weird=1, background=False, truncation="auto",
                   input=[{"role": "user", "content": "a", "phase": None, "odd": 1}])  # fmt: skip
    assert request.ignored == ("user", "weird", "truncation", "input[0].phase", "input[0].odd")


def test_a_response_says_again_what_was_asked() -> None:
    echo = asked(tools=[F], metadata={"a": "b"}, temperature=0.5, user="u", instructions="i", truncation="auto").echo
    assert echo["tools"] == [F | {"description": None, "strict": None}]
    assert (echo["metadata"], echo["temperature"], echo["user"]) == ({"a": "b"}, 0.5, "u")
    assert (echo["instructions"], echo["truncation"]) == ("i", "disabled")
    assert echo["text"] == {"format": {"type": "text"}}


def test_a_conversation_comes_before_and_instructions_before_that() -> None:
    history = completed(asked(input=[user({"type": "input_text", "text": "a"}), CALL]), [], {}).items
    request = completed(asked(input=[OUTPUT], instructions="i", previous_response_id="r"), history, {}).request
    assert [message.role for message in request.messages] == ["system", "user", "assistant", "tool"]
    assert request.messages[-1].parts == (ToolResult("c1", "f", (Text("done"),)),)
    assert completed(asked(input=[], previous_response_id="r"), history, {}).request.messages


def test_a_fault_in_what_was_said_before_names_the_field_that_leads_there() -> None:
    history = completed(asked(input=[user({"type": "input_file", "file_id": "file-1"})]), [], {}).items
    (medium,) = completed(asked(), history, {}).request.messages[0].parts
    assert isinstance(medium, Media)
    assert medium.param == "previous_response_id.input[0].content[0].file_id"


def test_references_stand_for_items() -> None:
    items = [{"id": "msg_1"}, {"type": "item_reference", "id": "fc_1"}, OUTPUT]
    given = asked(input=items)
    assert given.references == ("msg_1", "fc_1")
    found = {"msg_1": {"type": "message", "id": "msg_1", "role": "user", "content": "a"}, "fc_1": CALL | {"id": "fc_1"}}
    whole = completed(given, [], found)
    assert [message.role for message in whole.request.messages] == ["user", "assistant", "tool"]
    assert [item["type"] for item in whole.items] == ["message", "function_call", "function_call_output"]
    with pytest.raises(InvalidRequest) as refusal:
        completed(given, [], {})
    assert (refusal.value.param, refusal.value.code) == ("input[0].id", "item_not_found")


def test_items_are_kept_with_ids_and_parts() -> None:
    items = completed(asked(input=[{"role": "assistant", "content": "b"}, CALL | {"id": "fc_9"}, OUTPUT]), [], {}).items
    assert items[0] == {
        "type": "message", "id": f"msg_{ID}_i0", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": "b", "annotations": []}],
    }  # fmt: skip
    assert [item["id"] for item in items[1:]] == ["fc_9", f"fco_{ID}_i2"]
    assert response_of(items[0]["id"]) == response_of(item_id("message", ID, 3)) == f"resp_{ID}"
    assert response_of("msg_68a1") is None


def test_media_are_taken_apart_and_put_back() -> None:
    image = {"type": "input_image", "image_url": DATA_URL}
    file = {"type": "input_file", "file_data": base64.b64encode(PNG).decode(), "filename": "a.png"}
    link = {"type": "input_image", "image_url": "https://a.example/b"}
    linked = {"type": "input_file", "file_url": DATA_URL}
    given = completed(asked(input=[user(image, image, link, linked), CALL, OUTPUT | {"output": [file]}]), [], {})
    kept, media = apart(given.items)
    digest = hashlib.sha256(PNG).hexdigest()
    assert media == {digest: PNG}
    assert media_of(kept) == {digest}
    assert "base64" not in json.dumps(kept)
    back = together(json.loads(json.dumps(kept)), media)
    assert back[0] == given.items[0]
    assert back[2]["output"][0]["file_data"] == "data:;base64," + base64.b64encode(PNG).decode()
    again = completed(asked(input=[]), back, {}).request.messages
    first = given.request.messages
    assert [each.source for each in again[0].parts if isinstance(each, Media)] == [
        each.source for each in first[0].parts if isinstance(each, Media)
    ]
    assert [each.source for each in again[2].leaves if isinstance(each, Media)] == [PNG]
    assert together(kept, {})[0]["content"][0]["image_url"] is None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_text", "text": "x", "image_url": {"sha256": "0" * 64, "mime_type": ""}},
        {"type": "input_file", "file_id": "file-1", "image_url": {"sha256": 5}},
        {"type": "input_image", "file_id": "file-1", "file_data": {"a": 1}},
    ],
)
def test_nobody_names_a_kept_medium_himself(part: Json) -> None:
    items = completed(asked(input=[user(part)]), [], {}).items
    kept, media = apart(items)
    assert (media, media_of(kept)) == ({}, set())
    assert together(kept, {"0" * 64: b"secret"}) == list(items)


def test_counting_may_leave_the_model_and_the_input_out() -> None:
    body = json.dumps({"previous_response_id": "r", "model": None}).encode()
    count = decode_count(body, request_id=ID, now=1, model="qwen3-vl")
    assert (count.request.model, count.items, count.previous) == ("qwen3-vl", (), "r")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ],
)
def test_what_is_missing_is_said_to_be(fields: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(fields)
    assert (refused.value.message, refused.value.param) == (f"{param}: is required", param)
