"""The official SDKs, with only the address and the key changed, over a real socket."""

import base64
import io
import json
import subprocess
from collections.abc import Iterator
from typing import Literal

import httpx
import openai
import pydantic
import pytest
from google import genai
from google.genai import errors, types

from qwen3vl_compat.demo import SAMPLE
from tests import sdks
from tests.serving import Served

pytestmark = pytest.mark.filterwarnings("default")


def data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def chat(text: str, picture: bytes | None = None) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [{"type": "text", "text": text}]
    if picture is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": data_url(picture)}})
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module", name="openai_client")
def an_openai_client(demo: Served) -> Iterator[openai.OpenAI]:
    with sdks.openai_client(demo) as client:
        yield client


@pytest.fixture(scope="module", name="google_client", params=["v1", "v1beta"])
def a_google_client(demo: Served, request: pytest.FixtureRequest) -> Iterator[genai.Client]:
    with sdks.google_client(demo, request.param) as client:
        yield client


def test_openai_reads_the_picture(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="qwen3-vl", messages=chat("Read the text.", SAMPLE.read_bytes())
    )
    assert answer.choices[0].message.content == "HELLO42"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.to_dict()["image_tokens"] == 6 * 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_openai_streams_the_same(openai_client: openai.OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model="qwen3-vl",
        messages=chat("Read the text.", SAMPLE.read_bytes()),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "HELLO42"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert sum(len(chunk.choices[0].delta.content or "") > 0 for chunk in chunks if chunk.choices) > 3


def test_openai_stream_helper_accumulates(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(model="qwen3-vl", messages=chat("Hello"), n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert len(final.choices) == 2
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == final.choices[1].message.content


def test_without_a_picture_it_says_what_it_is(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="qwen3-vl", messages=chat("Who are you?"))
    assert "demonstration model" in (answer.choices[0].message.content or "")


def test_openai_models(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["qwen3-vl"]
    assert openai_client.models.retrieve("qwen3-vl").id == "qwen3-vl"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("org/none")


def test_openai_errors_are_typed(demo: Served, openai_client: openai.OpenAI) -> None:
    with sdks.openai_client(demo, "sk-wrong") as stranger, pytest.raises(openai.AuthenticationError, match="not valid"):
        stranger.models.list()
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.chat.completions.create(model="gpt-none", messages=chat("Hi"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        openai_client.chat.completions.create(model="qwen3-vl", messages=chat("Hi"), temperature=9)
    with pytest.raises(openai.BadRequestError, match="Input tokens exceed the configured limit"):
        openai_client.chat.completions.create(model="qwen3-vl", messages=chat("a b " * 40_000))


def test_google_reads_the_picture(google_client: genai.Client) -> None:
    picture = types.Part.from_bytes(data=SAMPLE.read_bytes(), mime_type="image/png")
    answer = google_client.models.generate_content(model="qwen3-vl", contents=[picture, "Read the text."])
    assert answer.text == "HELLO42"
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    usage = answer.usage_metadata
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert {detail.modality: detail.token_count for detail in usage.prompt_tokens_details}[
        types.MediaModality.IMAGE
    ] == 12
    assert answer.model_version == "qwen3-vl"
    assert answer.response_id


def test_google_streams_the_same(google_client: genai.Client) -> None:
    picture = types.Part.from_bytes(data=SAMPLE.read_bytes(), mime_type="image/png")
    chunks = list(google_client.models.generate_content_stream(model="qwen3-vl", contents=[picture, "图中写了什么？"]))
    assert "".join(chunk.text or "" for chunk in chunks) == "HELLO42"
    assert chunks[-1].usage_metadata is not None
    assert chunks[-1].usage_metadata.candidates_token_count == 8


def test_google_counts_what_it_will_charge(google_client: genai.Client) -> None:
    picture = types.Part.from_bytes(data=SAMPLE.read_bytes(), mime_type="image/png")
    counted = google_client.models.count_tokens(model="qwen3-vl", contents=[picture, "Read the text."])
    answer = google_client.models.generate_content(model="qwen3-vl", contents=[picture, "Read the text."])
    assert answer.usage_metadata is not None
    assert counted.total_tokens == answer.usage_metadata.prompt_token_count


def test_google_models_and_errors(demo: Served, google_client: genai.Client) -> None:
    assert [model.name for model in google_client.models.list()] == ["models/qwen3-vl"]
    assert google_client.models.get(model="qwen3-vl").input_token_limit == 32_768
    with sdks.google_client(demo, key="wrong") as stranger, pytest.raises(errors.ClientError) as wrong:
        stranger.models.generate_content(model="qwen3-vl", contents="x")
    assert wrong.value.code == 400
    assert wrong.value.status == "INVALID_ARGUMENT"
    with pytest.raises(errors.ClientError) as missing:
        google_client.models.generate_content(model="none", contents="x")
    assert missing.value.code == 404


def test_the_exact_native_request(demo: Served) -> None:
    from PIL import Image

    stored = io.BytesIO()
    Image.open(SAMPLE).convert("RGB").save(stored, "JPEG", quality=95)
    body = {
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "What does the picture say?"},
                    {"inline_data": {"mime_type": "image/jpeg", "data": base64.b64encode(stored.getvalue()).decode()}},
                ],
            }
        ],
        "generation_config": {"temperature": 0.5, "max_output_tokens": 4096, "top_p": 0.8},
    }
    url = demo.url + "/v1/models/qwen3-vl:generateContent"
    answer = httpx.post(url, json=body, headers={"x-goog-api-key": demo.key}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["candidates"][0]["content"] == {"parts": [{"text": "HELLO42"}], "role": "model"}


def test_native_stream_without_sse_is_a_json_array(demo: Served) -> None:
    url = demo.url + f"/v1beta/models/qwen3-vl:streamGenerateContent?key={demo.key}"
    answer = httpx.post(url, json={"contents": [{"parts": [{"text": "Hello"}]}]}, timeout=60)
    assert answer.headers["content-type"] == "application/json"
    elements = answer.json()
    assert len(elements) > 2
    assert elements[-1]["candidates"][0]["finishReason"] == "STOP"


def test_the_printed_curl_works(demo: Served) -> None:
    line = next(line for line in demo.log().splitlines() if line.startswith("curl "))
    ran = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["choices"][0]["message"]["content"] == "HELLO42"


class Reading(pydantic.BaseModel):
    """What is asked of the model as an object."""

    text: str
    letters: int
    kind: Literal["word", "number"]


def test_openai_parses_an_answer_about_a_picture(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.parse(
        model="qwen3-vl", messages=chat("Read the text.", SAMPLE.read_bytes()), response_format=Reading, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Reading)


def test_openai_streams_an_answer_to_be_parsed(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(
        model="qwen3-vl", messages=chat("Read the text.", SAMPLE.read_bytes()), response_format=Reading, max_tokens=200
    ) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Reading)
    assert {"content.delta", "content.done"} <= kinds


class LookUp(pydantic.BaseModel):
    """Look a code up."""

    code: str = pydantic.Field(max_length=12)


def test_openai_streams_forced_tool_calls(openai_client: openai.OpenAI) -> None:
    with openai_client.chat.completions.stream(
        model="qwen3-vl",
        messages=chat("Read the text.", SAMPLE.read_bytes()),
        tools=[openai.pydantic_function_tool(LookUp)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
    ) as stream:
        pieces = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert len(pieces) > 1
    assert "".join(piece.arguments_delta for piece in pieces) == call.function.arguments
    assert isinstance(call.function.parsed_arguments, LookUp)


@pytest.fixture(scope="module")
def scripted_openai(scripted: Served) -> Iterator[openai.OpenAI]:
    with sdks.openai_client(scripted) as client:
        yield client


@pytest.fixture(scope="module")
def scripted_google(scripted: Served) -> Iterator[genai.Client]:
    with sdks.google_client(scripted) as client:
        yield client


def test_openai_calls_a_tool_and_reads_its_result(scripted_openai: openai.OpenAI) -> None:
    client = scripted_openai
    messages = chat('call LookUp with {"code": "你好"}', SAMPLE.read_bytes())
    tools = [openai.pydantic_function_tool(LookUp)]
    first = client.chat.completions.parse(model="qwen3-vl", messages=messages, tools=tools).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls or []
    assert call.function.parsed_arguments == LookUp(code="你好")
    shown = [{"type": "text", "text": "found it"}, chat("", SAMPLE.read_bytes())[0]["content"][0]]
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": shown}]
    second = client.chat.completions.create(model="qwen3-vl", messages=messages, tools=tools)
    assert second.choices[0].message.content == "[192x48] The tool says: found it"


@pytest.mark.parametrize("streamed", [False, True])
def test_google_calls_python_functions_by_itself(scripted_google: genai.Client, streamed: bool) -> None:
    asked: list[str] = []

    def look_up(code: str) -> dict[str, str]:
        """Look a code up.

        Args:
            code: what to look up
        """
        asked.append(code)
        return {"found": f"{code}!"}

    client = scripted_google
    contents = [
        types.Part.from_bytes(data=SAMPLE.read_bytes(), mime_type="image/png"),
        'call look_up with {"code": "A1"}',
    ]
    config = types.GenerateContentConfig(tools=[look_up])
    if streamed:
        chunks = client.models.generate_content_stream(model="qwen3-vl", contents=contents, config=config)
        text = "".join(chunk.text or "" for chunk in chunks)
    else:
        text = client.models.generate_content(model="qwen3-vl", contents=contents, config=config).text or ""
    assert asked == ["A1"]
    assert text == 'The tool says: {"result": {"found": "A1!"}}'


def test_google_is_given_a_pydantic_object(google_client: genai.Client) -> None:
    answer = google_client.models.generate_content(
        model="qwen3-vl",
        contents=[types.Part.from_bytes(data=SAMPLE.read_bytes(), mime_type="image/png"), "Read the text."],
        config=types.GenerateContentConfig(
            response_mime_type="application/json", response_schema=Reading, max_output_tokens=200
        ),
    )
    assert isinstance(answer.parsed, Reading)


def test_google_is_forced_to_call(google_client: genai.Client) -> None:
    declared = types.FunctionDeclaration(
        name="look_up",
        parameters=types.Schema(
            type=types.Type.OBJECT,
            properties={"code": types.Schema(type=types.Type.STRING, max_length=12)},
            required=["code"],
        ),
    )
    answer = google_client.models.generate_content(
        model="qwen3-vl",
        contents="Hello",
        config=types.GenerateContentConfig(
            tools=[types.Tool(function_declarations=[declared])],
            tool_config=types.ToolConfig(
                function_calling_config=types.FunctionCallingConfig(
                    mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["look_up"]
                )
            ),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            max_output_tokens=200,
        ),
    )
    assert answer.function_calls
    assert answer.function_calls[0].name == "look_up"
    assert set(answer.function_calls[0].args or {}) >= {"code"}


def test_google_shows_thoughts_and_logprobs(scripted_google: genai.Client) -> None:
    client = scripted_google
    answer = client.models.generate_content(
        model="qwen3-vl",
        contents="think: It is two. then say: Two.",
        config=types.GenerateContentConfig(
            thinking_config=types.ThinkingConfig(include_thoughts=True), response_logprobs=True, logprobs=1
        ),
    )
    assert answer.candidates is not None
    content = answer.candidates[0].content
    assert content is not None
    assert [(part.text, part.thought) for part in content.parts or ()] == [("It is two.", True), ("Two.", None)]
    assert answer.text == "Two."
    assert answer.candidates[0].logprobs_result is not None
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.thoughts_token_count == 5
