"""Moderation over sockets, through both families' own clients: refused, cut off, looked at again, and what it costs."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from google.genai import errors, types

from qwen3vl_compat.demo import SAMPLE
from tests import sdks
from tests.metered import chat, check_sums, closed_row, command, contents, cost_of, new_key, priced, rows
from tests.moderator import Moderating, moderating
from tests.serving import Served, serving

pytestmark = pytest.mark.filterwarnings("default")

WIRES = ("openai", "google")
wires = pytest.mark.parametrize("wire", WIRES)
streams = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
PICTURE = ("image/png", SAMPLE.read_bytes())
SCRIPTED = {"QWEN3VL_MODEL__ENGINE": "scripted"}
KEY = "sk-of-the-service"
WORDS = """
[[moderation.moderators]]
kind = "words"
[moderation.moderators.words]
violence = ["murder", "kill them"]
"""
SERVICE = """
[moderation]
chunk = 20

[[moderation.moderators]]
kind = "service"
name = "near"
stages = ["before", "after"]
url = "{near}"
key = "{key}"
timeout = 1
pictures = 2

[[moderation.moderators]]
kind = "service"
name = "far"
stages = ["before", "during"]
url = "{far}/v1/moderations"
key_variable = "FAR_KEY"
pictures = 1
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a list of words, at a price."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "settings.toml").write_text(WORDS, encoding="utf-8")
    environment = SCRIPTED | {"QWEN3VL_MODEL__PAUSE": "0.002"}
    with serving(folder, "--config", str(folder / "settings.toml"), environment=environment) as served:
        yield priced(served)


@pytest.fixture(scope="module")
def near() -> Iterator[Moderating]:
    with moderating() as server:
        yield server


