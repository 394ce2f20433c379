"""One key, one generation: what is told again and what is not, hang-ups, and a database that fails."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, func, select

from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.replies import Replies
from qwen3vl_compat.accounts.sqlite import FILE
from qwen3vl_compat.accounts.tables import replies as table
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import ApiError, DeadlineExceeded, EngineFailed, InvalidRequest, NotFound, Overloaded
from qwen3vl_compat.events import Event, Events, Finish, First, Likely, Logprob, Started, TextDelta, Usage, fold
from qwen3vl_compat.messages import Caller, Idempotency, Message, Request, Sampling, Text
from qwen3vl_compat.policies import Generate
from qwen3vl_compat.policies.idempotency import Idempotency as Policy
from qwen3vl_compat.settings import ModelSettings, Settings

USAGE = Usage(prompt_text=3)
STARTED = Started(USAGE, (("x-of-the-moment", "1"),))
FINISHED = Finish(0, "stop", replace(USAGE, completion=2), headers=(("x-of-the-moment", "2"),))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def request(
    said: str = "count to 3", key: str | None = "k", *, number: int = 1, tenant: str = "acme", **more: Any
) -> Request:
    """A request that says so, under that key; `number` is of the try."""
    return Request(
        id=f"r{number}",
        created=1_760_000_000 + number,
        model="qwen3-vl",
        messages=(Message("user", (Text(said),)),),
        caller=Caller(tenant, "public"),
        idempotency=Idempotency(digest(key), digest(said)) if key else None,
        **more,
    )


class Scene:
    """The policy over a database of its own, around a generation that can be told to wait, and counts its calls."""

    def __init__(self, folder: Path, generate: Generate | None = None, **policy: Any) -> None:
        self.database = open_database(folder)
        self.file = folder / FILE
        keys = Keys(self.database)
        keys.add_tenant("acme")
        keys.add_tenant("other")
        self.replies = Replies(self.database, "us", lambda owner: owner == "us", 24 * 3600)
        self.policy = Policy(self.replies, again_s=0.01, **policy)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.begun = self.ended = 0
        self.inner: Generate = generate or ScriptedEngine(Settings(model=ModelSettings(pause=0))).generate
        self.generate = self.policy.once(self._counted)

    async def _counted(self, asked: Request) -> Events:
        self.begun += 1
        try:
            async with aclosing(self.inner(asked)) as events:
                async for event in events:
                    yield event
                    await self.go_on.wait()
        finally:
            self.ended += 1

    async def tell(self, asked: Request) -> list[Event]:
        return [event async for event in self.generate(asked)]

    async def refused(self, asked: Request) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.tell(asked)
        return caught.value

    async def rest(self) -> None:
        """Wait until no task of the policy runs any more."""
        while self.policy._answering:
            await asyncio.wait(self.policy._answering)

    def break_database(self) -> None:
        self.database.dispose()
        self.file.rename(self.file.with_suffix(".away"))

    def mend_database(self) -> None:
        self.file.with_suffix(".away").rename(self.file)


Make = Callable[..., Scene]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Scene] = []

    def scene(*arguments: Any, **more: Any) -> Scene:
        made.append(Scene(tmp_path / "state", *arguments, **more))
        return made[-1]

    yield scene
    for each in made:
        await each.policy.close()
        each.database.dispose()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come about")


def rows(database: Engine) -> list[str]:
    with database.connect() as connection:
        return list(connection.execute(select(table.c.state)).scalars())


def telling(*events: Event | Exception) -> Generate:
    """A generation of these events; an exception among them ends it."""

    async def generate(asked: Request) -> Events:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event

    return generate


# ---------------------------------------------------------------------------------------------------------- told again


async def test_without_a_key_nothing_is_kept(make: Make) -> None:
    scene = make()
    assert await scene.tell(request(key=None)) == await scene.tell(request(key=None))
    assert (scene.begun, rows(scene.database)) == (2, [])


SAID = [
    "count to 3",
    "think: hmm then say: I see",
    "say exactly: ",
    'call f with {"a": [1, 2]}',
]


@pytest.mark.parametrize("said", SAID)
async def test_the_second_time_the_same_events_come_and_whose_they_are(make: Make, said: str) -> None:
    scene, more = make(), {"choices": 2, "sampling": Sampling(logprobs=1)}
    first = await scene.tell(request(said, number=1, **more))
    second = await scene.tell(request(said, number=2, **more))
    assert second[1:] == first[1:]
    assert second[0] == replace(
        first[0], headers=(("idempotent-replayed", "true"),), replays=First("r1", 1_760_000_001)
    )
    assert scene.begun == 1
    assert await fold(scene.generate(request(said, number=3, **more))) == await fold(_told(first))


async def _told(events: list[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


async def test_what_headers_said_is_not_said_again(make: Make) -> None:
    scene = make(telling(STARTED, TextDelta(0, "x", 1), FINISHED))
    first, second = await scene.tell(request()), await scene.tell(request())
    assert (first[0], first[-1]) == (STARTED, FINISHED)
    assert second[0].headers == (("idempotent-replayed", "true"),)  # type: ignore[union-attr]
    assert second[-1].headers == ()  # type: ignore[union-attr]


async def test_keys_are_a_tenants_own(make: Make) -> None:
    scene = make()
    await scene.tell(request(tenant="acme"))
    assert (await scene.tell(request(tenant="other")))[0] == Started(Usage(prompt_text=7))
    assert scene.begun == 2


async def test_another_request_under_the_same_key_is_refused(make: Make) -> None:
    scene = make()
    await scene.tell(request("count to 3"))
    refusal = await scene.refused(request("count to 4"))
    assert (refusal.status, refusal.code, refusal.param) == (400, "idempotency_key_reuse", "Idempotency-Key")
    assert refusal.headers == (("x-should-retry", "false"),)
    assert scene.begun == 1


async def test_of_fifty_at_once_one_generates(make: Make) -> None:
    scene = make()
    scene.go_on.clear()
    tries = [asyncio.create_task(scene.tell(request(number=number))) for number in range(50)]
    await until(lambda: [each.done() for each in tries].count(True) == 49)
    scene.go_on.set()
    answers = await asyncio.gather(*tries, return_exceptions=True)
    refusals = [each for each in answers if isinstance(each, ApiError)]
    assert {(each.status, each.code, each.param) for each in refusals} == {
        (409, "idempotency_in_flight", "Idempotency-Key")
    }
    assert all(1 <= (each.retry_after or 0) <= 60 for each in refusals)
    assert (len(refusals), scene.begun) == (49, 1)


# -------------------------------------------------------------------------------------------------------------- errors

ERRORS = [
    # what is raised, whether after Started, whether it is kept
    (InvalidRequest("messages: too long", param="messages", code="context_length_exceeded"), False, True),
    (NotFound("there is no such file", param="messages[0]"), False, True),
    (InvalidRequest("too large", status=413, code="request_too_large"), False, True),
    (ApiError("slow", status=408, code="request_timeout"), False, False),
    (ApiError("enough", status=429, code="rate_limit_exceeded", retry_after=7), False, False),
    (Overloaded("no room", retry_after=5), False, False),
    (DeadlineExceeded("over"), False, False),
    (EngineFailed("broken"), False, False),
    (Overloaded("stopping", retry_after=5), True, True),
    (DeadlineExceeded("over"), True, True),
    (EngineFailed("broken"), True, True),
    (ApiError("enough", status=429, code="rate_limit_exceeded"), True, True),
]


@pytest.mark.parametrize(("error", "begun", "kept"), ERRORS)
async def test_which_errors_are_told_again(make: Make, error: ApiError, begun: bool, kept: bool) -> None:
    scene = make(telling(*([STARTED, TextDelta(0, "x", 1)] if begun else []), error))
    first, second = await scene.refused(request()), await scene.refused(request())
    assert first is error
    assert (scene.begun, len(rows(scene.database))) == ((1, 1) if kept else (2, 0))
    fields = ("status", "code", "message", "param", "retry_after")
    assert [getattr(second, each) for each in fields] == [getattr(error, each) for each in fields]
    assert second.headers == ((("idempotent-replayed", "true"), ("x-should-retry", "false")) if kept else ())


async def test_events_before_an_error_are_told_again_too(make: Make) -> None:
    scene = make(telling(STARTED, TextDelta(0, "x", 1), EngineFailed("broken")))
    for _ in range(2):
        events = scene.generate(request())
        assert isinstance(await anext(events), Started)
        assert await anext(events) == TextDelta(0, "x", 1)
        with pytest.raises(ApiError, match="broken"):
            await anext(events)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_fault_of_our_own_is_an_answer_once_the_engine_has_begun(
    make: Make, begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    scene = make(telling(*([STARTED] if begun else []), ZeroDivisionError("a secret")))
    first, second = await scene.refused(request()), await scene.refused(request())
    assert {(each.status, each.code, each.message) for each in (first, second)} == {
        (500, "engine_error", "The server failed on this request.")
    }
    assert scene.begun == (1 if begun else 2)
    assert "a secret" in caplog.text


# ------------------------------------------------------------------------------------------------------------ hang-ups


@pytest.mark.parametrize("taken", [1, 2])
async def test_a_client_that_leaves_does_not_end_it(make: Make, taken: int) -> None:
    scene = make()
    scene.go_on.clear()
    async with aclosing(scene.generate(request())) as events:
        await anext(events)
        if taken == 2:
            scene.go_on.set()
            await anext(events)
    scene.go_on.set()
    await scene.rest()
    again = await scene.tell(request(number=2))
    assert "".join(event.text for event in again if isinstance(event, TextDelta)) == "1 2 3"
    assert (scene.begun, scene.ended) == (1, 1)


async def test_nor_one_that_leaves_before_the_first_event(make: Make) -> None:
    scene = make()
    scene.go_on.clear()
    waiting = asyncio.create_task(scene.tell(request()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    await until(lambda: scene.begun == 1)
    assert (await scene.refused(request(number=2))).code == "idempotency_in_flight"
    scene.go_on.set()
    await scene.rest()
    assert len(await scene.tell(request(number=3))) > 3
    assert scene.begun == 1


async def test_at_the_end_what_is_being_written_is_written(make: Make) -> None:
    scene = make()
    async with aclosing(scene.generate(request())) as events:
        await anext(events)
    await scene.policy.close()
    assert rows(scene.database) == ["kept"]


# -------------------------------------------------------------------------------------------------------- large answers


async def many(asked: Request) -> Events:
    yield STARTED
    for number in range(1000):
        yield TextDelta(0, f"{number:4}", number + 1)
    yield FINISHED


async def test_an_answer_that_is_too_large_is_told_once(make: Make) -> None:
    scene = make(many, most=2000)
    assert len(await scene.tell(request())) == 1002
    refusal = await scene.refused(request())
    assert (refusal.status, refusal.code, refusal.param) == (409, "idempotency_reply_too_large", "Idempotency-Key")
    assert (refusal.headers, refusal.retry_after) == ((("x-should-retry", "false"),), None)
    assert (scene.begun, rows(scene.database)) == (1, ["too_large"])


async def test_a_large_answer_is_made_no_faster_than_it_is_read(make: Make) -> None:
    made = 0

    async def noted(asked: Request) -> Events:
        nonlocal made
        async for event in many(asked):
            made += 1
            yield event

    scene = make(noted, most=2000)
    async with aclosing(scene.generate(request())) as events:
        await anext(events)
        before = -1
        while made != before:
            before = made
            await asyncio.sleep(0.02)
        assert made < 200
    await scene.rest()
    assert made < 200  # with nobody to tell it to, and nothing to keep, it ends
    assert (scene.ended, rows(scene.database)) == (1, ["too_large"])


async def test_long_answers_are_kept_in_few_bytes(make: Make) -> None:
    """As many tokens as a thinking model answers with by default."""
    words = [TextDelta(0, f" w{number % 1000}", number + 1) for number in range(32_768)]
    scene = make(telling(STARTED, *words, FINISHED))
    await scene.tell(request())
    with scene.database.connect() as connection:
        size = connection.execute(select(func.length(table.c.events))).scalar_one()
    assert 300_000 < size < 700_000
    assert len(await scene.tell(request())) == 32_770


async def test_bytes_of_tokens_and_odd_texts_survive(make: Make) -> None:
    odd = TextDelta(0, "\0 \U0001f600 \u2028", 1, (Logprob(Likely(5, b"\xf0\x9f", -1.5), (Likely(6, b"", -3.25),)),))
    scene = make(telling(STARTED, odd, FINISHED))
    await scene.tell(request())
    assert (await scene.tell(request()))[1] == odd


# ------------------------------------------------------------------------------------------------------------ database


async def test_nothing_is_generated_when_the_key_cannot_be_taken(make: Make) -> None:
    scene = make()
    scene.break_database()
    refusal = await scene.refused(request())
    assert (refusal.status, refusal.code, refusal.retry_after) == (503, "server_is_overloaded", 5)
    assert scene.begun == 0
    scene.mend_database()
    await scene.tell(request())
    assert scene.begun == 1


@pytest.mark.parametrize("ending", ["answer", "refusal"])
async def test_an_answer_that_cannot_be_kept_is_given_all_the_same_and_kept_later(
    make: Make, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene: Scene

    async def breaking(asked: Request) -> Events:
        if scene.begun == 1:
            scene.break_database()
        if ending == "refusal":
            raise Overloaded("no room", retry_after=5)
        yield STARTED
        yield FINISHED

    scene = make(breaking)
    if ending == "answer":
        assert await scene.tell(request()) == [STARTED, FINISHED]
    else:
        assert (await scene.refused(request())).status == 503
    assert "could not be kept" in caplog.text
    scene.mend_database()
    while scene.policy._behind:
        await asyncio.wait(scene.policy._behind)
    assert rows(scene.database) == (["kept"] if ending == "answer" else [])


async def test_the_sweep_goes_on_after_a_database_that_failed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    scene = make()
    scene.break_database()
    await scene.policy.start()
    await until(lambda: "could not be removed" in caplog.text)
    assert len(scene.policy._behind) == 1
    scene.mend_database()
