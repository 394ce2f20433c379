"""Answers that are given again, through both families' own clients: the same, at the cached price, and so booked."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from google.genai import types
from msgspec import Struct

from qwen3vl_compat.demo import SAMPLE
from tests import sdks
from tests.metered import Seen, chat, check_books, check_sums, contents, cost_of, new_key, priced, rows, wait_until
from tests.serving import Served, serving

pytestmark = pytest.mark.filterwarnings("default")

PICTURE = ("image/png", SAMPLE.read_bytes())
WORDS = """
[[moderation.moderators]]
kind = "words"
[moderation.moderators.words]
violence = ["murder"]
"""
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
SCHEMA |= {"required": ["name", "age"], "additionalProperties": False}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scripted engine behind a list of words, at a price."""
    folder = tmp_path_factory.mktemp("cached")
    (folder / "settings.toml").write_text(WORDS, encoding="utf-8")
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": "0.002"}
    with serving(folder, "--config", str(folder / "settings.toml"), environment=environment) as server:
        yield priced(server)


@pytest.fixture
def key(served: Served) -> str:
    """A key with a budget and limits that nobody reaches."""
    return new_key(served, "--budget", "5/month", "--tpm", "1000000")


class Choice(Struct):
    """What one choice says, however it came."""

    text: str = ""
    thoughts: str = ""
    calls: list[tuple[str, Any]] = []
    tokens: list[tuple[str, float]] = []
    reason: str = ""


class Answer(Struct):
    """What a client was told: all choices, the usage, and what the head said."""

    choices: list[Choice]
    seen: Seen
    cache: str


def by_openai(served: Served, key: str, *parts: Any, stream: bool = False, **more: Any) -> Answer:
    asked: dict[str, Any] = {"model": "qwen3-vl", "messages": chat(*parts), "temperature": 0, **more}
    choices = [Choice() for _ in range(more.get("n", 1))]
    with sdks.openai_client(served, key) as client:
        create = client.chat.completions.with_raw_response.create
        if stream:
            raw = create(**asked, stream=True, stream_options={"include_usage": True})
            made: list[Any] = list(raw.parse())
        else:
            raw = create(**asked)
            made = [raw.parse()]
    calls: list[dict[int, list[str]]] = [{} for _ in choices]
    for told in (told for each in made for told in each.choices):
        part, choice = told.delta if stream else told.message, choices[told.index]
        choice.text += part.content or ""
        choice.thoughts += getattr(part, "reasoning_content", None) or ""
        choice.reason = told.finish_reason or choice.reason
        found = (told.logprobs and told.logprobs.content) or ()
        choice.tokens = [*choice.tokens, *((each.token, each.logprob) for each in found)]
        for place, call in enumerate(part.tool_calls or ()):
            held = calls[told.index].setdefault(call.index if stream else place, ["", ""])
            held[0], held[1] = held[0] + (call.function.name or ""), held[1] + (call.function.arguments or "")
    for choice, those in zip(choices, calls, strict=True):
        choice.calls = [(name, json.loads(arguments)) for name, arguments in those.values()]
    usage = made[-1].usage
    details = usage.prompt_tokens_details.to_dict()
    return Answer(
        choices,
        Seen(
            id=raw.headers["x-request-id"],
            prompt=usage.prompt_tokens,
            text=details["text_tokens"],
            vision=details["image_tokens"] + details["video_tokens"],
            cached=details["cached_tokens"],
            out=usage.completion_tokens,
            reasoning=usage.completion_tokens_details.reasoning_tokens,
            pictures=sum(isinstance(part, tuple) for part in parts),
            cost=raw.headers.get("x-cost-total"),
        ),
        raw.headers["x-cache"],
    )


