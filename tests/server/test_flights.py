"""Those who ask the same at once: one generation, which ends with its last reader, and a row for each of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import select

from qwen3vl_compat.accounts.tables import ledger
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import (
    ApiError,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    OutOfCredit,
    Overloaded,
    RateLimited,
)
from qwen3vl_compat.events import Event, Events, Finish, Started, TextDelta, Usage, fold
from qwen3vl_compat.messages import Caller, Freshness, Idempotency, Media, Message, Request, Sampling, Text
from qwen3vl_compat.policies.caching.flight import Flight
from qwen3vl_compat.settings import ModerationSettings, ModeratorSettings, Quotas, Settings
from tests.moderator import moderating
from tests.server.test_app import House

SAID = "You said: good day"
WORDS = 4
"""Tokens of that answer."""
PROMPT = 6
OUT, KNOWN, ONE = 40_000, 3_000, 7_000_000
"""Nano-units for a token of an answer, a cached one, and a request."""


class Held(ScriptedEngine):
    """Makes as many tokens as it is let, and begins only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self._pause = 0
        self.begun = self.running = self.made = 0
        self.fault: ApiError | None = None
        self.tokens, self.start_of = asyncio.Semaphore(0), asyncio.Event()
        self.start_of.set()

    def let(self, tokens: int = 100) -> None:
        for _ in range(tokens):
            self.tokens.release()

    async def generate(self, request: Request) -> Events:
        self.begun, self.running = self.begun + 1, self.running + 1
        try:
            await self.start_of.wait()
            async with aclosing(super().generate(request)) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        await self.tokens.acquire()
                        self.made += 1
                    if self.fault is not None:
                        raise self.fault
                    yield event
        finally:
            self.running -= 1


class Heard:
    """A request that is read as it is answered, in a task of its own as a server's are."""

    def __init__(self, house: "Flying", request: Request) -> None:
        self.request, self.events = request, list[Event]()
        self.task = asyncio.create_task(self._read(house.service.generate(request)))

    async def _read(self, events: Events) -> str:
        async with aclosing(events) as made:
            async for event in made:
                self.events.append(event)
        return await self.said()

    async def said(self) -> str:
        return (await fold(_each(self.events))).choices[0].text

    async def hang_up(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})

    @property
    def tokens(self) -> int:
        """Those that it has heard of."""
        return max((event.completion for event in self.events if isinstance(event, TextDelta)), default=0)

    @property
    def cache(self) -> str:
        (started,) = (event for event in self.events if isinstance(event, Started))
        return dict(started.headers)["x-cache"]


async def _each(events: Iterable[Event]) -> Events:
    for event in events:
        yield event


class Flying(House):
    """A server's chain of policies around an engine that can be held."""

    def __init__(self, folder: Path, settings: Settings | None = None) -> None:
        self.engine = Held()
        super().__init__(folder, settings, self.engine)
        self.accounts.prices.set("*", text_in="10", cached_in="3", out="40", reasoning="50", per_request="0.007")
        self.number = 0

    def caller(self, limits: Quotas | None = None) -> Caller:
        """One of the same tenant, with a key and limits of its own."""
        return Caller("default", self.accounts.keys.create("default", limits=limits or Quotas()).key.public)

    def ask(self, caller: Caller, **more: Any) -> Heard:
        self.number += 1
        asked: dict[str, Any] = {
            "id": f"{self.number:024d}", "created": self.number, "model": "qwen3-vl", "caller": caller,
            "wire": "openai", "messages": (Message("user", (Text("good day"),)),),
            "sampling": Sampling(temperature=0.0, max_tokens=50),
        }  # fmt: skip
        return Heard(self, Request(**asked | more))

    def rows(self) -> dict[str, Any]:
        with self.accounts.database.connect() as connection:
            return {row.id: row for row in connection.execute(select(ledger))}

    def row(self, heard: Heard) -> tuple[Any, ...]:
        """How a request is booked: state, finish, what the cache said, tokens and cost."""
        row = self.rows()[heard.request.id]
        return row.state, row.finish, row.cache, row.text_in, row.cached_in, row.out, row.cost