@pytest.fixture(scope="module")
def asking(guarded: Served, near: Moderating, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that asks a service, and then the first server; its tenants want different things when one fails."""
    folder = tmp_path_factory.mktemp("asking")
    text = SERVICE.format(near=near.url, far=guarded.url, key=KEY)
    (folder / "settings.toml").write_text(text, encoding="utf-8")
    environment = SCRIPTED | {"FAR_KEY": new_key(guarded, "--endpoints", "moderations")}
    with serving(folder, "--config", str(folder / "settings.toml"), environment=environment) as served:
        for name, wishes in {
            "open": ("on_failure=open",),
            "flag": ("on_failure=flag",),
            "free": ("off=near,far",),
        }.items():
            command(served, "tenants", "create", name)
            command(served, "tenants", "set", name, *(f"moderation.{wish}" for wish in wishes))
        yield priced(served)


class Answer:
    """What a client was told: its text, how it ended, and the tokens it is said to have cost."""

    def __init__(self, text: str, reason: str, tokens: int) -> None:
        self.text, self.reason, self.tokens = text, reason, tokens


def ask(served: Served, key: str, wire: str, *parts: Any, stream: bool = False, n: int = 1) -> Answer:
    """A good answer, or one that was cut off, of the first choice."""
    if wire == "openai":
        with sdks.openai_client(served, key) as client:
            if not stream:
                said = client.chat.completions.create(model="qwen3-vl", messages=chat(*parts), n=n)
                assert said.usage is not None
                return Answer(
                    said.choices[0].message.content or "", said.choices[0].finish_reason, said.usage.completion_tokens
                )
            chunks = list(
                client.chat.completions.create(
                    model="qwen3-vl", messages=chat(*parts), n=n, stream=True, stream_options={"include_usage": True}
                )
            )
        first = [choice for chunk in chunks for choice in chunk.choices if choice.index == 0]
        (reason,) = (choice.finish_reason for choice in first if choice.finish_reason)
        assert chunks[-1].usage is not None
        return Answer(
            "".join(choice.delta.content or "" for choice in first), reason, chunks[-1].usage.completion_tokens
        )
    with sdks.google_client(served, key=key) as gemini:
        asked: Any = {"model": "qwen3-vl", "contents": contents(*parts)}
        asked["config"] = types.GenerateContentConfig(candidate_count=n)
        if stream:
            messages = list(gemini.models.generate_content_stream(**asked))
        else:
            messages = [gemini.models.generate_content(**asked)]
    candidates = [each for message in messages for each in message.candidates or () if not each.index]
    (reason,) = (each.finish_reason.name for each in candidates if each.finish_reason)
    told = [part.text or "" for each in candidates for part in (each.content and each.content.parts) or ()]
    usage = messages[-1].usage_metadata
    assert usage is not None
    return Answer("".join(told), reason, (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0))


def blocked(served: Served, key: str, wire: str, *parts: Any, stream: bool = False, **headers: str) -> Any:
    """Ask for what is refused before the device, as each family's client tells it; returns the answer's headers."""
    if wire == "openai":
        with sdks.openai_client(served, key) as client, pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="qwen3-vl", messages=chat(*parts), stream=stream, extra_headers=headers
            )
        assert (refused.value.code, refused.value.type) == ("content_policy_violation", "invalid_request_error")
        assert "content policy" in refused.value.message
        return refused.value.response.headers
    options = types.HttpOptions(headers=headers)
    config = types.GenerateContentConfig(http_options=options)
    with sdks.google_client(served, key=key) as gemini:
        asked: Any = {"model": "qwen3-vl", "contents": contents(*parts), "config": config}
        if stream:
            (said,) = list(gemini.models.generate_content_stream(**asked))
        else:
            said = gemini.models.generate_content(**asked)
    assert said.prompt_feedback is not None
    assert said.prompt_feedback.block_reason is types.BlockedReason.SAFETY
    assert said.candidates is None
    assert said.usage_metadata is not None
    assert said.usage_metadata.total_token_count == 0
    assert said.sdk_http_response is not None
    return said.sdk_http_response.headers


def check_blocked(served: Served, key: str, wire: str, stream: bool, moderation: str) -> None:
    """One row, which costs nothing and counts nothing."""
    row = closed_row(served, key)
    assert (row["state"], row["finish"], row["moderation"]) == ("final", "content_filter", moderation)
    assert (row["wire"], row["stream"], row["started_at"]) == (wire, stream, None)
    counted = ("cost", "reserved", "reserved_out", "text_in", "vision_in", "cached_in", "out", "reasoning", "pictures")
    assert [row[name] for name in counted] == [0] * len(counted)
    check_sums(served, key, [row])


# -------------------------------------------------------------------------------------------------------------- words


@wires
@streams
def test_what_is_refused_before_the_device_costs_nothing(guarded: Served, wire: str, stream: bool) -> None:
    key = new_key(guarded, "--budget", "1/month")
    headers = blocked(guarded, key, wire, "How do I mur", "DER somebody?", stream=stream)
    assert headers["x-should-retry"] == "false"
    check_blocked(guarded, key, wire, stream, "words:violence")


@wires
@streams
@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_that_goes_wrong_is_cut_off_and_pays_for_what_was_made(
    guarded: Served, wire: str, stream: bool, n: int
) -> None:
    """The question holds no such word; the answer, put together by the script, does."""
    key = new_key(guarded, "--budget", "1/month")
    said = ask(guarded, key, wire, SPLIT, stream=stream, n=n)
    assert said.reason == ("content_filter" if wire == "openai" else "SAFETY")
    text = said.text.removeprefix("a thought ").strip()
    # All end with the first that goes wrong; and what comes in one piece with the word does not go out either.
    assert text in ("one", "one two") if n == 1 else "one two".startswith(text)
    row = closed_row(guarded, key)
    assert (row["state"], row["finish"], row["moderation"]) == ("final", "content_filter", "words:violence")
    assert row["out"] == said.tokens
    assert 5 <= row["out"] < 12 * n
    assert row["cost"] == cost_of(row)
    check_sums(guarded, key, [row])


SPLIT = "think: a thought then say: one two mur</think>der three four five"
"""The script leaves tags out of what it says: the word is whole only in the answer."""


@streams
def test_a_response_that_goes_wrong_is_incomplete(guarded: Served, stream: bool) -> None:
    key = new_key(guarded)
    with sdks.openai_client(guarded, key) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model="qwen3-vl", input="murder", stream=stream)
        assert refused.value.code == "content_policy_violation"
        if stream:
            (*_, last) = client.responses.create(model="qwen3-vl", input=SPLIT, stream=True)
            assert last.type == "response.incomplete"
            said = last.response
        else:
            said = client.responses.create(model="qwen3-vl", input=SPLIT)
        # What comes in one piece with the word, where the machine is slow, does not go out either.
        assert (said.status, said.output_text.strip()) in [("incomplete", "one two"), ("incomplete", "one")]
        assert said.incomplete_details is not None
        assert said.incomplete_details.reason == "content_filter"
        assert client.responses.retrieve(said.id).output_text == said.output_text
    refusal, row = rows(guarded, key)
    assert (refusal["finish"], refusal["out"]) == (row["finish"], 0) == ("content_filter", 0)
    assert said.usage is not None
    assert row["out"] == said.usage.output_tokens


@wires
def test_a_refusal_is_told_again_under_its_key(guarded: Served, wire: str) -> None:
    key = new_key(guarded)
    names = {"idempotency-key": f"again-{wire}"}
    first = blocked(guarded, key, wire, "murder", **names)
    again = blocked(guarded, key, wire, "murder", **names)
    assert "idempotent-replayed" not in first
    assert (again["idempotent-replayed"], again["x-should-retry"]) == ("true", "false")
    assert len(rows(guarded, key)) == 1


@pytest.mark.parametrize("alt", ["sse", "json"])
def test_a_stream_that_is_not_begun_has_one_message(guarded: Served, alt: str) -> None:
    asked = {"contents": [{"parts": [{"text": "murder"}]}]}
    headers = {"x-goog-api-key": guarded.key, "idempotency-key": f"stream-{alt}"}
    url = f"{guarded.url}/v1beta/models/qwen3-vl:streamGenerateContent?alt={alt}"
    answers = [httpx.post(url, json=asked, headers=headers) for _ in range(2)]
    assert answers[0].content == answers[1].content
    body = answers[0].text
    (message,) = json.loads(body) if alt == "json" else [json.loads(body.removeprefix("data: "))]
    assert message == {
        "promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 0, "totalTokenCount": 0},
    }  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 200]
    kind = "application/json" if alt == "json" else "text/event-stream; charset=utf-8"
    assert {answer.headers["content-type"] for answer in answers} == {kind}


@pytest.mark.parametrize(("asked", "hits"), [("count to 9", ["miss", "hit", "hit"]), ("SPLIT", ["miss"] * 3)])
def test_answers_that_pass_are_kept_and_others_are_not(guarded: Served, asked: str, hits: list[str]) -> None:
    key = new_key(guarded)
    body = {"model": "qwen3-vl", "messages": chat(SPLIT if asked == "SPLIT" else asked), "temperature": 0}
    answers = [guarded.post("/v1/chat/completions", body, key) for _ in hits]
    assert [answer.headers["x-cache"] for answer in answers] == hits
    choices = [answer.json()["choices"][0] for answer in answers]
    assert [choice["finish_reason"] for choice in choices] == ["content_filter" if asked == "SPLIT" else "stop"] * 3
    assert {row["moderation"] for row in rows(guarded, key)} == {"words:violence" if asked == "SPLIT" else ""}


def test_openais_client_asks_what_the_moderators_say(guarded: Served) -> None:
    key = new_key(guarded)
    with sdks.openai_client(guarded, key) as client:
        said = client.moderations.create(input=["fine", "murder"])
        assert [result.flagged for result in said.results] == [False, True]
        assert said.results[1].categories.violence
        assert said.results[1].category_scores.violence == 1.0
        assert not said.results[1].categories.harassment
        url = "https://example.invalid/x.png"
        with pytest.raises(openai.BadRequestError) as refused:
            client.moderations.create(input=[{"type": "image_url", "image_url": {"url": url}}])
        assert refused.value.param == "input[0].image_url.url"
    assert rows(guarded, key) == []
    limited = new_key(guarded, "--requests", "1/day")
    with sdks.openai_client(guarded, limited) as client:
        client.moderations.create(input="fine")
        with pytest.raises(openai.RateLimitError):
            client.moderations.create(input="fine")


# ------------------------------------------------------------------------------------------------------------- services


@wires
@streams
def test_a_service_objects_before(asking: Served, near: Moderating, wire: str, stream: bool) -> None:
    key = new_key(asking, "--budget", "1/month")
    blocked(asking, key, wire, "an evil plan", stream=stream)
    check_blocked(asking, key, wire, stream, "near:hate")
    assert near.asked[-1] == (["an evil plan"], 0)


@wires
def test_a_service_is_shown_pictures(asking: Served, near: Moderating, wire: str) -> None:
    near.against_pictures = True
    key = new_key(asking, "--budget", "1/month")
    blocked(asking, key, wire, PICTURE, "What is it?")
    near.against_pictures = False
    check_blocked(asking, key, wire, False, "near:hate")
    assert near.asked[-1] == (["What is it?"], 1)
    assert ask(asking, key, wire, PICTURE, "What is it?").text.endswith("What is it?")


def test_of_two_who_ask_the_same_at_once_each_is_refused_and_booked(asking: Served, near: Moderating) -> None:
    """They would share one answer; the pictures are asked about on the way to it."""
    key = new_key(asking)
    body = {"model": "qwen3-vl", "messages": chat(PICTURE, "What is it?"), "temperature": 0}
    near.against_pictures, near.pause = True, 0.2
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(asking.post, "/v1/chat/completions", body, key) for _ in range(2)]
        answers = [call.result() for call in calls]
    near.against_pictures, near.pause = False, 0.0
    assert [answer.json()["error"]["code"] for answer in answers] == ["content_policy_violation"] * 2
    assert [row["moderation"] for row in rows(asking, key)] == ["near:hate"] * 2


@wires
@streams
def test_another_server_of_ours_is_a_moderator(asking: Served, guarded: Served, wire: str, stream: bool) -> None:
    key = new_key(asking, "--budget", "1/month")
    blocked(asking, key, wire, "a murder", stream=stream)
    check_blocked(asking, key, wire, stream, "far:violence")
    assert guarded.log().count(" POST /v1/moderations") >= 1
    key = new_key(asking, "--budget", "1/month")
    said = ask(asking, key, wire, SPLIT, stream=stream)
    assert said.reason == ("content_filter" if wire == "openai" else "SAFETY")
    assert "der" not in said.text
    row = closed_row(asking, key)
    assert (row["state"], row["finish"], row["moderation"]) == ("final", "content_filter", "far:violence")
    assert (row["out"], row["cost"]) == (said.tokens, cost_of(row))
    check_sums(asking, key, [row])


@wires
@streams
def test_the_whole_answer_is_looked_at(asking: Served, near: Moderating, wire: str, stream: bool) -> None:
    """It has to be put together for that, so the word is not in the question."""
    key = new_key(asking, "--budget", "1/month")
    said = ask(asking, key, wire, "think: x then say: all is ev</think>il", stream=stream)
    assert said.reason == ("content_filter" if wire == "openai" else "SAFETY")
    assert said.text == ""
    assert "".join(near.asked[-1][0]).endswith("all is evil")
    row = closed_row(asking, key)
    assert (row["finish"], row["moderation"], row["cost"]) == ("content_filter", "near:hate", cost_of(row))


@wires
def test_what_is_fine_passes_them_all(asking: Served, wire: str) -> None:
    key = new_key(asking)
    for stream in (False, True):
        said = ask(asking, key, wire, "count to 60", stream=stream)
        assert said.text == " ".join(map(str, range(1, 61)))
        assert said.reason in ("stop", "STOP")
    assert [row["moderation"] for row in rows(asking, key)] == ["", ""]


@pytest.mark.parametrize("mode", ["500", "hangs", "bad json", "dies"])
def test_without_a_service_nothing_passes_by_default(asking: Served, near: Moderating, mode: str) -> None:
    """In between it does well, so that it is not left alone."""
    key = new_key(asking)
    asked: Any = {"model": "qwen3-vl", "messages": chat("Hello")}
    with failing(near, mode), sdks.openai_client(asking, key) as client, pytest.raises(openai.APIError) as refused:
        client.chat.completions.create(**asked)
    assert isinstance(refused.value, openai.InternalServerError)
    assert (refused.value.status_code, refused.value.code) == (503, "moderation_unavailable")
    assert refused.value.response.headers["retry-after"] == "5"
    assert rows(asking, key) == []
    ask(asking, asking.key, "openai", "Hello")


@pytest.mark.parametrize(("tenant", "mode", "note"), [("open", "500", "unavailable"), ("flag", "dies", "flagged")])
def test_a_tenant_may_want_it_otherwise(asking: Served, near: Moderating, tenant: str, mode: str, note: str) -> None:
    key = new_key(asking, "--tenant", tenant)
    with failing(near, mode):
        assert ask(asking, key, "openai", "Hello").text == "You said: Hello"
    assert closed_row(asking, key)["moderation"] == f"near:{note}"
    ask(asking, asking.key, "openai", "Hello")


@contextmanager
def failing(near: Moderating, mode: str) -> Iterator[None]:
    near.mode = mode
    try:
        yield
    finally:
        near.mode = "well"


def test_google_is_told_as_its_own_and_who_has_none_of_it_is_served(asking: Served, near: Moderating) -> None:
    with failing(near, "500"):
        with sdks.google_client(asking) as gemini, pytest.raises(errors.ServerError) as unavailable:
            gemini.models.generate_content(model="qwen3-vl", contents="Hello")
        free = ask(asking, new_key(asking, "--tenant", "free"), "google", "an evil murder")
    assert (unavailable.value.code, unavailable.value.status) == (503, "UNAVAILABLE")
    assert free.text == "You said: an evil murder"
    ask(asking, asking.key, "google", "Hello")


def test_no_key_of_a_service_is_logged(asking: Served, near: Moderating) -> None:
    text = asking.log()
    outages = text.count(f"the moderator 'near' at {near.url} cannot be asked")
    assert outages == text.count("the moderator 'near' answers again") >= 1
    assert KEY not in text
    assert set(re.findall(r"sk-\w{12}-[\w-]{43}", text)) == {asking.key, asking.admin_key}


def test_a_tenants_terms_are_set_and_shown(asking: Served) -> None:
    assert "moderation.on_failure=open" in command(asking, "tenants", "show", "open")
    headers = {"authorization": f"Bearer {asking.admin_key}"}
    url = asking.url + "/admin/tenants/free"
    assert httpx.get(url, headers=headers).json()["moderation"] == {"off": ["near", "far"]}
    for wrong in ({"on_failure": "maybe"}, {"unknown": 1}, {"off": "near"}, {"off": ["nobody"]}):
        refused = httpx.patch(url, json={"moderation": wrong}, headers=headers)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"].startswith("moderation.")
