"""Every wrong request gets its own status and envelope, names the field, leaks nothing, and leaves the server whole."""

import base64
import contextlib
import json
import re
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import PIL.Image
import pytest

from qwen3vl_compat.demo import SAMPLE
from tests.media.crafted import encoded
from tests.serving import Served

LEAKS = re.compile(r"0x[0-9a-f]{6}|Errno|Traceback|/[a-z]+/[a-z]+\.py|Error\b|Exception|msgspec|Struct|PIL|\.py\b")
CHAT, NATIVE = "/v1/chat/completions", "/v1/models/qwen3-vl:generateContent"
LARGE = "data:image/png;base64," + base64.b64encode(encoded(PIL.Image.new("1", (2048, 2048)), "PNG")).decode()
PICTURE = base64.b64encode(SAMPLE.read_bytes()).decode()


@dataclass
class Row:
    """One wrong request: what is sent, and the status, code and field that must come back."""

    name: str
    body: Any
    status: int = 400
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    path: str = CHAT
    method: str = "POST"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hi"}]} | fields


def parts(*items: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": list(items)}])


def image(url: Any) -> dict[str, Any]:
    return parts({"type": "image_url", "image_url": {"url": url}})


def native(**fields: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]} | fields


def blob(data: Any, mime: Any = "image/png") -> dict[str, Any]:
    return native(contents=[{"parts": [{"inlineData": {"mimeType": mime, "data": data}}]}])


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
URL = "messages[0].content[0].image_url.url"
DATA = "contents[0].parts[0].inlineData.data"


def tool(name: str, schema: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {} if schema is None else schema}}


BODIES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "invalid_json"),
    ("null", b"null", "invalid_json"),
    ("list", b"[]", "invalid_json"),
    ("string", b'"x"', "invalid_json"),
    ("trailing", b"{}x", "invalid_json"),
    ("bom", b"\xef\xbb\xbf{}", "invalid_json"),
    ("utf-16", '{"model":"x"}'.encode("utf-16"), "invalid_json"),
    ("bad utf-8", b'{"model":"\xff"}', "invalid_json"),
    ("nested 1100", b'{"x":' + b"[" * 1100 + b"]" * 1100 + b"}", "invalid_json"),
    ("nested 100000", b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
    ("open 100000", b"[" * 100_000, "invalid_json"),
    ("duplicate", b'{"model":"a","model":"b"}', "duplicate_key"),
    ("deep duplicate", b'{"x":{"y":[{"z":1,"z":2}]}}', "duplicate_key"),
    ("NaN", b'{"temperature":NaN}', "invalid_json"),
    ("Infinity", b'{"temperature":-Infinity}', "invalid_json"),
    ("1e400", b'{"temperature":1e400}', "invalid_json"),
    ("5000 digits", b'{"n":' + b"1" * 5000 + b"}", "invalid_json"),
    ("NUL", b'{"model":"a\\u0000b"}', "invalid_json"),
    ("a million values", b'{"x":[' + b"[]," * 700_000 + b"1]}", "invalid_json"),
    ("half a surrogate", b'{"model":"\\ud800"}', "invalid_json"),
]