LED = ("final", "stop", "miss", PROMPT, 0, WORDS, PROMPT * 10_000 + WORDS * OUT + ONE)
FOLLOWED = ("final", "stop", "hit", 0, PROMPT, WORDS, (PROMPT + WORDS) * KNOWN + ONE)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Flying]:
    made = Flying(tmp_path / "state")
    await made.service.open_books()
    yield made
    await made.service.cache.close()
    assert not made.service.cache._flights
    assert not made.service.cache._landing
    assert made.service.lifecycle.running == made.engine.running == 0
    await made.service.close_books()
    made.accounts.database.dispose()


async def until(true: Any) -> None:
    """Let others run until something is so."""
    for _ in range(3000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not happen")


async def heard(*those: Heard, tokens: int) -> None:
    """Until all of them have heard of so many tokens."""
    await until(lambda: all(each.tokens >= tokens for each in those))


async def under_way(house: Flying, followers: int = 2, tokens: int = 1, **more: Any) -> tuple[Heard, list[Heard]]:
    """A generation of which so many tokens are made: who asked first, and those who asked after."""
    leader = house.ask(house.caller(), **more)
    await until(lambda: house.engine.running == 1)
    joined = [house.ask(house.caller(), stream=bool(at % 2)) for at in range(followers)]
    house.engine.let(tokens)
    await heard(*joined, tokens=tokens)  # who wants the whole hears of none until the end
    return leader, joined


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_who_asked_first_may_go(house: Flying, stream: bool) -> None:
    """What it had made for itself it pays for: the whole, of which the others have had the use."""
    leader, followers = await under_way(house, stream=stream)
    await leader.hang_up()
    house.engine.let()
    assert [await follower.task for follower in followers] == [SAID] * 2
    await until(lambda: house.row(leader)[0] != "open")
    assert house.row(leader) == LED
    assert [house.row(follower) for follower in followers] == [FOLLOWED] * 2
    assert house.engine.begun == 1
    later = house.ask(house.caller())
    assert (await later.task, later.cache, house.row(later)) == (SAID, "hit", FOLLOWED)


async def test_the_generation_ends_with_its_last_reader(house: Flying) -> None:
    leader, (one, other) = await under_way(house)
    for gone in (one, leader):
        await gone.hang_up()
        assert house.engine.running == 1
    house.engine.let(1)
    await heard(other, tokens=2)
    await other.hang_up()
    assert (house.engine.running, house.engine.made) == (0, 2)
    assert house.row(leader)[:6] == ("aborted", "gone", "miss", PROMPT, 0, 2)
    assert house.row(leader)[6] == PROMPT * 10_000 + 2 * OUT + ONE
    assert house.row(other) == ("aborted", "gone", "hit", 0, PROMPT, 2, (PROMPT + 2) * KNOWN + ONE)
    assert house.row(one) == ("aborted", "gone", "hit", 0, PROMPT, 1, (PROMPT + 1) * KNOWN + ONE)
    house.engine.let()
    again = house.ask(house.caller())
    assert (await again.task, again.cache) == (SAID, "miss"), "a piece of an answer is never kept"


@pytest.mark.parametrize("followers", [0, 2])
async def test_all_may_go_before_anything_has_begun(house: Flying, followers: int) -> None:
    house.engine.start_of.clear()
    those = [house.ask(house.caller())]
    await until(lambda: house.engine.running == 1)
    those += [house.ask(house.caller()) for _ in range(followers)]
    await asyncio.sleep(0.05)
    for each in those:
        await each.hang_up()
    assert house.engine.running == 0
    assert [(row.state, row.finish, row.cost) for row in house.rows().values()] == [("aborted", "gone", 0)]


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [(Quotas(tokens=20), RateLimited), (Quotas(concurrent=0), RateLimited), (Quotas(budget="0.0001/day"), OutOfCredit)],
    ids=["tokens", "concurrent", "budget"],
)
async def test_who_comes_first_and_may_not_is_not_followed(
    house: Flying, limits: Quotas, refusal: type[ApiError]
) -> None:
    """The next one is asked for itself, and the others follow that one."""
    house.engine.let()
    others = [house.caller() for _ in range(5)]
    poor = house.ask(house.caller(limits))
    those = [house.ask(each) for each in others]
    with pytest.raises(refusal):
        await poor.task
    assert [await each.task for each in those] == [SAID] * 5
    assert sorted(each.cache for each in those) == ["hit"] * 4 + ["miss"]
    assert sorted(house.row(each)[2] for each in those) == ["hit"] * 4 + ["miss"]
    assert house.engine.begun == 1
    assert len(house.rows()) == 5


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [(Quotas(tokens=20), RateLimited), (Quotas(concurrent=0), RateLimited), (Quotas(budget="0.0001/day"), OutOfCredit)],
    ids=["tokens", "concurrent", "budget"],
)
async def test_who_follows_must_be_allowed_to_itself(house: Flying, limits: Quotas, refusal: type[ApiError]) -> None:
    leader, (other,) = await under_way(house, followers=1)
    poor = house.ask(house.caller(limits))
    with pytest.raises(refusal):
        await poor.task
    house.engine.let()
    assert [await each.task for each in (leader, other)] == [SAID] * 2
    assert set(house.rows()) == {leader.request.id, other.request.id}
    assert (house.row(leader), house.row(other)) == (LED, FOLLOWED)