def by_google(served: Served, key: str, *parts: Any, stream: bool = False, **more: Any) -> Answer:
    config = types.GenerateContentConfig(temperature=0, **more)
    asked: dict[str, Any] = {"model": "qwen3-vl", "contents": contents(*parts), "config": config}
    choices = [Choice() for _ in range(more.get("candidate_count", 1))]
    with sdks.google_client(served, key=key) as client:
        made: list[Any] = (
            list(client.models.generate_content_stream(**asked))
            if stream
            else [client.models.generate_content(**asked)]
        )
    for told in (told for each in made for told in each.candidates):
        choice = choices[told.index or 0]
        for part in told.content.parts or ():
            if part.function_call:
                choice.calls = [*choice.calls, (part.function_call.name, part.function_call.args)]
            elif part.thought:
                choice.thoughts += part.text
            else:
                choice.text += part.text or ""
        choice.reason = told.finish_reason.name if told.finish_reason else choice.reason
        if told.logprobs_result:
            found = told.logprobs_result.chosen_candidates
            choice.tokens = [*choice.tokens, *((each.token, each.log_probability) for each in found)]
    usage, headers = made[-1].usage_metadata, made[0].sdk_http_response.headers
    split = {detail.modality.name: detail.token_count for detail in usage.prompt_tokens_details}
    return Answer(
        choices,
        Seen(
            id=headers["x-request-id"],
            prompt=usage.prompt_token_count,
            text=split.pop("TEXT"),
            vision=sum(split.values()),
            cached=usage.cached_content_token_count or 0,
            out=usage.candidates_token_count + (usage.thoughts_token_count or 0),
            reasoning=usage.thoughts_token_count or 0,
            pictures=sum(isinstance(part, tuple) for part in parts),
            cost=headers.get("x-cost-total"),
        ),
        headers["x-cache"],
    )