ROWS = [
    *(Row(f"openai {name}", body, code=code) for name, body, code in BODIES),
    *(Row(f"native {name}", body, path=NATIVE) for name, body, _ in BODIES),
    Row("no model", {"messages": []}, param="model", code="missing_required_parameter"),
    Row("no messages", {"model": "qwen3-vl"}, param="messages", code="missing_required_parameter"),
    Row("empty messages", chat(messages=[]), param="messages"),
    Row("messages a string", chat(messages="x"), param="messages"),
    Row("message a string", chat(messages=["x"]), param="messages[0]"),
    Row("unknown model", chat(model="gpt-5"), 404, "model_not_found", "model"),
    Row("model a number", chat(model=5), param="model"),
    Row("role unknown", chat(messages=[{"role": "robot", "content": "x"}]), param="messages[0].role"),
    Row("role missing", chat(messages=[{"content": "x"}]), param="messages[0].role"),
    Row("tool without call", chat(messages=[{"role": "tool", "content": "x"}]), param="messages[0].tool_call_id",
        code="missing_required_parameter"),
    Row("user with calls", chat(messages=[{"role": "user", "content": "x", "tool_calls": [CALL]}]),
        param="messages[0]"),
    Row("call without name", chat(messages=[{"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]}]),
        param="messages[0].tool_calls[0].function.name", code="missing_required_parameter"),
    Row("tool without function", chat(tools=[{"type": "function", "name": "f"}]), param="tools[0].function",
        code="missing_required_parameter"),
    Row("a part without text", parts({"type": "text"}), param="messages[0].content[0].text",
        code="missing_required_parameter"),
    Row("a part without image", parts({"type": "image_url"}), param="messages[0].content[0].image_url",
        code="missing_required_parameter"),
    Row("image without url", parts({"type": "image_url", "image_url": {}}), param=URL,
        code="missing_required_parameter"),
    Row("no part at all", parts(None), param="messages[0].content[0]", code="invalid_value"),
    Row("no schema", chat(response_format={"type": "json_schema"}), param="response_format.json_schema",
        code="missing_required_parameter"),
    Row("content null", chat(messages=[{"role": "user", "content": None}]), param="messages[0].content"),
    Row("content a number", chat(messages=[{"role": "user", "content": 1}]), param="messages[0].content"),
    Row("part a string", parts("x"), param="messages[0].content[0]"),
    Row("part without type", parts({"text": "x"}), param="messages[0].content[0].type"),
    Row("text a number", parts({"type": "text", "text": 1}), param="messages[0].content[0].text"),
    Row("video", parts({"type": "video_url", "video_url": {"url": "x"}}), code="invalid_video_url",
        param="messages[0].content[0].video_url.url"),
    Row("no frames", parts({"type": "video", "video": []}), param="messages[0].content[0].video"),
    Row("a frame that is no URL", parts({"type": "video", "video": ["x"]}), code="invalid_image_url",
        param="messages[0].content[0].video[0]"),
    Row("a file that is none", parts({"type": "file", "file": {}}), param="messages[0].content[0].file"),
    Row("two files in one", parts({"type": "file", "file": {"file_id": "a", "file_data": "b"}}),
        param="messages[0].content[0].file"),
    Row("a page too low", parts({"type": "file", "file": {"file_data": "aGk=", "pages": "0-3"}}),
        param="messages[0].content[0].file.pages"),
    Row("pages backwards", parts({"type": "file", "file": {"file_data": "aGk=", "pages": "3-2"}}),
        param="messages[0].content[0].file.pages"),
    Row("a file of words", parts({"type": "file", "file": {"file_data": "aGk="}}), code="invalid_file_format",
        param="messages[0].content[0].file.file_data"),
    Row("image a string", parts({"type": "image_url", "image_url": "data:"}), param="messages[0].content[0].image_url"),
    Row("n 0", chat(n=0), param="n"),
    Row("n 5", chat(n=5), param="n"),
    Row("n 1e9", chat(n=10**9), param="n"),
    Row("n -1", chat(n=-1), param="n"),
    Row("n 1.5", chat(n=1.5), param="n"),
    Row("n true", chat(n=True), param="n"),
    Row("n string", chat(n="1"), param="n"),
    Row("n 400 digits", chat(n=10**400), param="n"),
    Row("max_tokens 0", chat(max_tokens=0), param="max_tokens"),
    Row("max_tokens 1e12", chat(max_tokens=10**12), param="max_tokens"),
    Row("max_completion_tokens -1", chat(max_completion_tokens=-1), param="max_completion_tokens"),
    Row("temperature -1", chat(temperature=-1), param="temperature"),
    Row("temperature 3", chat(temperature=3), param="temperature"),
    Row("temperature hot", chat(temperature="hot"), param="temperature"),
    Row("top_p 2", chat(top_p=2), param="top_p"),
    Row("seed 2**70", chat(seed=2**70), param="seed"),
    Row("10,000 stops", chat(stop=["x"] * 10_000), param="stop"),
    Row("empty stop", chat(stop=[""]), param="stop"),
    Row("stop a number", chat(stop=5), param="stop"),
    Row("no parts", parts(), param="messages[0].content"),
    Row("stream a string", chat(stream="yes"), param="stream"),
    Row("stream_options a list", chat(stream_options=[]), param="stream_options"),
    Row("tools a string", chat(tools="f"), param="tools"),
    Row("tool without function", chat(tools=[{"type": "function"}]), param="tools[0].function"),
    Row("custom tool", chat(tools=[{"type": "custom"}]), code="unsupported_parameter", param="tools[0].type"),
    Row("tool's name", chat(tools=[tool("a b")]), param="tools[0].function.name"),
    Row("tool's name \\u2028", chat(tools=[tool("a\u2028")]), param="tools[0].function.name"),
    Row("tool's schema a list", chat(tools=[tool("f", [])]), param="tools[0].function.parameters"),
    Row("two tools of one name", chat(tools=[tool("f"), tool("f")]), param="tools"),
    Row("200 tools", chat(tools=[tool(f"f{n}") for n in range(200)]), param="tools"),
    Row("required without tools", chat(tool_choice="required"), param="tool_choice"),
    Row("choice of no tool", chat(tools=[tool("f")], tool_choice={"type": "function", "function": {"name": "g"}}),
        param="tool_choice"),
    Row("choice unknown", chat(tools=[tool("f")], tool_choice="perhaps"), param="tool_choice"),
    Row("functions", chat(functions=[{"name": "f"}]), code="unsupported_parameter", param="functions"),
    Row("format unknown", chat(response_format={"type": "xml"}), param="response_format.type"),
    Row("schema missing", chat(response_format={"type": "json_schema"}), param="response_format.json_schema"),
    Row("schema a number", chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}),
        param="response_format.json_schema.schema"),
    Row("two forms", chat(regex="a", choice=["b"]), param="regex"),
    Row("guided_json", chat(guided_json={}), code="unsupported_parameter", param="guided_json"),
    Row("logit_bias keys", chat(logit_bias={"a": 1}), param="logit_bias"),
    Row("logit_bias ²", chat(logit_bias={"²": 1}), param="logit_bias"),
    Row("logit_bias value", chat(logit_bias={"1": 101}), param="logit_bias.1"),
    Row("logit_bias 1e5 keys", chat(logit_bias={str(n): 1 for n in range(100_000)}), param="logit_bias"),
    Row("top_logprobs 1e6", chat(logprobs=True, top_logprobs=10**6), param="top_logprobs"),
    Row("top_logprobs alone", chat(top_logprobs=2), param="top_logprobs"),
    Row("presence_penalty 3", chat(presence_penalty=3), param="presence_penalty"),
    Row("frequency_penalty -3", chat(frequency_penalty=-3), param="frequency_penalty"),
    Row("repetition_penalty 0", chat(repetition_penalty=0), param="repetition_penalty"),
    Row("min_p 2", chat(min_p=2), param="min_p"),
    Row("top_k -5", chat(top_k=-5), param="top_k"),
    Row("min_tokens -1", chat(min_tokens=-1), param="min_tokens"),
    Row("min over max", chat(min_tokens=9, max_tokens=8), param="min_tokens"),
    Row("reasoning_effort", chat(reasoning_effort="extreme"), param="reasoning_effort"),
    Row("thinking_budget", chat(thinking_budget=-1), param="thinking_budget"),
    Row("enable_thinking", chat(chat_template_kwargs={"enable_thinking": "no"}),
        param="chat_template_kwargs.enable_thinking"),
    Row("chat_template", chat(chat_template="{{x}}"), code="unsupported_parameter", param="chat_template"),
    Row("nested template", chat(chat_template_kwargs={"chat_template": "x"}), code="unsupported_parameter"),
    Row("mm_processor_kwargs", chat(mm_processor_kwargs={"max_pixels": 10**12}), code="unsupported_parameter"),
    Row("prompt_embeds", chat(prompt_embeds="x"), code="unsupported_parameter"),
    Row("priority", chat(priority=5), code="unsupported_parameter"),
    Row("image http", image("http://127.0.0.1/x.png"), code="invalid_image_url", param=URL),
    Row("image https", image("HTTPS://example.com/x.png"), code="invalid_image_url", param=URL),
    Row("image file", image("file:///etc/passwd"), code="invalid_image_url", param=URL),
    Row("image path", image("/etc/passwd"), code="invalid_image_url", param=URL),
    Row("image data:,", image("data:,"), code="invalid_image_url", param=URL),
    Row("image no comma", image("data:image/png;base64"), code="invalid_image_url", param=URL),
    Row("image not base64", image("data:image/png,xyz"), code="invalid_image_url", param=URL),
    Row("image of semicolons", image("data:" + ";" * 1_000_000), code="invalid_image_url", param=URL),
    Row("image empty", image("data:image/png;base64,"), code="invalid_base64", param=URL),
    Row("image alphabet", image("data:image/png;base64,!!!!aGVsbG8="), code="invalid_base64", param=URL),
    Row("image joined", image("data:image/png;base64,aGk=aGk="), code="invalid_base64", param=URL),
    Row("image padding", image("data:image/png;base64,="), code="invalid_base64", param=URL),
    Row("image null", image(None), param=URL),
    Row("no picture", image("data:image/png;base64," + base64.b64encode(b"hello world").decode()), param=URL),
    Row("half a picture", image("data:image/png;base64," + PICTURE[: len(PICTURE) // 2 // 4 * 4]), param=URL),
    Row("too large a picture", image("data:image/png;base64," + PICTURE.rstrip("=") + "A" * 14_000_000),
        code="image_too_large", param=URL),
    Row("101 pictures", parts(*[{"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}}] * 101),
        code="too_many_media"),
    Row("picture of the assistant", chat(messages=[{"role": "assistant", "content": image("x")["messages"][0]["content"]
        and [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}}]}])),
    Row("pictures of more tokens than the context", parts(*[{"type": "image_url", "image_url": {"url": LARGE}}] * 9),
        code="context_length_exceeded"),
    Row("too long", chat(messages=[{"role": "user", "content": "a " * 40_000}]), code="context_length_exceeded"),
    Row("plain text body", b"{}", 415, headers={"content-type": "text/plain"}),
    Row("form body", b"{}", 415, headers={"content-type": "application/x-www-form-urlencoded"}),
    Row("gzip body", b"{}", 415, "unsupported_encoding", headers={"content-encoding": "gzip"}),
    Row("no such path", {}, 404, path="/v1/nothing"),
    Row("wrong method", None, 405, path=CHAT, method="GET"),
    Row("timeout header", chat(), headers={"x-server-timeout": "soon"}),
    Row("host with a query", chat(), headers={"host": "a/?x="}, param="Host"),
    Row("host with a fragment", chat(), headers={"host": "a/#"}, param="Host"),
    Row("a header of 100 kB", chat(), 431, "headers_too_large", headers={"x-long": "a" * 100_000}),
    Row("200 headers", chat(), 431, "headers_too_large", headers={f"x-{n}": "a" for n in range(200)}),
    Row("native host", native(), path=NATIVE, headers={"host": "a/?x="}, param="Host"),
    Row("native 200 headers", native(), 431, path=NATIVE, headers={f"x-{n}": "a" for n in range(200)}),
    Row("count timeout", native(), path="/v1/models/qwen3-vl:countTokens", headers={"x-server-timeout": "-1"}),
    Row("native no contents", {}, path=NATIVE, param="contents"),
    Row("native empty contents", native(contents=[]), path=NATIVE, param="contents"),
    Row("native contents a string", native(contents="x"), path=NATIVE, param="contents"),
    Row("native unknown", native(frobnicate=1), path=NATIVE, param="frobnicate"),
    Row("native deep unknown", native(contents=[{"parts": [{"text": "x", "what": 1}]}]), path=NATIVE,
        param="contents[0].parts[0].what"),
    Row("native role", native(contents=[{"role": "robot", "parts": [{"text": "x"}]}]), path=NATIVE,
        param="contents[0].role"),
    Row("native no parts", native(contents=[{"role": "user"}]), path=NATIVE, param="contents[0].parts"),
    Row("native empty part", native(contents=[{"parts": [{}]}]), path=NATIVE, param="contents[0].parts[0]"),
    Row("native two in one", native(contents=[{"parts": [{"text": "x", "inlineData": {}}]}]), path=NATIVE,
        param="contents[0].parts[0]"),
    Row("native misspelt", native(generation_confg={}), path=NATIVE, param="generation_confg"),
    Row("native misspelt inside", native(generation_config={"top_pp": 1}), path=NATIVE,
        param="generationConfig.top_pp"),
    Row("native both spellings", native(generationConfig={"topP": 1, "top_p": 1}), path=NATIVE),
    Row("native search", native(tools=[{"googleSearch": {}}]), path=NATIVE, param="tools[0].googleSearch"),
    Row("native tool's name", native(tools=[{"functionDeclarations": [{"name": "a b"}]}]), path=NATIVE,
        param="tools[0].functionDeclarations[0].name"),
    Row("native tool's type", native(tools=[{"functionDeclarations": [{"name": "f", "parameters": {"type": "X"}}]}]),
        path=NATIVE, param="tools[0].functionDeclarations[0].parameters.type"),
    Row("native mode", native(toolConfig={"functionCallingConfig": {"mode": "MAYBE"}}), path=NATIVE,
        param="toolConfig.functionCallingConfig.mode"),
    Row("native any without tools", native(toolConfig={"functionCallingConfig": {"mode": "ANY"}}), path=NATIVE,
        param="toolConfig.functionCallingConfig.mode"),
    Row("native schema without mime", native(generationConfig={"responseSchema": {}}), path=NATIVE,
        param="generationConfig.responseSchema"),
    Row("native two schemas", native(generationConfig={"responseMimeType": "application/json", "responseSchema": {},
        "responseJsonSchema": {}}), path=NATIVE, param="generationConfig.responseJsonSchema"),
    Row("native mime", native(generationConfig={"responseMimeType": "text/html"}), path=NATIVE,
        param="generationConfig.responseMimeType"),
    Row("native logprobs alone", native(generationConfig={"logprobs": 3}), path=NATIVE,
        param="generationConfig.logprobs"),
    Row("native top_k", native(generationConfig={"topK": -1}), path=NATIVE, param="generationConfig.topK"),
    Row("native level", native(generationConfig={"thinkingConfig": {"thinkingLevel": "EXTREME"}}), path=NATIVE,
        param="generationConfig.thinkingConfig.thinkingLevel"),
    Row("native call of the user", native(contents=[{"parts": [{"functionCall": {"name": "f"}}]}]), path=NATIVE,
        param="contents[0].parts"),
    Row("native response of the model", native(contents=[{"role": "model", "parts": [{"functionResponse":
        {"name": "f"}}]}]), path=NATIVE, param="contents[0].parts"),
    Row("native audio", native(generationConfig={"responseModalities": ["AUDIO"]}), path=NATIVE,
        param="generationConfig.responseModalities"),
    Row("native temperature", native(generationConfig={"temperature": 9}), path=NATIVE,
        param="generationConfig.temperature"),
    Row("native max", native(generationConfig={"maxOutputTokens": 0}), path=NATIVE,
        param="generationConfig.maxOutputTokens"),
    Row("native max true", native(generationConfig={"maxOutputTokens": True}), path=NATIVE,
        param="generationConfig.maxOutputTokens"),
    Row("native candidates", native(generationConfig={"candidateCount": 5}), path=NATIVE,
        param="generationConfig.candidateCount"),
    Row("native config a list", native(generationConfig=[]), path=NATIVE, param="generationConfig"),
    Row("native base64", blob("!!!!"), path=NATIVE, param=DATA),
    Row("native no data", blob(None), path=NATIVE, param=DATA),
    Row("native no picture", blob("aGVsbG8gd29ybGQ="), path=NATIVE, param=DATA),
    Row("native video", blob("aGk=", "video/mp4"), path=NATIVE, param=DATA),
    Row("native offset", native(contents=[{"parts": [{"inlineData": {"data": "aGk="}, "videoMetadata":
        {"startOffset": 5}}]}]), path=NATIVE, param="contents[0].parts[0].videoMetadata.startOffset"),
    Row("native pages", native(contents=[{"parts": [{"inlineData": {"data": "aGk="}, "documentMetadata":
        {"startPage": 3, "endPage": 2}}]}]), path=NATIVE, param="contents[0].parts[0].documentMetadata"),
    Row("native resolution", native(contents=[{"parts": [{"inlineData": {"data": "aGk="}, "mediaResolution":
        {"level": "SOME"}}]}]), path=NATIVE, param="contents[0].parts[0].mediaResolution.level"),
    Row("native file", native(contents=[{"parts": [{"fileData": {"fileUri": "http://127.0.0.1/"}}]}]), path=NATIVE),
    Row("native alt", native(), path="/v1beta/models/qwen3-vl:streamGenerateContent?alt=xml", param="alt"),
    Row("native model", native(), 404, path="/v1beta/models/none:generateContent"),
    Row("native method", native(), 404, path="/v1beta/models/qwen3-vl:fly"),
    Row("native path", native(), 404, path="/v1beta/nothing"),
    Row("native count", {"contents": 1}, path="/v1beta/models/qwen3-vl:countTokens", param="contents"),
    Row("native text body", b"{}", 415, path=NATIVE, headers={"content-type": "text/plain"}),
]  # fmt: skip


def check_envelope(answer: httpx.Response, path: str) -> dict[str, Any]:
    """The error inside the envelope of the wire that `path` belongs to."""
    error = answer.json()["error"]
    if path in {CHAT, "/v1/nothing"}:
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
    else:
        assert set(error) == {"code", "message", "status", "details"}
        assert error["code"] == answer.status_code
    assert not LEAKS.search(answer.text), answer.text
    assert not re.search(r"\b(str|int|float|bool|array)\b", error["message"]), answer.text
    assert len(answer.text) < 2000
    assert re.fullmatch(r"[0-9a-f]{24}", answer.headers["x-request-id"])
    return error


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_wrong_request_is_told_what_is_wrong(scripted: Served, row: Row) -> None:
    content = row.body if isinstance(row.body, bytes | None) else json.dumps(row.body).encode()
    headers = {"authorization": f"Bearer {scripted.key}", "content-type": "application/json"} | row.headers
    began = time.monotonic()
    answer = httpx.request(row.method, scripted.url + row.path, content=content, headers=headers, timeout=30)
    assert answer.status_code == row.status, answer.text
    assert time.monotonic() - began < 10
    error = check_envelope(answer, row.path)
    if row.path == CHAT:
        assert row.code is None or error["code"] == row.code, answer.text
        assert row.param is None or error["param"] == row.param, answer.text
    elif row.param is not None:
        fields = [each["field"] for detail in error["details"] for each in detail.get("fieldViolations", [])]
        assert fields == [row.param], answer.text
    if row.param is not None:
        assert row.param in error["message"] or row.param.rpartition(".")[2] in error["message"], error["message"]


def test_the_server_is_whole_afterwards(scripted: Served) -> None:
    assert scripted.post(CHAT, chat()).json()["choices"][0]["message"]["content"] == "You said: Hi"
    assert "Traceback" not in scripted.log()


KEYS = ["", "wrong", "sk-", "sk-AAAAAAAAAAAA-" + "A" * 43, "x' OR '1'='1", "sk-" + "a" * 5000]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("path", [CHAT, NATIVE, "/v1/models", "/v1beta/models", "/nothing"])
def test_no_route_without_a_key(scripted: Served, path: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx.request("POST" if path in (CHAT, NATIVE) else "GET", scripted.url + path, headers=headers, json={})
    error = answer.json()["error"]
    if path.startswith("/v1beta") or path == NATIVE:
        assert (answer.status_code, error["status"]) == (
            (400, "INVALID_ARGUMENT") if key else (403, "PERMISSION_DENIED")
        )
        assert bool(key) == ("API_KEY_INVALID" in answer.text)
    else:
        assert (answer.status_code, error["code"]) == (401, "invalid_api_key")


def test_an_admin_key_calls_no_model(scripted: Served) -> None:
    answer = scripted.post(CHAT, chat(), key=scripted.admin_key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")


def test_keys_come_in_four_ways(scripted: Served) -> None:
    url, key = scripted.url + NATIVE, scripted.key
    for headers, query in (
        ({"x-goog-api-key": key}, ""),
        ({}, f"?key={key}"),
        ({"authorization": f"bearer {key}"}, ""),
    ):
        assert httpx.post(url + query, json=native(), headers=headers).status_code == 200


def test_ignored_fields_are_named(scripted: Served) -> None:
    answer = scripted.post(CHAT, chat(user="u", metadata={}, made_up=1))
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "user, metadata, made_up"
    end, lines = time.monotonic() + 10, list[str]()
    while not lines and time.monotonic() < end:  # it is written when the answer has gone out
        lines = [line for line in scripted.log().splitlines() if answer.headers["x-request-id"] in line]
        time.sleep(0.01)
    assert lines[0].endswith(f" POST {CHAT} ignored=user,metadata,made_up")


def sent(served: Served, text: bytes) -> bytes:
    """What comes back for these bytes until the server closes or is silent for a second."""
    host, port = served.url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=1) as connection, contextlib.suppress(TimeoutError):
        connection.sendall(text)
        while chunk := connection.recv(65536):
            received += chunk
        return received + b"(closed)"
    return received


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.0\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", b"200"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Never-Ending: " + b"a" * (128 * 1024), b"431"),
        (b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
    ],
)  # fmt: skip
def test_a_strange_head(scripted: Served, head: bytes, status: bytes) -> None:
    assert sent(scripted, head).startswith(b"HTTP/1.1 " + status)


def test_the_socket_is_closed_after_a_body_that_was_not_read(scripted: Served) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {scripted.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {10**10}\r\n\r\n"
    answer = sent(scripted, head.encode())
    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.endswith(b"(closed)")


def test_too_large_a_body_is_refused_before_it_is_read(scripted: Served) -> None:
    host, port = scripted.url.removeprefix("http://").split(":")
    for path in (CHAT, NATIVE):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {scripted.key}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {10**10}\r\n\r\n"
            connection.sendall(head.encode() + b"{")
            assert b" 413 " in connection.recv(65536).split(b"\r\n")[0]


def test_nothing_secret_is_ever_written(scripted: Served) -> None:
    canary = "CANARY" + "z" * 30
    scripted.post(CHAT, chat(messages=[{"role": "user", "content": canary}]))
    scripted.post(CHAT, image("data:image/png;base64," + base64.b64encode(canary.encode()).decode()))
    httpx.post(scripted.url + f"{NATIVE}?key={scripted.key}", json=native())
    httpx.post(scripted.url + f"{NATIVE}?key=sk-{canary}", json=native())
    httpx.get(scripted.url + "/v1/models", headers={"authorization": f"Bearer {canary}"})
    log = scripted.log().partition("Try it:")[2].partition("\n\n")[2]
    secret = scripted.key.split("-", 2)[2]
    assert canary not in log
    assert base64.b64encode(canary.encode()).decode()[:20] not in log
    assert secret not in log
    assert scripted.key.split("-")[1] in log