@pytest.mark.parametrize("tokens", [0, 2], ids=["before", "during"])
async def test_a_failure_is_everybodys_and_costs_nothing(house: Flying, tokens: int) -> None:
    house.engine.start_of.clear()
    leader = house.ask(house.caller(), stream=True)
    await until(lambda: house.engine.running == 1)
    those = [leader, *(house.ask(house.caller()) for _ in range(2))]
    await asyncio.sleep(0.05)
    if tokens:
        house.engine.start_of.set()
        house.engine.let(tokens)
        await heard(*those, tokens=tokens)
    house.engine.fault = EngineFailed("The engine broke.")
    house.engine.start_of.set()
    house.engine.let(1)
    for each in those:
        with pytest.raises(EngineFailed, match="The engine broke"):
            await each.task
    assert {row.cost for row in house.rows().values()} == {0}
    assert {(row.state, row.finish) for row in house.rows().values()} == {
        ("aborted", "failed" if tokens else "refused")
    }
    assert len(house.rows()) == (3 if tokens else 1)
    house.engine.fault = None
    house.engine.let()
    again = house.ask(house.caller())
    assert (await again.task, again.cache, house.row(again)) == (SAID, "miss", LED)


async def test_a_fault_of_the_request_is_told_in_the_words_of_each_ones_own(house: Flying) -> None:
    """The same picture does not stand in the same field on another wire."""
    await house.service.sandbox.start()
    broken = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0\0\x40\x08\2\0\0\0" + bytes(40)
    asked = [
        (Message("user", (Media(source=broken, wanted="any", param=param),)),)
        for param in ("messages[0].content[0].image_url.url", "contents[0].parts[0].inlineData.data")
    ]
    try:
        those = [house.ask(house.caller(), messages=asked[at % 2]) for at in range(4)]
        for at, each in enumerate(those):
            with pytest.raises(InvalidRequest) as refused:
                await each.task
            assert refused.value.code == "invalid_image"
            assert refused.value.param == asked[at % 2][0].parts[0].param  # type: ignore[union-attr]
    finally:
        await house.service.sandbox.close()


async def test_each_ones_time_is_its_own(house: Flying) -> None:
    leader = house.ask(house.caller(), seconds=1.5)
    await until(lambda: house.engine.running == 1)
    short, other = house.ask(house.caller(), seconds=1.0), house.ask(house.caller())
    house.engine.let(1)
    for each in (short, leader):
        with pytest.raises(DeadlineExceeded):
            await each.task
        assert house.engine.running == 1
    house.engine.let()
    assert await other.task == SAID
    assert house.row(short)[:3] == ("aborted", "gone", "hit")
    assert (house.row(leader), house.row(other)) == (LED, FOLLOWED)


async def test_a_server_that_stops_lets_them_end_together(house: Flying) -> None:
    leader, followers = await under_way(house)
    draining = asyncio.create_task(house.service.lifecycle.drain(0.1))
    for each in (leader, *followers):
        with pytest.raises(Overloaded, match="stopping"):
            await each.task
    await draining
    assert house.engine.running == 0
    assert house.row(leader)[:6] == ("aborted", "gone", "miss", PROMPT, 0, 1)
    assert {house.row(each)[:6] for each in followers} == {("aborted", "gone", "hit", 0, PROMPT, 1)}