ASK: dict[str, Callable[..., Answer]] = {"openai": by_openai, "google": by_google}
FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
TOOLS = {
    "openai": {"tools": [{"type": "function", "function": FUNCTION}]},
    "google": {"tools": [types.Tool(function_declarations=[types.FunctionDeclaration(
        name="look", parameters_json_schema=FUNCTION["parameters"])])]},
}  # fmt: skip
FORMS = {
    "openai": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}},
    },
    "google": {"response_mime_type": "application/json", "response_json_schema": SCHEMA},
}  # fmt: skip
KINDS: dict[str, tuple[tuple[Any, ...], dict[str, dict[str, Any]]]] = {
    "words": (("good day",), {}),
    "picture": ((PICTURE, "what is it"), {}),
    "choices": (("two of it",), {"openai": {"n": 2}, "google": {"candidate_count": 2}}),
    "logprobs": (
        ("each of them",),
        {"openai": {"logprobs": True, "top_logprobs": 2}, "google": {"response_logprobs": True, "logprobs": 2}},
    ),
    "calls": (('call look with {"at": "it"}',), TOOLS),
    "form": (("who is it",), FORMS),
    "thoughts": (
        ("think: so and so then say: yes",),
        {"google": {"thinking_config": types.ThinkingConfig(include_thoughts=True)}},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wire", ASK)
def test_the_second_answer_is_the_first_at_the_price_of_cached_tokens(
    served: Served, key: str, wire: str, kind: str
) -> None:
    """Twice whole, then twice streamed by another key of the same tenant, to whom even the first is not new."""
    parts, more = KINDS[kind]
    asked = more.get(wire, {})
    parts = (*parts[:-1], f"{parts[-1]} on {wire}'s wire")
    for stream in (False, True):
        own = new_key(served, "--budget", "5/month")
        answers = [ASK[wire](served, own, *parts, stream=stream, **asked) for _ in range(2)]
        assert [answer.choices for answer in answers] == [answers[0].choices] * 2
        assert [answer.cache for answer in answers] == (["hit", "hit"] if stream else ["miss", "hit"])
        for answer in answers[0 if stream else 1 :]:
            assert answer.seen.cached == answer.seen.prompt > 0
        check_books(served, own, wire, stream, [answer.seen for answer in answers])
    said = answers[0].choices
    if kind == "choices":
        assert said[0] == said[1] != Choice()
    if kind == "logprobs":
        assert "".join(token for token, _ in said[0].tokens) == said[0].text != ""
    if kind == "calls":
        assert said[0].calls == [("look", {"at": "it"})]
    if kind == "form":
        assert json.loads(said[0].text) == {"name": "text", "age": 0}
    if kind == "thoughts":
        assert (said[0].thoughts, said[0].text) == ("so and so", f"yes on {wire}'s wire")


def test_one_answer_serves_both_families_and_thoughts_go_to_who_asks_for_them(served: Served, key: str) -> None:
    parts = (PICTURE, "think: it is small then say: a stamp")
    shown = {"thinking_config": types.ThinkingConfig(include_thoughts=True)}
    answers = [
        by_openai(served, key, *parts, stream=True),
        by_openai(served, key, *parts),
        by_openai(served, key, *parts, extra_body={"include_reasoning": False}),
        by_openai(served, key, *parts, stream=True, extra_body={"include_reasoning": False}),
        by_google(served, key, *parts),
        by_google(served, key, *parts, **shown),
        by_google(served, key, *parts, stream=True),
        by_google(served, key, *parts, stream=True, **shown),
    ]
    assert [answer.cache for answer in answers] == ["miss"] + ["hit"] * 7
    shows = [True, True, False, False, False, True, False, True]
    assert [answer.choices[0].thoughts for answer in answers] == ["it is small" if show else "" for show in shows]
    assert {answer.choices[0].text.strip() for answer in answers} == {answers[0].choices[0].text.strip()}
    assert {(answer.seen.prompt, answer.seen.out, answer.seen.reasoning) for answer in answers} == {
        (answers[0].seen.prompt, answers[0].seen.out, answers[0].seen.reasoning)
    }
    assert answers[0].seen.reasoning
    booked = rows(served, key)
    assert [(row["id"], row["cache"]) for row in booked] == [(answer.seen.id, answer.cache) for answer in answers]
    assert [row["cost"] for row in booked] == [cost_of(row) for row in booked]
    check_sums(served, key, booked)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("wire", ASK)
def test_what_a_moderator_ends_is_not_kept(served: Served, key: str, wire: str, stream: bool) -> None:
    """The question holds no such word; the answer, put together by the script, does."""
    answers = [ASK[wire](served, key, "think: so then say: one mur</think>der two", stream=stream) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["miss", "miss"]
    assert {answer.choices[0].reason for answer in answers} == {"content_filter" if wire == "openai" else "SAFETY"}
    assert {answer.choices[0].text.strip() for answer in answers} <= {"", "one"}, "events come as they have gathered"
    assert {row["moderation"] for row in rows(served, key)} == {"words:violence"}
    check_sums(served, key, rows(served, key))


def test_who_hangs_up_does_not_end_it_for_who_asked_the_same(scripted: Served) -> None:
    """Over sockets: the first client goes after a few words, the second one has asked in between."""
    first, second = (new_key(scripted, "--budget", "5/month") for _ in range(2))
    asked = {"model": "qwen3-vl", "temperature": 0, "messages": [{"role": "user", "content": "count to 61"}]}
    with ThreadPoolExecutor(1) as pool:
        headers = {"authorization": f"Bearer {first}"}
        with httpx.stream(
            "POST", scripted.url + "/v1/chat/completions", json={**asked, "stream": True}, headers=headers, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            assert answer.headers["x-cache"] == "miss"
            next(line for line in lines if '"content":"1' in line)
            follower = pool.submit(scripted.post, "/v1/chat/completions", asked, second)
            wait_until(lambda: bool(rows(scripted, second)))
        whole = follower.result(60)
    assert whole.headers["x-cache"] == "hit"
    assert whole.json()["choices"][0]["message"]["content"] == " ".join(str(each + 1) for each in range(61))
    wait_until(lambda: rows(scripted, first)[0]["state"] != "open")
    (led,), (followed,) = rows(scripted, first), rows(scripted, second)
    assert [(row["state"], row["cache"], row["out"]) for row in (led, followed)] == [
        ("final", "miss", 61), ("final", "hit", 61),
    ]  # fmt: skip
