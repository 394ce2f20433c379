"""Anthropic's own client, with only the address and the key changed, over a real socket."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pydantic
import pytest

from qwen3vl_compat.demo import SAMPLE
from tests import sdks
from tests.media.typeset import typeset
from tests.metered import closed_row, new_key, public, rows
from tests.serving import Served

pytestmark = pytest.mark.filterwarnings("default")

MODEL = "qwen3-vl"
PICTURE: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(SAMPLE.read_bytes()).decode()},
}
TOOL: Any = {
    "name": "look_up",
    "description": "Looks a word up.",
    "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
}


def says(text: str, *blocks: Any) -> list[Any]:
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module", name="reader")
def a_client_of_the_bundled_model(demo: Served) -> Iterator[anthropic.Anthropic]:
    with sdks.anthropic_client(demo) as client:
        yield client


@pytest.fixture(scope="module", name="player")
def a_client_of_the_script(scripted: Served) -> Iterator[anthropic.Anthropic]:
    with sdks.anthropic_client(scripted) as client:
        yield client


def create(client: anthropic.Anthropic, text: str, *blocks: Any, **fields: Any) -> Any:
    return client.messages.create(**({"model": MODEL, "max_tokens": 50, "messages": says(text, *blocks)} | fields))


# ------------------------------------------------------------------------------------------------------------- answers


def test_it_reads_the_picture(reader: anthropic.Anthropic) -> None:
    answer = create(reader, "Read the text.", PICTURE)
    assert [(block.type, block.text) for block in answer.content] == [("text", "HELLO42")]
    assert (answer.stop_reason, answer.model, answer.role) == ("end_turn", MODEL, "assistant")
    assert answer.id == f"msg_{answer._request_id}"
    assert answer.usage.output_tokens == 8
    assert answer.usage.to_dict()["input_tokens_details"]["image_tokens"] == 6 * 2


def test_it_streams_the_same(reader: anthropic.Anthropic) -> None:
    events = list(create(reader, "Read the text.", PICTURE, stream=True))
    assert [event.type for event in events][:2] == ["message_start", "content_block_start"]
    assert [event.type for event in events][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert ("".join(deltas), len(deltas) > 1) == ("HELLO42", True)  # those of several steps may come as one
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == ("end_turn", 8)


def test_its_stream_helper_puts_the_message_together(reader: anthropic.Anthropic) -> None:
    with reader.messages.stream(
        model=MODEL, max_tokens=50, system="Be brief.", messages=says("Read.", PICTURE)
    ) as stream:
        assert "".join(stream.text_stream) == "HELLO42"
        message = stream.get_final_message()
    assert (message.content[0].type, message.stop_reason, message.usage.output_tokens) == ("text", "end_turn", 8)
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 12


def test_pictures_and_documents_come_by_every_way(demo: Served, reader: anthropic.Anthropic) -> None:
    """An uploaded file is one of either other API; pages of a PDF are pictures."""
    with sdks.openai_client(demo) as uploader:
        uploaded = uploader.files.create(file=SAMPLE, purpose="vision").id
    by_id = {"type": "image", "source": {"type": "file", "file_id": uploaded}}
    assert create(reader, "Read the text.", by_id).content[0].text == "HELLO42"
    pdf = base64.b64encode(typeset(["AB12"])).decode()
    source = {"type": "base64", "media_type": "application/pdf", "data": pdf}
    answer = create(reader, "Read it.", {"type": "document", "source": source, "title": "Sign"})
    assert answer.usage.to_dict()["input_tokens_details"]["image_tokens"] > 0
    words = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Plain words."}}
    assert "demonstration model" in create(reader, "Who are you and what can you do?", words).content[0].text
    with pytest.raises(anthropic.BadRequestError, match="must be an http") as refused:
        create(reader, "Read.", {"type": "image", "source": {"type": "url", "url": "ftp://h/x.png"}})
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError, match="could not fetch media"):
        create(reader, "Read.", {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}})


def test_tokens_are_counted_as_they_are_charged(reader: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "system": "Be brief.", "messages": says("Read the text.", PICTURE), "tools": [TOOL]}
    counted = reader.messages.count_tokens(**asked).input_tokens
    usage = reader.messages.create(**asked, max_tokens=5).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_with_tools(player: anthropic.Anthropic, stream: bool) -> None:
    def ask(messages: Any) -> Any:
        asked: Any = {"model": MODEL, "max_tokens": 50, "tools": [TOOL], "messages": messages}
        if not stream:
            return player.messages.create(**asked)
        with player.messages.stream(**asked) as events:
            return events.get_final_message()

    conversation = says('call look_up with {"word": "ü"}')
    called = ask(conversation)
    (use,) = (block for block in called.content if block.type == "tool_use")
    assert (called.stop_reason, use.name, use.input) == ("tool_use", "look_up", {"word": "ü"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "a letter"}]}
    conversation += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    answer = ask(conversation)
    assert (answer.content[0].text, answer.stop_reason) == ("The tool says: a letter", "end_turn")


def test_a_tool_can_be_forced_and_forbidden(player: anthropic.Anthropic) -> None:
    forced = create(player, "Hi", tools=[TOOL], tool_choice={"type": "tool", "name": "look_up"})
    assert [(block.type, block.name) for block in forced.content] == [("tool_use", "look_up")]
    free = create(player, 'call look_up with {"word": "x"}', tools=[TOOL], tool_choice={"type": "none"})
    assert [block.type for block in free.content] == ["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_go_to_who_asks_for_them_and_come_back(player: anthropic.Anthropic, stream: bool) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 2000, "messages": says("think: it is late then say: Good night.")}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    if stream:
        with player.messages.stream(**asked) as events:
            answer: Any = events.get_final_message()
    else:
        answer = player.messages.create(**asked)
    thought, text = answer.content
    assert (thought.type, thought.thinking, text.text) == ("thinking", "it is late", "Good night.")
    assert thought.signature
    assert 0 < answer.usage.output_tokens_details.thinking_tokens < answer.usage.output_tokens
    asked["messages"] += [{"role": "assistant", "content": answer.content}, *says("say exactly: Yes")]
    assert player.messages.create(**asked).content[-1].text == "Yes"
    quiet = create(player, "think: it is late then say: Good night.")
    assert [block.type for block in quiet.content] == ["text"]


def test_what_ended_an_answer_is_told(player: anthropic.Anthropic) -> None:
    stopped = create(player, "say exactly: one two three", stop_sequences=["never", "two"])
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == ("stop_sequence", "two", "one ")
    cut = create(player, "count to 9", max_tokens=3)
    assert (cut.stop_reason, cut.stop_sequence, cut.usage.output_tokens) == ("max_tokens", None, 3)


def test_the_real_engine_tells_the_stop_sequence_too(reader: anthropic.Anthropic) -> None:
    stopped = create(reader, "Read the text.", PICTURE, stop_sequences=["42"])
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == ("stop_sequence", "42", "HELLO")


class Sign(pydantic.BaseModel):
    text: str


def test_an_answer_is_held_to_a_schema(reader: anthropic.Anthropic) -> None:
    answer = reader.messages.parse(
        model=MODEL, max_tokens=100, messages=says("Read the text.", PICTURE), output_format=Sign
    )
    assert isinstance(answer.parsed_output, Sign)


def test_what_newer_clients_send_by_themselves_breaks_nothing(scripted: Served, player: anthropic.Anthropic) -> None:
    cached = {"type": "ephemeral"}
    raw = player.beta.messages.with_raw_response.create(
        model=MODEL, max_tokens=50, betas=["context-management-2025-06-27"], metadata={"user_id": "u"},
        system=[{"type": "text", "text": "Be brief.", "cache_control": cached}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": cached}]}],
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        extra_body={"temperature": 0.5, "top_k": 5, "some_beta": {"x": 1}},
    )  # fmt: skip
    assert raw.parse().content[0].type == "text"
    ignored = set(raw.headers["x-ignored-fields"].split(", "))
    assert ignored == {
        "metadata", "context_management", "some_beta", "system[0].cache_control",
        "messages[0].content[0].cache_control",
    }  # fmt: skip


def test_models(reader: anthropic.Anthropic) -> None:
    (model,) = reader.models.list()
    assert (model.type, model.id, model.max_input_tokens) == ("model", MODEL, 32_768)
    assert model.created_at.year >= 1970
    assert reader.models.retrieve(MODEL).id == MODEL
    with pytest.raises(anthropic.NotFoundError) as missing:
        reader.models.retrieve("none")
    assert missing.value.type == "not_found_error"


# -------------------------------------------------------------------------------------------------------------- errors


def test_errors_are_typed(scripted: Served, player: anthropic.Anthropic) -> None:
    with sdks.anthropic_client(scripted, "sk-wrong") as stranger:
        for call in (lambda: create(stranger, "Hi"), stranger.models.list):
            with pytest.raises(anthropic.AuthenticationError) as wrong:
                call()
            assert (wrong.value.type, wrong.value.error_code) == ("authentication_error", "invalid_api_key")
            assert wrong.value.body["request_id"] == wrong.value.request_id  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError, match="claude-none"):
        create(player, "Hi", model="claude-none")
    with pytest.raises(anthropic.BadRequestError, match="messages: an answer cannot be continued") as unfinished:
        create(player, "Hi", messages=[*says("Hi"), {"role": "assistant", "content": "The answer is ("}])
    assert (unfinished.value.type, unfinished.value.error_code) == ("invalid_request_error", "unsupported_parameter")
    with pytest.raises(anthropic.BadRequestError, match="this server has no such tool as 'web_search_20250305'"):
        create(player, "Hi", tools=[{"type": "web_search_20250305", "name": "web_search"}])
    missing = httpx.get(scripted.url + "/v1/messages/batches", headers={"x-api-key": scripted.key})
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    with pytest.raises(anthropic.BadRequestError, match="the prompt leaves no room"):
        player.messages.count_tokens(model=MODEL, messages=says("a b " * 600_000))


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
def test_the_key_comes_in_either_header(scripted: Served, header: str) -> None:
    """Other clients than the newest of this one send `x-api-key`."""
    body = {"model": MODEL, "max_tokens": 9, "messages": says("Hi")}

    def status(key: str) -> tuple[int, str]:
        headers = {header: key if header == "x-api-key" else f"Bearer {key}", "anthropic-version": "2023-06-01"}
        answer = httpx.post(scripted.url + "/v1/messages", json=body, headers=headers)
        return answer.status_code, answer.json()["type"]

    assert status(scripted.key) == (200, "message")
    assert status("sk-wrong") == (401, "error")
    missing = httpx.post(scripted.url + "/v1/messages", json=body)
    assert (missing.status_code, missing.json()["error"]["type"]) == (401, "authentication_error")
    assert "x-api-key" in missing.json()["error"]["message"]


def test_a_limit_is_told(scripted: Served) -> None:
    with sdks.anthropic_client(scripted, new_key(scripted, "--rpm", "1")) as client:
        create(client, "Hi")
        with pytest.raises(anthropic.RateLimitError) as limited:
            create(client, "Hi")
    assert (limited.value.type, limited.value.error_code) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60


# ------------------------------------------------------------------------------------------------------------- ledger


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_client_sees_is_what_is_booked(scripted: Served, stream: bool) -> None:
    key = new_key(scripted)
    with sdks.anthropic_client(scripted, key) as client:
        asked: Any = {"model": MODEL, "max_tokens": 50, "messages": says("think: a b c then say: d e", PICTURE)}
        if stream:
            with client.messages.stream(**asked) as events:
                answer: Any = events.get_final_message()
        else:
            answer = client.messages.create(**asked)
        client.messages.count_tokens(model=MODEL, messages=says("Hi"))
    row = closed_row(scripted, key)
    usage = answer.usage.to_dict()
    assert answer.id == f"msg_{row['id']}"
    assert (row["state"], row["wire"], bool(row["stream"])) == ("final", "anthropic", stream)
    assert row["text_in"] + row["vision_in"] + row["cached_in"] == usage["input_tokens"]
    assert (row["vision_in"], row["pictures"]) == (usage["input_tokens_details"]["image_tokens"], 1)
    assert (row["out"], row["reasoning"]) == (usage["output_tokens"], usage["output_tokens_details"]["thinking_tokens"])
    assert json.loads(exported(scripted, key))["wire"] == "anthropic"


def exported(served: Served, key: str) -> str:
    path = f"{served.url}/v1/usage/export?format=jsonl&key={public(key)}"
    return httpx.get(path, headers={"authorization": f"Bearer {key}"}).text


def test_what_is_refused_is_not_booked(scripted: Served) -> None:
    key = new_key(scripted)
    with sdks.anthropic_client(scripted, key) as client, pytest.raises(anthropic.BadRequestError):
        create(client, "Hi", max_tokens=0)
    assert rows(scripted, key) == []