async def test_who_reads_slowly_holds_nobody_up(house: Flying) -> None:
    """It hears all of it all the same, later, and is booked when it has."""
    leader = house.ask(house.caller())
    await until(lambda: house.engine.running == 1)
    slow = house.service.generate(replace(leader.request, id="slow", caller=house.caller(), stream=True))
    async with aclosing(slow) as events:
        first = asyncio.ensure_future(anext(events))
        house.engine.let()
        assert await leader.task == SAID
        await until(lambda: not house.service.cache._flights)
        assert house.row(leader) == LED
        rest = [await first, *[event async for event in events]]
    assert (await fold(_each(rest))).choices[0].text == SAID
    assert house.rows()["slow"].state == "final"
    assert house.rows()["slow"].cost == FOLLOWED[-1]


@pytest.mark.parametrize(
    "wish", [Freshness(read=False), Freshness(read=False, keep=False)], ids=["no-cache", "no-store"]
)
async def test_who_wants_it_fresh_joins_nobody_and_is_joined_by_nobody(house: Flying, wish: Freshness) -> None:
    leader, _ = await under_way(house, followers=0)
    fresh = house.ask(house.caller(), freshness=wish)
    await until(lambda: house.engine.running == 2)
    await leader.hang_up()
    usual = house.ask(house.caller())
    await until(lambda: house.engine.begun == 3)
    house.engine.let()
    assert (await fresh.task, await usual.task) == (SAID, SAID)
    assert [each.cache for each in (fresh, usual)] == ["miss" if wish.keep else "off", "miss"]


async def test_who_takes_what_is_drawn_for_others_joins_who_takes_it_too(house: Flying) -> None:
    drawn = {"sampling": Sampling(temperature=1.0, max_tokens=50)}
    willing = drawn | {"freshness": Freshness(max_age=60)}
    leader = house.ask(house.caller(), **willing)
    await until(lambda: house.engine.running == 1)
    other, alone = house.ask(house.caller(), **willing), house.ask(house.caller(), **drawn)
    await until(lambda: house.engine.running == 2)
    house.engine.let()
    assert [await each.task for each in (leader, other, alone)] == [SAID] * 3
    assert [each.cache for each in (leader, other, alone)] == ["miss", "hit", "off"]


async def test_a_key_of_idempotency_and_the_cache(house: Flying) -> None:
    """Under the same key: what was answered then. Under another, or none: an answer of its own from the cache."""
    key = Idempotency("a" * 64, "f" * 64)
    leader = house.ask(caller := house.caller(), idempotency=key)
    await until(lambda: house.engine.running == 1)
    await leader.hang_up()
    follower = house.ask(house.caller())
    house.engine.let()
    assert (await follower.task, follower.cache) == (SAID, "hit")
    await until(lambda: house.row(leader) == LED)
    other = house.ask(caller, idempotency=replace(key, key_hash="b" * 64))
    assert (await other.task, other.cache, house.row(other)) == (SAID, "hit", FOLLOWED)
    again = house.ask(caller, idempotency=key)
    assert await again.task == SAID
    assert isinstance(again.events[0], Started)
    assert again.events[0].replays is not None
    assert again.events[0].replays.id == leader.request.id
    assert again.request.id not in house.rows()
    assert house.engine.begun == 1


async def test_a_follower_may_hang_up_while_it_waits_for_the_first_word(house: Flying) -> None:
    house.engine.start_of.clear()
    leader = house.ask(house.caller())
    await until(lambda: house.engine.running == 1)
    follower = house.ask(house.caller())
    await asyncio.sleep(0.05)
    await follower.hang_up()
    house.engine.start_of.set()
    house.engine.let()
    assert await leader.task == SAID
    assert set(house.rows()) == {leader.request.id}


