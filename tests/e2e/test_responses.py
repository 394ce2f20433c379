"""OpenAI's Responses API through OpenAI's own client: asked, streamed, gone on from, kept, shown, deleted, counted."""

import base64
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.types.responses import Response
from PIL import Image

from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.demo import SAMPLE
from tests import sdks
from tests.media.films import pdf_of
from tests.metered import chat, check_sums, closed_row, command, new_key, rows
from tests.serving import Served

pytestmark = pytest.mark.filterwarnings("default")

MODEL = "qwen3-vl"
PNG = SAMPLE.read_bytes()
PDF = pdf_of([Image.open(SAMPLE).convert("RGB")])
WORD = "HELLO42"


def url_of(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


IMAGE: dict[str, Any] = {"type": "input_image", "image_url": url_of(PNG, "image/png"), "detail": "auto"}
FILE_PART = {"type": "input_file", "file_data": url_of(PDF, "application/pdf"), "filename": "a.pdf"}


def said(*parts: Any) -> Any:
    content = [{"type": "input_text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module", name="reader")
def a_client_of_the_model(demo: Served) -> Iterator[openai.OpenAI]:
    with sdks.openai_client(demo) as client:
        yield client


@pytest.fixture(scope="module", name="client")
def a_client_of_the_script(scripted: Served) -> Iterator[openai.OpenAI]:
    with sdks.openai_client(scripted) as client:
        yield client


@pytest.fixture(scope="module")
def other_key(scripted: Served) -> str:
    command(scripted, "tenants", "create", "other-of-responses")
    return new_key(scripted, "--tenant", "other-of-responses")


def without(response: Response, *names: str) -> dict[str, Any]:
    return {name: value for name, value in response.to_dict().items() if name not in names}


# --------------------------------------------------------------------------------------------------------- asked, shown


def test_a_response_is_answered_and_shown_again(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model=MODEL, input="say exactly: two words", instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=50
    )
    assert (made.output_text, made.status, made.object) == ("two words", "completed", "response")
    assert (made.instructions, made.metadata, made.max_output_tokens) == ("Be brief.", {"a": "b"}, 50)
    assert made._request_id is not None
    assert made.id == f"resp_{made._request_id}"
    assert client.responses.retrieve(made.id) == made


def test_a_stream_comes_to_the_same(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": "think: so then say: one two", "temperature": 0}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "one two"
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "so"
    assert final.output_text == whole.output_text
    assert [item.type for item in final.output] == [item.type for item in whole.output] == ["reasoning", "message"]
    kept = client.responses.retrieve(final.id)
    assert (kept.output_text, kept.usage) == ("one two", final.usage)
    own = ("id", "created_at", "usage", "output")
    assert without(kept, *own) == without(whole, *own)


def test_a_stream_names_its_events(scripted: Served) -> None:
    body = {"model": MODEL, "input": "say exactly: a", "stream": True}
    answer = scripted.post("/v1/responses", body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    assert all(len(lines) == 2 for lines in blocks)
    names = [lines[0].removeprefix("event: ") for lines in blocks]
    assert (names[0], names[-1]) == ("response.created", "response.completed")
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("part", [IMAGE, FILE_PART], ids=["picture", "pdf"])
def test_media_are_read(reader: openai.OpenAI, part: Any) -> None:
    answer = reader.responses.create(model=MODEL, input=said(part, "Read the text."), max_output_tokens=16, store=False)
    assert answer.output_text == WORD
    with pytest.raises(openai.NotFoundError):
        reader.responses.retrieve(answer.id)


def test_an_uploaded_file_is_read(reader: openai.OpenAI) -> None:
    file = reader.files.create(file=("a.png", PNG, "image/png"), purpose="user_data")
    for part in ({"type": "input_image", "file_id": file.id, "detail": "auto"},
                 {"type": "input_file", "file_id": file.id}):  # fmt: skip
        answer = reader.responses.create(model=MODEL, input=said(part, "Read the text."), max_output_tokens=16)
        assert answer.output_text == WORD
    reader.files.delete(file.id)
    with pytest.raises(openai.NotFoundError) as gone:
        reader.responses.create(model=MODEL, input="Again", previous_response_id=answer.id)
    assert gone.value.param == "previous_response_id.input[0].content[0].file_id"


class Reading(pydantic.BaseModel):
    """What is asked of the model as an object."""

    text: str
    letters: int


def test_an_answer_is_parsed(reader: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": said(IMAGE, "Read the text."), "text_format": Reading}
    parsed = reader.responses.parse(**asked, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Reading)
    with reader.responses.stream(**asked, max_output_tokens=200) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Reading)


def test_tokens_run_out(client: openai.OpenAI) -> None:
    cut = client.responses.create(model=MODEL, input="count to 9", max_output_tokens=3)
    assert (cut.status, cut.output_text) == ("incomplete", "1 2 3")
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model=MODEL, input="count to 9", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


# -------------------------------------------------------------------------------------------------------- conversations


def test_a_conversation_keeps_its_picture(reader: openai.OpenAI) -> None:
    first = reader.responses.create(model=MODEL, input=said(IMAGE), max_output_tokens=4)
    second = reader.responses.create(
        model=MODEL, input="Read the text.", previous_response_id=first.id, max_output_tokens=16
    )
    assert second.previous_response_id == first.id
    both = [*said(IMAGE), *[item.to_dict() for item in first.output], *said("Read the text.")]
    again = reader.responses.create(model=MODEL, input=both, max_output_tokens=16)
    assert again.output_text == second.output_text
    assert again.usage is not None
    assert second.usage is not None
    assert again.usage.input_tokens == second.usage.input_tokens
    items = reader.responses.input_items.list(first.id).data
    shown = reader.responses.input_items.list(first.id, include=["message.input_image.image_url"]).data
    urls = [item.content[0].image_url for item in (*items, *shown)]  # type: ignore[union-attr]
    assert urls == [None, IMAGE["image_url"]]


TOOL: Any = {
    "type": "function",
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    "strict": True,
}


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "sent again"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tool_is_called_and_its_result_read(client: openai.OpenAI, kept: bool, stream: bool) -> None:
    asked = said('call look_up with {"code": "你好"}')
    if stream:
        with client.responses.stream(model=MODEL, input=asked, tools=[TOOL], store=kept) as events:
            first: Response = events.get_final_response()
    else:
        first = client.responses.create(model=MODEL, input=asked, tools=[TOOL], store=kept)
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("look_up", '{"code": "你好"}')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": [
        {"type": "input_text", "text": "found it"}, IMAGE]}  # fmt: skip
    more: Any = {"input": [result], "previous_response_id": first.id}
    if not kept:
        more = {"input": [*asked, call.to_dict(), result]}
    second = client.responses.create(model=MODEL, tools=[TOOL], store=kept, **more)
    assert second.output_text == "[192x48] The tool says: found it"


def test_items_are_referred_to(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input='call look_up with {"code": "a"}', tools=[TOOL])
    (call,) = first.output
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    items: Any = [{"type": "item_reference", "id": call.id}, result]
    second = client.responses.create(model=MODEL, input=items, tools=[TOOL])
    assert second.output_text == "The tool says: done"
    listed = [item.id for item in client.responses.input_items.list(second.id, order="asc")]
    assert listed[0] == call.id
    items[0]["id"] = "fc_" + "0" * 24 + "_0"
    with pytest.raises(openai.BadRequestError) as missing:
        client.responses.create(model=MODEL, input=items, tools=[TOOL])
    assert missing.value.param == "input[0].id"


def test_what_is_deleted_is_gone_and_so_is_what_goes_on_from_it(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="a")
    second = client.responses.create(model=MODEL, input="b", previous_response_id=first.id)
    client.responses.delete(first.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError) as gone:
            call(first.id)  # type: ignore[operator]
        assert gone.value.code == "response_not_found"
    assert client.responses.retrieve(second.id).output_text
    with pytest.raises(openai.NotFoundError) as broken:
        client.responses.create(model=MODEL, input="c", previous_response_id=second.id)
    assert (broken.value.code, broken.value.param) == ("previous_response_not_found", "previous_response_id")


def test_another_tenants_responses_are_not_there(scripted: Served, client: openai.OpenAI, other_key: str) -> None:
    mine = client.responses.create(model=MODEL, input=[*said("a"), *said("b")])
    with sdks.openai_client(scripted, other_key) as other:
        for call in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                call(mine.id)  # type: ignore[operator]
        for count in (other.responses.create, other.responses.input_tokens.count):
            with pytest.raises(openai.NotFoundError):
                count(model=MODEL, input="x", previous_response_id=mine.id)  # type: ignore[operator]
        with pytest.raises(openai.BadRequestError):
            other.responses.create(model=MODEL, input=[{"type": "item_reference", "id": mine.output[0].id or ""}])
    assert [item.id for item in client.responses.input_items.list(mine.id)]
    assert client.responses.retrieve(mine.id) == mine


def test_items_come_in_pages(client: openai.OpenAI) -> None:
    turns = [*said("a"), *said("b"), *said("c")]
    made = client.responses.create(model=MODEL, input=turns)
    texts = [item.content[0].text for item in client.responses.input_items.list(made.id, limit=2)]  # type: ignore[union-attr]
    assert texts == ["c", "b", "a"]
    page = client.responses.input_items.list(made.id, limit=2, order="asc")
    assert [item.content[0].text for item in page.data] == ["a", "b"]  # type: ignore[union-attr]
    assert page.has_next_page()


def test_only_pictures_are_given_out_again(scripted: Served, client: openai.OpenAI) -> None:
    linked = {"type": "input_file", "file_url": url_of(PDF, "application/pdf")}
    made = client.responses.create(model=MODEL, input=said(IMAGE, FILE_PART, linked, "a"))
    place = f"{scripted.url}/v1/responses/{made.id}/input_items"
    for include, picture in ((None, None), ("message.input_image.image_url", IMAGE["image_url"])):
        asked = {"include": include} if include else {}
        told = httpx.get(place, params=asked, headers={"authorization": f"Bearer {scripted.key}"}).json()
        image, file, link, _ = told["data"][0]["content"]
        assert (image["image_url"], file["file_data"], link["file_url"]) == (picture, None, None)


def test_time_ends_what_is_kept(scripted: Served, client: openai.OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="a")
    with closing(sqlite3.connect(scripted.state / FILE)) as connection, connection:
        connection.execute("UPDATE responses SET expires_at = 1 WHERE id = ?", [made.id])
    for refused in (lambda: client.responses.retrieve(made.id),
                    lambda: client.responses.create(model=MODEL, input="b", previous_response_id=made.id)):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            refused()


# ------------------------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_ledger_says_what_the_response_says(scripted: Served, stream: bool) -> None:
    key = new_key(scripted, "--budget", "5/month")
    asked: Any = {"model": MODEL, "input": said(IMAGE, "count to 7")}
    with sdks.openai_client(scripted, key) as client:
        if stream:
            with client.responses.stream(**asked) as events:
                answer: Response = events.get_final_response()
        else:
            answer = client.responses.create(**asked)
    row, usage = closed_row(scripted, key), answer.usage
    assert usage is not None
    assert (row["id"], row["wire"], row["stream"], row["pictures"]) == (answer.id[5:], "openai", stream, 1)
    assert row["text_in"] + row["vision_in"] + row["cached_in"] == usage.input_tokens
    assert usage.input_tokens_details.to_dict()["image_tokens"] == row["vision_in"] == 12
    assert (row["out"], row["cached_in"]) == (usage.output_tokens, usage.input_tokens_details.cached_tokens)
    check_sums(scripted, key, [row])


def test_tokens_are_counted_beforehand(scripted: Served, client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input=said(IMAGE, "a b"), instructions="Be brief.")
    asked: Any = {"model": MODEL, "input": "c d", "previous_response_id": first.id, "tools": [TOOL]}
    counted = client.responses.input_tokens.count(**asked)
    answer = client.responses.create(**asked)
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens
    body = {"model": MODEL, "messages": chat("a b c", ("image/png", PNG))}
    told = scripted.post("/v1/chat/completions/input_tokens", body)
    used = scripted.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]
    assert told.json() == {"object": "response.input_tokens", "input_tokens": used}


def test_keys_scopes_and_limits_hold(scripted: Served) -> None:
    with sdks.openai_client(scripted, "wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.responses.create(model=MODEL, input="x")
    with sdks.openai_client(scripted, new_key(scripted, "--endpoints", "files")) as elsewhere:
        for call in (lambda: elsewhere.responses.create(model=MODEL, input="x"),
                     lambda: elsewhere.responses.retrieve("resp_x")):  # fmt: skip
            with pytest.raises(openai.PermissionDeniedError):
                call()
    with sdks.openai_client(scripted, new_key(scripted, "--requests", "1/day")) as limited:
        limited.responses.create(model=MODEL, input="x")
        with pytest.raises(openai.RateLimitError) as refused:
            limited.responses.create(model=MODEL, input="x", stream=True)
    assert refused.value.code == "rate_limit_exceeded"
    with sdks.openai_client(scripted) as client, pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="none", input="x")
    assert missing.value.code == "model_not_found"


def test_a_key_has_a_response_made_once(scripted: Served) -> None:
    key = new_key(scripted)
    with sdks.openai_client(scripted, key) as client:
        for stream in (False, True):
            headers = {"Idempotency-Key": f"response {stream}"}
            asked: Any = {"model": MODEL, "input": "count to 5", "extra_headers": headers, "stream": stream}
            made: list[Response] = []
            for _ in range(2):
                answer = client.responses.create(**asked)
                made.append([*answer][-1].response if stream else answer)
            assert made[0] == made[1]
            assert client.responses.retrieve(made[0].id).output_text == "1 2 3 4 5"
    assert len(rows(scripted, key)) == 2


def test_an_answer_is_given_again_under_another_id(scripted: Served) -> None:
    """Also to who asks in a chat, and the other way round."""
    key, words = new_key(scripted), "count to 4 for the cache of responses"
    with sdks.openai_client(scripted, key) as client:
        made = [client.responses.with_raw_response.create(model=MODEL, input=words, temperature=0) for _ in range(2)]
        said_in_chat = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": words}], temperature=0
        )
        first, second = (each.parse() for each in made)
        assert [each.headers["x-cache"] for each in (*made, said_in_chat)] == ["miss", "hit", "hit"]
        assert first.output_text == second.output_text == said_in_chat.parse().choices[0].message.content
        assert first.id != second.id
        assert client.responses.retrieve(second.id).output_text == "1 2 3 4"
    assert [row["cache"] for row in rows(scripted, key)] == ["miss", "hit", "hit"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_label": "a", "server_url": "https://a"}]}, "tools[0].type"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": "word " * 40_000}, "input"),
    ],
)
def test_what_cannot_be_is_refused(scripted: Served, body: Any, param: str) -> None:
    answer = scripted.post("/v1/responses", {"model": MODEL, "input": "x", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_what_is_not_served_of_it_says_so(scripted: Served, client: openai.OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="a")
    headers = {"authorization": f"Bearer {scripted.key}"}
    for query, param in (("?stream=true", "stream"), ("/input_items?limit=0", "limit"),
                         ("/input_items?after=x", "after"), ("/input_items?include[]=x", "include[0]")):  # fmt: skip
        answer = httpx.get(f"{scripted.url}/v1/responses/{made.id}{query}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert httpx.post(f"{scripted.url}/v1/responses/{made.id}", json={}, headers=headers).status_code == 405
