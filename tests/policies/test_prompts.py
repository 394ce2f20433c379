"""Several prompts in one request: told apart behind the policy, together before it."""

import asyncio
from contextlib import aclosing

import pytest
from msgspec.structs import replace

from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import InvalidRequest
from qwen3vl_compat.events import Events, Finish, Started, TextDelta, Usage, fold
from qwen3vl_compat.messages import Message, Request, Sampling, Text
from qwen3vl_compat.policies.prompts import apart
from qwen3vl_compat.settings import load_settings

ENGINE = ScriptedEngine()


def asking(*prompts: str, choices: int = 1, raw: bool = True) -> Request:
    messages = tuple(Message("user", (Text(prompt),)) for prompt in prompts)
    return Request(id="r", created=0, model="qwen3-vl", messages=messages, choices=choices, raw=raw)


async def test_each_prompt_is_answered_by_itself() -> None:
    asked = asking("say exactly: a b", "say exactly: c", "count to 3", choices=2)
    answer = await fold(apart(ENGINE.generate)(asked))
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4, 5]
    assert [choice.text for choice in answer.choices] == ["a b", "a b", "c", "c", "1 2 3", "1 2 3"]
    assert answer.usage == Usage(prompt_text=4 + 3 + 3, completion=2 * (2 + 1 + 3))


async def test_each_has_a_request_of_its_own() -> None:
    seen: list[Request] = []

    def generate(request: Request) -> Events:
        seen.append(request)
        return ENGINE.generate(request)

    await fold(apart(generate)(asking("a", "b", "c")))
    assert [(each.id, each.messages) for each in seen] == [
        ("r", asking("a").messages), ("r-1", asking("b").messages), ("r-2", asking("c").messages),
    ]  # fmt: skip
    one, turns = asking("a"), asking("a", "b", raw=False)
    await fold(apart(generate)(one))
    await fold(apart(generate)(turns))
    assert (seen[3] is one, seen[4] is turns) == (True, True)


async def test_nothing_is_told_before_all_have_begun() -> None:
    """More prompts than rows: the last one waits for a row, and the first events for it."""
    engine = ScriptedEngine(load_settings(flags={"model.max_rows": 4}, environment={}))
    events = [event async for event in apart(engine.generate)(asking("a", "b", "c", "d", "e", "f"))]
    assert isinstance(events[0], Started)
    assert sum(isinstance(event, Started) for event in events) == 1
    ends = [event for event in events if isinstance(event, Finish)]
    assert sorted(end.index for end in ends) == [0, 1, 2, 3, 4, 5]
    assert (ends[-1].usage.prompt, events[-1]) == (6, ends[-1])


async def test_one_that_is_refused_ends_all() -> None:
    engine, running = ScriptedEngine(), set[str]()

    async def generate(request: Request) -> Events:
        if request.id == "r-2":
            await asyncio.sleep(0)
            raise InvalidRequest("not this", param="prompt")
        running.add(request.id)
        try:
            async with aclosing(engine.generate(request)) as events:
                async for event in events:
                    yield event
        finally:
            running.discard(request.id)

    with pytest.raises(InvalidRequest, match="not this"):
        await fold(apart(generate)(asking("count to 99", "count to 99", "c")))
    assert not running


async def test_who_leaves_ends_all() -> None:
    engine, running = ScriptedEngine(), set[str]()

    async def generate(request: Request) -> Events:
        running.add(request.id)
        try:
            async with aclosing(engine.generate(request)) as events:
                async for event in events:
                    yield event
        finally:
            running.discard(request.id)

    async with aclosing(apart(generate)(asking("count to 99", "count to 99"))) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
        assert running == {"r", "r-1"}
    assert not running


async def test_headers_of_one_prompt_are_not_told_of_all() -> None:
    async def generate(request: Request) -> Events:
        usage = Usage(prompt_text=1)
        yield Started(usage, (("x-cache", "hit"), ("x-ratelimit-limit-requests", "9")))
        yield Finish(0, "stop", usage, headers=(("x-cost-total", "1"), ("x-ratelimit-limit-requests", "9")))

    for request, told in ((asking("a", "b"), [1, 1]), (asking("a"), [2, 2])):
        events = [event async for event in apart(generate)(replace(request, sampling=Sampling(seed=1)))]
        first, last = events[0], events[-1]
        assert isinstance(first, Started)
        assert isinstance(last, Finish)
        assert [len(first.headers), len(last.headers)] == told