@pytest.mark.parametrize("seen", [True, False], ids=["looked at", "let pass"])
async def test_what_moderators_could_not_look_at_is_noted_of_all(tmp_path: Path, seen: bool) -> None:
    """Of the answer that all hear; what was noted of it already with the first one's words is noted of the others."""
    with moderating() as moderator:
        service = ModeratorSettings(kind="service", url=moderator.url, stages=("before", "after"))
        terms = ModerationSettings(on_failure="open", moderators=(service,))
        house = Flying(tmp_path / "state", Settings(moderation=terms))
        await house.service.open_books()
        moderator.mode = "well" if seen else "500"
        leader = house.ask(house.caller())
        await until(lambda: house.engine.running == 1)
        moderator.mode = "well"
        follower = house.ask(house.caller())
        await until(lambda: [flight._readers for flight in house.service.cache._flights.values()] == [2])
        moderator.mode = "500"
        house.engine.let()
        assert await leader.task == await follower.task == SAID
        rows = house.rows()
        await house.service.close()
        house.accounts.database.dispose()
    assert [rows[each.request.id].cache for each in (leader, follower)] == ["miss", "hit"]
    assert [rows[each.request.id].moderation for each in (leader, follower)] == ["service:unavailable"] * 2


WHOLE: list[Event] = [
    Started(Usage(prompt_text=1)),
    *(TextDelta(0, str(at), at) for at in range(5)),
    Finish(0, "stop", Usage(prompt_text=1, completion=5)),
]


class Flown:
    """A flight by itself, and its readers with what each has heard."""

    def __init__(self, *, fails: bool) -> None:
        self.steps, self.fails, self.held = asyncio.Semaphore(0), fails, list[str]()
        stack = AsyncExitStack()
        stack.callback(lambda: self.held.remove("media"))
        self.held.append("media")
        self.flight = Flight(Request(id="", created=0, model="", messages=()), self._made(), stack)
        self.readers: list[tuple[asyncio.Task[str], list[Event]]] = []

    async def _made(self) -> Events:
        self.held.append("generation")
        try:
            for at, event in enumerate(WHOLE):
                await self.steps.acquire()
                if self.fails and at == 4:
                    raise EngineFailed("It broke.")
                yield event
        finally:
            self.held.remove("generation")

    def come(self, *, whole: bool) -> None:
        events: list[Event] = []
        self.flight.join()
        self.readers.append((asyncio.create_task(self._read(events, whole)), events))

    async def _read(self, into: list[Event], whole: bool) -> str:
        try:
            async with aclosing(self.flight.read(whole=whole)) as events:
                async for event in events:
                    into.append(event)  # noqa: PERF401 -- one by one, for it may be cancelled
        except EngineFailed:
            return "failed"
        finally:
            await self.flight.leave()
        return "whole"

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.sampled_from(["come", "come for the whole", "make"]), st.integers(0, 5)), max_size=25),
    st.booleans(),
)
def test_whoever_comes_and_goes_hears_a_beginning_of_the_whole(did: list[Any], fails: bool) -> None:
    """A number is a reader who leaves. Something is held exactly while somebody reads what is not over."""

    async def flown() -> None:
        flown = Flown(fails=fails)
        flown.come(whole=False)
        await flown.settle()
        for act in did:
            if isinstance(act, int):
                for task, _ in flown.readers[act : act + 1]:
                    task.cancel()
            elif act == "make":
                flown.steps.release()
            elif not flown.flight.lost:
                flown.come(whole="whole" in act)
            await flown.settle()
            assert flown.flight.over != bool(flown.held)
            assert flown.flight.over or not all(task.done() for task, _ in flown.readers)
        for _ in WHOLE:
            flown.steps.release()
        ends = await asyncio.gather(*(task for task, _ in flown.readers), return_exceptions=True)
        await flown.flight.landed()
        assert not flown.held
        for end, (_, events) in zip(ends, flown.readers, strict=True):
            assert not events or events[0] == WHOLE[0]
            said = "".join(event.text for event in events if isinstance(event, TextDelta))
            assert "01234".startswith(said)
            if not isinstance(end, asyncio.CancelledError):
                assert (end, said) == (("failed", "012") if fails else ("whole", "01234"))
                assert fails or events[-1] == WHOLE[-1]

    asyncio.run(flown())
