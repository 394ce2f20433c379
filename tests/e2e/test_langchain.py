"""Chat models of LangChain against running servers: ours, and the one it has for OpenAI."""

import asyncio
import base64
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from qwen3vl_compat.adapters.client import BadRequest
from qwen3vl_compat.adapters.langchain import ChatQwen3VL
from qwen3vl_compat.demo import SAMPLE
from tests.media.crafted import drawing
from tests.media.films import film, steady
from tests.media.typeset import typeset
from tests.metered import nothing_runs, wait_until
from tests.serving import Served, serving

pytestmark = pytest.mark.filterwarnings("default")

PICTURE = {"type": "image", "base64": base64.b64encode(SAMPLE.read_bytes()).decode(), "mime_type": "image/png"}
READING = [HumanMessage([PICTURE, {"type": "text", "text": "Read the text."}])]
Make = Callable[..., BaseChatModel]


def ours(served: Served, **fields: Any) -> ChatQwen3VL:
    return ChatQwen3VL(base_url=served.url, api_key=served.key, **fields)


def openais(served: Served, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=served.url + "/v1", api_key=served.key, model="qwen3-vl", stream_usage=True, max_retries=0, **fields
    )


def openais_responses(served: Served, **fields: Any) -> ChatOpenAI:
    return openais(served, use_responses_api=True, **fields)


both = pytest.mark.parametrize("make", [ours, openais, openais_responses])


def joined(chunks: Any) -> AIMessageChunk:
    whole: AIMessageChunk | None = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return whole


@tool
def lookup(place: str) -> list[dict[str, Any]]:
    """What is to be seen in a place."""
    return [{"type": "text", "text": f"In {place}:"}, PICTURE]


class Sign(BaseModel):
    text: str


# ----------------------------------------------------------------------------------------------------- both of them


@both
def test_an_answer_whole_and_streamed(scripted: Served, make: Make) -> None:
    model = make(scripted)
    whole, streamed = model.invoke("Hello"), joined(model.stream("Hello"))
    for said in (whole, streamed):
        assert said.text == "You said: Hello"
        assert said.usage_metadata is not None
        assert (said.usage_metadata["input_tokens"], said.usage_metadata["output_tokens"]) == (5, 3)
        assert said.response_metadata["model_name"] == "qwen3-vl"


@both
def test_the_picture_is_read(demo: Served, make: Make) -> None:
    said = make(demo, temperature=0, max_tokens=20).invoke(READING)
    assert said.text == "HELLO42"


@both
@pytest.mark.parametrize("version", ["v0", "v1"])
def test_a_tool_is_called_and_its_picture_looked_at(scripted: Served, make: Make, version: str) -> None:
    model = make(scripted, output_version=version).bind_tools([lookup])
    question = HumanMessage('call lookup with {"place": "Oslo"}')
    for said in (model.invoke([question]), joined(model.stream([question]))):
        (call,) = said.tool_calls
        assert (call["name"], call["args"]) == ("lookup", {"place": "Oslo"})
        end = model.invoke([question, said, lookup.invoke(call)])
        assert end.text == "[192x48] The tool says: In Oslo:"


@both
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_is_held_to_a_schema(demo: Served, make: Make, method: Any) -> None:
    model: Any = make(demo, temperature=0, max_tokens=60)
    assert isinstance(model.with_structured_output(Sign, method=method).invoke(READING), Sign)


# ------------------------------------------------------------------------------------------------------------ ours


class Listening(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[Any] = []

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens.append(token)


@pytest.mark.parametrize("fields", [{}, {"streaming": True}])
async def test_tokens_are_told_as_they_come(scripted: Served, fields: dict[str, Any]) -> None:
    model, heard, counted = ours(scripted, **fields), Listening(), UsageMetadataCallbackHandler()
    config: Any = {"callbacks": [heard, counted]}
    if fields:
        model.invoke("Hello", config)
        await model.ainvoke("Hello", config)
    else:
        joined(model.stream("Hello", config))
        joined([chunk async for chunk in model.astream("Hello", config)])
    assert heard.tokens == ["You", " said:", " Hello", ""] * 2
    assert counted.usage_metadata["qwen3-vl"]["total_tokens"] == 16


@pytest.mark.parametrize("version", ["v0", "v1"])
async def test_thoughts_are_blocks_of_their_own(scripted: Served, version: str) -> None:
    model = ours(scripted, output_version=version)
    question = "think: is it late then say: Good night"
    whole, streamed = await model.ainvoke(question), joined([chunk async for chunk in model.astream(question)])
    for said in (whole, streamed):
        blocks = [{name: block[name] for name in block if name != "index"} for block in said.content_blocks]
        assert blocks == [{"type": "reasoning", "reasoning": "is it late"}, {"type": "text", "text": "Good night"}]
        assert said.usage_metadata is not None
        assert said.usage_metadata.get("output_token_details", {}).get("reasoning", 0) >= 3


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that takes 20 ms a token: 2,000 of them are longer than any test waits."""
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": "0.02"}
    with serving(tmp_path_factory.mktemp("slow"), environment=environment) as served:
        yield served


async def test_whoever_leaves_a_stream_ends_it(slow: Served) -> None:
    model = ours(slow)
    stream = model.stream("count to 2000")
    assert "".join(str(chunk.content) for chunk in islice(stream, 2)) == "1 2"
    assert not nothing_runs(slow)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    wait_until(lambda: nothing_runs(slow))
    streaming = model.astream("count to 2001")
    async for _ in streaming:
        break
    assert not nothing_runs(slow)
    await streaming.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    await asyncio.to_thread(wait_until, lambda: nothing_runs(slow))  # the loop goes on: LangChain leaves the rest to it


def test_documents_and_videos_are_seen(scripted: Served) -> None:
    clip = film(steady([drawing(64, 64, seed=n) for n in range(4)], 1), rate=1)
    content = [
        {"type": "file", "base64": base64.b64encode(typeset(["ONE", "TWO"])).decode(), "mime_type": "application/pdf",
         "extras": {"filename": "a.pdf", "pages": "2"}},
        {"type": "video", "base64": base64.b64encode(clip).decode(), "mime_type": "video/mp4"},
        {"type": "text-plain", "text": "say exactly: so", "mime_type": "text/plain"},
    ]  # fmt: skip
    said = ours(scripted).invoke([HumanMessage(content)])
    assert said.usage_metadata is not None
    details: Any = said.usage_metadata.get("input_token_details", {})
    assert details["image"] > 0
    assert details["video"] > 0
    assert said.text.endswith("so")


def test_tokens_are_counted_before(demo: Served) -> None:
    model = ours(demo, temperature=0, max_tokens=20)
    counted = model.get_num_tokens_from_messages(READING, tools=[lookup])
    said = model.bind_tools([lookup]).invoke(READING)
    assert said.usage_metadata is not None
    assert said.usage_metadata["input_tokens"] == counted
    assert model.get_num_tokens_from_messages(READING) < counted


def test_the_field_at_fault_is_named(scripted: Served) -> None:
    block = {"type": "image", "base64": base64.b64encode(b"no picture").decode(), "mime_type": "image/png"}
    with pytest.raises(BadRequest) as caught:
        ours(scripted).invoke([HumanMessage([block])])
    assert caught.value.param == "messages[0].content[0].image_url.url"
