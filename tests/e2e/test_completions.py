"""OpenAI's completions of plain texts through OpenAI's own client: asked, streamed, booked, moderated, given again."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion

from tests import sdks
from tests.metered import check_sums, closed_row, new_key, rows
from tests.serving import Served

pytestmark = pytest.mark.filterwarnings("default")

MODEL = "qwen3-vl"


@pytest.fixture(scope="module", name="client")
def a_client_of_the_script(scripted: Served) -> Iterator[openai.OpenAI]:
    with sdks.openai_client(scripted) as client:
        yield client


def texts_of(chunks: list[Completion]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


def test_a_text_is_gone_on_with(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model=MODEL, prompt="say exactly: two words", user="me")
    made = raw.parse()
    assert (made.object, made.model, made.id) == ("text_completion", MODEL, f"cmpl-{raw.headers['x-request-id']}")
    assert [(each.text, each.finish_reason, each.logprobs) for each in made.choices] == [("two words", "stop", None)]
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (4, 2)
    assert raw.headers["x-ignored-fields"] == "user"


def test_sixteen_tokens_are_made_if_nobody_says(client: openai.OpenAI) -> None:
    made = client.completions.create(model=MODEL, prompt="count to 40", echo=True)
    assert made.choices[0].text == "count to 40" + " ".join(map(str, range(1, 17)))
    assert made.choices[0].finish_reason == "length"
    assert client.completions.create(model=MODEL, prompt="count to 40", max_tokens=3).choices[0].text == "1 2 3"


def test_a_stream_comes_to_the_same(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": ["say exactly: a b", "count to 4"], "n": 2, "stop": "3", "echo": True}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert texts_of(chunks) == {each.index: each.text for each in whole.choices}
    first, second = "say exactly: a ba b", "count to 41 2 "
    assert [each.text for each in whole.choices] == [first, first, second, second]
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.to_dict() == whole.usage.to_dict()
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_logprobs_come_as_lists(demo: Served) -> None:
    with sdks.openai_client(demo) as reader:
        asked: Any = {"model": MODEL, "prompt": "Read", "logprobs": 2, "max_tokens": 4, "temperature": 0}
        made = reader.completions.create(**asked)
        streamed = list(reader.completions.create(**asked, stream=True))
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    lists = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
    assert all(each and len(each) == len(logprobs.tokens or []) for each in lists)
    assert texts_of(streamed) == {0: made.choices[0].text}
    pieces = [each.logprobs for chunk in streamed for each in chunk.choices if each.logprobs]
    assert [offset for piece in pieces for offset in piece.text_offset or []] == logprobs.text_offset


def test_a_raw_text_is_shorter_than_a_chat(demo: Served) -> None:
    """By the template: that the model goes on with the text itself is what the engine's tests say."""
    with sdks.openai_client(demo) as reader:
        raw = reader.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=4).usage
        chat = reader.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Once upon a time"}], max_tokens=4
        ).usage
    assert raw is not None
    assert chat is not None
    assert raw.prompt_tokens < chat.prompt_tokens


# ------------------------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_ledger_says_what_the_answer_says(scripted: Served, stream: bool) -> None:
    key = new_key(scripted, "--budget", "5/month")
    asked: Any = {"model": MODEL, "prompt": "count to 7", "n": 2}
    with sdks.openai_client(scripted, key) as client:
        if stream:
            options: Any = {"stream_options": {"include_usage": True}}
            usage = list(client.completions.create(**asked, stream=True, **options))[-1].usage
        else:
            usage = client.completions.create(**asked).usage
    row = closed_row(scripted, key)
    assert usage is not None
    assert (row["wire"], row["stream"], row["state"]) == ("openai", stream, "final")
    assert (row["text_in"] + row["cached_in"], row["out"]) == (usage.prompt_tokens, usage.completion_tokens) == (3, 14)
    check_sums(scripted, key, [row])


def test_each_prompt_has_a_row(scripted: Served) -> None:
    key = new_key(scripted, "--budget", "5/month")
    with sdks.openai_client(scripted, key) as client:
        raw = client.completions.with_raw_response.create(model=MODEL, prompt=["count to 2", "count to 3"])
    usage, booked = raw.parse().usage, rows(scripted, key)
    number = raw.headers["x-request-id"]
    assert {row["id"]: row["out"] for row in booked} == {number: 2, f"{number}-1": 3}
    assert usage is not None
    assert usage.completion_tokens == 5
    assert usage.prompt_tokens == sum(row["text_in"] + row["cached_in"] for row in booked) == 6
    check_sums(scripted, key, booked)


def test_an_answer_is_given_again(scripted: Served) -> None:
    """But not to a chat that says the same, which the model reads otherwise."""
    key, words = new_key(scripted), "count to 4 for the cache of completions"
    with sdks.openai_client(scripted, key) as client:
        asked: Any = {"model": MODEL, "prompt": words, "temperature": 0}
        plain, behind = {}, {"echo": True}
        made = [
            client.completions.with_raw_response.create(**asked, **more)
            for more in (plain, plain, plain, behind, behind)
        ]
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": words}], temperature=0)
    assert [each.headers["x-cache"] for each in made] == ["miss", "hit", "hit", "hit", "hit"]
    assert [each.parse().choices[0].text for each in made] == ["1 2 3 4"] * 3 + [words + "1 2 3 4"] * 2
    assert len({each.parse().id for each in made}) == 5
    assert [row["cache"] for row in rows(scripted, key)] == ["miss", *["hit"] * 4, "miss"]


def test_a_key_has_it_made_once(scripted: Served) -> None:
    key = new_key(scripted)
    with sdks.openai_client(scripted, key) as client:
        asked: Any = {"model": MODEL, "prompt": ["count to 2", "count to 3"]}
        made = [client.completions.create(**asked, extra_headers={"Idempotency-Key": "one"}) for _ in "ab"]
    assert made[0] == made[1]
    assert len(rows(scripted, key)) == 2


def test_keys_and_scopes_hold(scripted: Served) -> None:
    with sdks.openai_client(scripted, "wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.completions.create(model=MODEL, prompt="x")
    elsewhere = sdks.openai_client(scripted, new_key(scripted, "--endpoints", "files"))
    with elsewhere as client, pytest.raises(openai.PermissionDeniedError):
        client.completions.create(model=MODEL, prompt="x")
    with sdks.openai_client(scripted) as client, pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="none", prompt=["x", "y"])
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": "word " * 40_000}, "prompt"),
        ({"prompt": ["x", "word " * 40_000], "stream": True}, "prompt"),
    ],
)
def test_what_cannot_be_is_refused(scripted: Served, body: Any, param: str) -> None:
    answer = scripted.post("/v1/completions", {"model": MODEL, "prompt": "x", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
