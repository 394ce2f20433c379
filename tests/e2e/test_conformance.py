"""Every kind of answer against the official SDKs' own types, validated strictly."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from tests.serving import Served

pytestmark = [pytest.mark.conformance, pytest.mark.filterwarnings("default")]
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(scripted: Served) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=scripted.url + "/v1", api_key=scripted.key, max_retries=0, _strict_response_validation=True
    )


def test_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="qwen3-vl", messages=MESSAGES, n=2)
    assert isinstance(answer, ChatCompletion)
    assert not answer.model_extra


def test_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="qwen3-vl", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert all(isinstance(chunk, ChatCompletionChunk) and not chunk.model_extra for chunk in chunks)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["qwen3-vl"]
    assert client.models.retrieve("qwen3-vl").object == "model"


def test_responses(client: openai.OpenAI) -> None:
    asked: Any = {"model": "qwen3-vl", "input": "think: so then say: yes"}
    answer = client.responses.create(**asked)
    assert isinstance(answer, Response)
    assert {*(answer.model_extra or {})} == {"store"}, "which OpenAI's own service tells too"
    assert client.responses.retrieve(answer.id) == answer
    assert client.responses.input_items.list(answer.id).data
    assert client.responses.input_tokens.count(**asked).input_tokens
    for summary in (None, "auto"):
        events = list(client.responses.create(**asked, reasoning={"summary": summary}, stream=True))
        assert events[-1].type == "response.completed"
