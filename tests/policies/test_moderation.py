"""The policy around the scripted engine: what is refused before, cut off during and after, and what the ledger says."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Engine, create_engine, select

from qwen3vl_compat.accounts.books import Terms as Quoted
from qwen3vl_compat.accounts.database import open_database
from qwen3vl_compat.accounts.keys import Keys
from qwen3vl_compat.accounts.ledger import Ledger
from qwen3vl_compat.accounts.money import Price
from qwen3vl_compat.accounts.tables import ledger
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import ContentRefused, ModerationUnavailable
from qwen3vl_compat.events import (
    Event,
    Events,
    Finish,
    Progress,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
    fold,
)
from qwen3vl_compat.messages import (
    Caller,
    Media,
    Message,
    OutputFormat,
    Picture,
    Reasoning,
    Request,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    Video,
)
from qwen3vl_compat.policies import Generate
from qwen3vl_compat.policies.bookkeeping import Bookkeeping
from qwen3vl_compat.policies.limiting.local import LocalLimiter
from qwen3vl_compat.policies.metering import Metering
from qwen3vl_compat.policies.moderation import Judged, Moderator, Verdict
from qwen3vl_compat.policies.moderation.policy import Moderators, Terms
from qwen3vl_compat.policies.moderation.service import MOST_FAILURES, PAUSE_S, Service
from qwen3vl_compat.policies.moderation.words import Words
from qwen3vl_compat.settings import ModerationSettings, ModerationTerms, ModeratorSettings, Quotas, Stage

ALL: tuple[Stage, ...] = ("before", "during", "after")
LISTS = {"violence": ["murder", "kill them"]}


class Outside:
    """What a service is asked, and how it answers: it objects to `evil`, or fails while `fault` is set."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[bytes]]] = []
        self.fault: Exception | None = None
        self.called, self.open = asyncio.Event(), asyncio.Event()
        self.open.set()
        self.now = self.most = 0

    async def __call__(self, texts: Sequence[str], pictures: Sequence[bytes]) -> Verdict:
        self.asked.append((list(texts), list(pictures)))
        self.called.set()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.open.wait()
        finally:
            self.now -= 1
        if self.fault is not None:
            raise self.fault
        flagged = any("evil" in text for text in texts)
        return Verdict(flagged, ("hate",) if flagged else (), {"hate": 0.9 if flagged else 0.1})


class House:
    """A ledger, an engine and moderators."""

    def __init__(self, database: Engine) -> None:
        self.database, self.ledger = database, Ledger(database)
        self.books = Bookkeeping(self.ledger, LocalLimiter(seed=None, share=lambda: 1), self.quotas, self.price)
        self.engine, self.outside = ScriptedEngine(), Outside()
        self.terms = ModerationTerms()
        self.settings = ModerationSettings(window=20, chunk=10)

    async def quotas(self, caller: Caller) -> Quoted:
        return Quoted(Quotas(), Quotas())

    async def price(self, model: str, now: int) -> Price | None:
        return None

    async def of(self, tenant: str) -> ModerationTerms:
        return self.terms

    def service(self, stages: tuple[Stage, ...] = ALL, **more: Any) -> Service:
        return Service(ModeratorSettings(kind="service", name="svc", stages=stages, **more), self.outside)

    def moderators(self, *moderators: Moderator) -> Moderators:
        terms = Terms(self.of, lambda tenant: self.terms)
        return Moderators(self.settings, moderators, terms, self.books, self.engine.vision)

    def generate(self, moderators: Moderators, engine: Generate | None = None) -> Generate:
        """As the chain has it."""
        metering = Metering(self.books, self.engine.count, self.engine.room, self.engine.check)
        inner = metering(moderators.answer(engine or self.engine.generate))

        async def judged(request: Request) -> Events:
            request = await moderators.pictures(await moderators.text(request))
            async with aclosing(inner(request)) as events:
                async for event in events:
                    yield event

        return judged

    def row(self) -> Any:
        with self.database.connect() as connection:
            (row,) = connection.execute(select(ledger)).all()
        return row


@pytest.fixture(scope="module")
def new_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a tenant, made once: each test takes a copy."""
    folder = tmp_path_factory.mktemp("new") / "state"
    database = open_database(folder)
    Keys(database).add_tenant("acme")
    database.dispose()
    return folder


@pytest.fixture
async def house(tmp_path: Path, new_state: Path) -> AsyncIterator[House]:
    database = open_database(shutil.copytree(new_state, tmp_path / "state"))
    made = House(database)
    await made.ledger.start()
    yield made
    await made.ledger.close()
    database.dispose()


def asking(*parts: Any, **more: Any) -> Request:
    parts = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    return Request(
        id="r1", created=0, model="qwen3-vl", messages=(Message("user", parts),), caller=Caller("acme", "K" * 12),
        wire="openai", **more,
    )  # fmt: skip


def picture(**more: Any) -> Picture:
    return Picture("d", bytes(4 * 3 * 16 * 16), (1, 2, 2), 32, 32, **more)


# -------------------------------------------------------------------------------------------------------------- before


@pytest.mark.parametrize(
    "asked",
    [
        asking("a murder"),
        asking("mur", "der"),
        asking(Media(source=b"", name="murder.pdf")),
        asking("x", tools=(Tool(name="f", description="murder"),)),
        asking("x", tools=(Tool(name="f", parameters='{"description": "murder"}'),)),
        asking("x", format=OutputFormat(kind="choice", value='["murder", "x"]')),
        *(
            Request(id="r1", created=0, model="qwen3-vl", messages=(message,), caller=Caller("acme", "K" * 12))
            for message in (
                Message("system", (Text("murder"),)),
                Message("assistant", (Reasoning("murder"), Text("x"))),
                Message("assistant", (ToolCall("1", "f", '{"a": "murder"}'),)),
                Message("tool", (ToolResult("1", "f", (Text("mur"), Text("der"))),)),
            )
        ),
    ],
)
async def test_whoever_says_it_a_word_is_refused_before_anything_is_counted(house: House, asked: Request) -> None:
    with pytest.raises(ContentRefused) as refused:
        await fold(house.generate(house.moderators(Words(LISTS)))(asked))
    assert (refused.value.status, refused.value.code) == (400, "content_policy_violation")
    assert ("x-should-retry", "false") in refused.value.headers
    row = house.row()
    assert (row.state, row.finish, row.moderation) == ("final", "content_filter", "words:violence")
    assert (row.cost, row.reserved, row.out, row.text_in, row.started_at) == (0, 0, 0, 0, None)


async def test_what_nobody_objects_to_leaves_no_trace(house: House) -> None:
    said = await fold(house.generate(house.moderators(Words(LISTS)))(asking("Hello there")))
    assert (said.choices[0].text, said.choices[0].reason) == ("You said: Hello there", "stop")
    assert (house.row().moderation, house.row().finish) == ("", "stop")


async def test_the_first_who_objects_ends_it(house: House) -> None:
    with pytest.raises(ContentRefused):
        await fold(house.generate(house.moderators(Words(LISTS), house.service()))(asking("an evil murder")))
    assert house.outside.asked == []
    with pytest.raises(ContentRefused):
        await house.moderators(house.service(), Words(LISTS)).text(replace(asking("an evil murder"), id="r2"))
    assert len(house.outside.asked) == 1


async def test_a_service_is_shown_pictures_and_what_is_said_with_them(house: House) -> None:
    video = Video(tuple(picture(frames=1) for _ in range(20)), tuple(map(float, range(20))))
    moderators = house.moderators(Words(LISTS), house.service(pictures=5))
    await moderators.pictures(asking("Look:", picture(), video))
    shown = [len(pictures) for _, pictures in house.outside.asked]
    assert shown == [5, 4]  # one, and eight frames of the video
    assert all(texts == ["Look:"] for texts, _ in house.outside.asked)
    assert all(each.startswith(b"\xff\xd8") for _, pictures in house.outside.asked for each in pictures)
    house.outside.asked.clear()
    await moderators.pictures(asking("no picture"))
    assert house.outside.asked == []


async def test_words_of_a_document_are_read_when_they_are_there(house: House) -> None:
    with pytest.raises(ContentRefused):
        await house.moderators(Words(LISTS)).pictures(asking("page 1:", picture(), "the murder"))
    assert house.row().moderation == "words:violence"


# -------------------------------------------------------------------------------------------------------- a failing one


@pytest.mark.parametrize(("on_failure", "said"), [("open", "svc:unavailable"), ("flag", "svc:flagged")])
async def test_what_cannot_be_looked_at_is_let_pass_if_the_tenant_says_so(
    house: House, on_failure: Any, said: str
) -> None:
    house.terms, house.outside.fault = ModerationTerms(on_failure=on_failure), OSError("gone")
    answer = await fold(house.generate(house.moderators(house.service()))(asking("count to 30")))
    assert answer.choices[0].text.endswith(" 30")
    assert (house.row().finish, house.row().moderation) == ("stop", said)


async def test_otherwise_it_is_refused_and_costs_nothing(house: House) -> None:
    house.outside.fault = ValueError("not JSON")
    with pytest.raises(ModerationUnavailable) as refused:
        await fold(house.generate(house.moderators(house.service()))(asking("Hello")))
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (503, "moderation_unavailable", 5)
    with house.database.connect() as connection:
        assert connection.execute(select(ledger)).all() == []


@pytest.mark.parametrize("stage", ["during", "after"])
async def test_an_answer_that_cannot_be_looked_at_fails_and_costs_nothing(house: House, stage: Stage) -> None:
    house.outside.fault = TimeoutError()
    with pytest.raises(ModerationUnavailable):
        await fold(house.generate(house.moderators(house.service((stage,))))(asking("count to 30")))
    row = house.row()
    assert (row.state, row.finish, row.moderation, row.cost) == ("aborted", "failed", "svc:unavailable", 0)


async def test_who_does_not_answer_is_left_alone_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now, outside = [0.0], Outside()
    noted: list[Judged] = []
    service = Service(ModeratorSettings(kind="service", name="svc"), outside, ticks=lambda: now[0], note=noted.append)
    outside.fault = OSError("secret")
    for _ in range(MOST_FAILURES + 5):
        with pytest.raises(Exception, match=r"OSError|left alone"):
            await service.look(["x"], [])
    assert len(outside.asked) == MOST_FAILURES
    now[0] += PAUSE_S
    outside.open.clear()
    probe = asyncio.create_task(service.look(["x"], []))
    await asyncio.sleep(0)
    with pytest.raises(Exception, match="left alone"):  # one asks, the others do not wait for it
        await service.look(["x"], [])
    outside.fault = None
    outside.open.set()
    await probe
    await service.look(["x"], [])
    assert len(outside.asked) == MOST_FAILURES + 2
    told = [record.message for record in caplog.records]
    assert told == ["the moderator 'svc' cannot be asked: OSError", "the moderator 'svc' answers again"]
    asked, left = Judged("svc", "failed", 0.0), Judged("svc", "failed")
    passed = Judged("svc", "passed", 0.0)
    assert noted == [asked] * MOST_FAILURES + [left] * 6 + [passed] * 2


async def test_it_is_noted_how_long_a_service_took(house: House) -> None:
    now, noted = [0.0], list[Judged]()
    service = Service(ModeratorSettings(kind="service"), house.outside, ticks=lambda: now[0], note=noted.append)
    house.outside.open.clear()
    asked = asyncio.create_task(service.look(["evil"], []))
    await asyncio.sleep(0)
    now[0] += 2.5
    house.outside.open.set()
    await asked
    house.outside.open.clear()
    given_up = asyncio.create_task(service.look(["x"], []))
    await asyncio.sleep(0)
    given_up.cancel()  # nothing came of it
    await asyncio.wait({given_up})
    assert noted == [Judged("service", "flagged", 2.5)]


async def test_a_slow_one_is_not_waited_for(house: House) -> None:
    house.outside.open.clear()
    service = Service(ModeratorSettings(kind="service", timeout=0.01), house.outside)
    with pytest.raises(Exception, match="TimeoutError"):
        await service.look(["x"], [])
    assert house.outside.now == 0


# -------------------------------------------------------------------------------------------------------------- during


def told(*pieces: str, choices: int = 1, kind: Any = TextDelta) -> Generate:
    """An engine that says these in turn, for each choice, and counts what was taken of it."""

    async def generate(request: Request) -> Events:
        yield Started(Usage(prompt_text=5))
        made = [0] * choices
        for piece in pieces:
            for index in range(choices):
                made[index] += 1
                if kind is ToolCallDelta:
                    yield ToolCallDelta(
                        index, 0, "c" * (made[index] == 1), "f" * (made[index] == 1), piece, made[index]
                    )
                else:
                    yield kind(index, piece, made[index])
        for index in range(choices):
            yield Finish(index, "stop", Usage(prompt_text=5, completion=sum(made)))

    return generate


async def shown(moderators: Moderators, engine: Generate, **more: Any) -> tuple[str, list[Event]]:
    """The text that goes on, and all events."""
    async with aclosing(moderators.answer(engine)(asking("x", **more))) as events:
        seen = [event async for event in events]
    texts = (getattr(event, "text", getattr(event, "arguments", "")) for event in seen)
    return "".join(texts), seen


@pytest.mark.parametrize("kind", [TextDelta, ReasoningDelta, ToolCallDelta])
@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["no ", "mur", "der"], "no "),
        (["m", "u", "r", "d", "e", "r", " then"], ""),
        (["they kill", " ", "them"], "they "),
        (["all well ", "and ", "good ", "murder"], "all well and good "),
        (["all well, ", "murderers"], None),
        (["k", "ill", " the", "n"], None),
    ],
)
async def test_nothing_of_a_word_goes_out(house: House, kind: Any, pieces: list[str], text: str | None) -> None:
    given_on, seen = await shown(house.moderators(Words(LISTS)), told(*pieces, kind=kind), stream=True)
    last = seen[-1]
    assert isinstance(last, Finish)
    if text is None:
        assert (given_on, last.reason, last.moderation) == ("".join(pieces), "stop", "")
    else:
        assert "".join(pieces).startswith(given_on)
        assert len(given_on) <= len(text)
        assert (last.reason, last.moderation) == ("content_filter", "words:violence")
        assert 1 <= last.usage.completion <= len(pieces)
        assert last.usage.reasoning == (last.usage.completion if kind is ReasoningDelta else 0)


async def test_what_is_held_back_is_counted_as_it_is_made(house: House) -> None:
    async with aclosing(house.moderators(Words(LISTS)).answer(told("they ", "kill ", "time"))(asking("x"))) as events:
        seen = [event async for event in events]
    told_of = [(type(event).__name__, getattr(event, "completion", 0)) for event in seen[1:-1]]
    assert told_of == [
        ("TextDelta", 1), ("Progress", 2), ("Progress", 3), ("TextDelta", 2), ("TextDelta", 3),
    ]  # fmt: skip


async def test_all_choices_end_with_the_one(house: House) -> None:
    pieces = ["all ", "is ", "well ", "murder ", "and more"]
    text, seen = await shown(house.moderators(Words(LISTS)), told(*pieces, choices=3), choices=3, stream=True)
    ends = [event for event in seen if isinstance(event, Finish)]
    assert [(end.index, end.reason) for end in ends] == [(index, "content_filter") for index in range(3)]
    assert {end.usage.completion for end in ends} == {10}  # four of the first, three of the others
    assert "murder" not in text


async def test_a_word_is_not_made_of_two_choices_or_of_thoughts_and_text(house: House) -> None:
    async def apart(request: Request) -> Events:
        yield Started(Usage(prompt_text=1))
        yield ReasoningDelta(0, "mur", 1)
        yield TextDelta(0, "der", 2)
        yield TextDelta(1, "mur", 1)
        yield ToolCallDelta(1, 0, "c1", "f", "mur", 2)
        yield ToolCallDelta(1, 1, "c2", "f", "der", 3)
        for index in range(2):
            yield Finish(index, "stop", Usage(prompt_text=1, completion=5))

    text, seen = await shown(house.moderators(Words(LISTS)), apart, choices=2, stream=True)
    assert sorted(text) == sorted("murdermurmurder")
    assert [type(event) for event in seen if not isinstance(event, Progress)][1:3] == [ReasoningDelta, TextDelta]


async def test_the_engine_stops_and_what_it_made_is_booked(house: House) -> None:
    closed = asyncio.Event()

    async def endless(request: Request) -> Events:
        yield Started(Usage(prompt_text=5))
        try:
            for number in range(10**9):
                yield TextDelta(0, "murder " if number == 20 else f"{number} ", number + 1)
        finally:
            closed.set()

    answer = await fold(house.generate(house.moderators(Words(LISTS)), endless)(asking("x", stream=True)))
    assert closed.is_set()
    assert answer.choices[0].reason == "content_filter"
    assert answer.choices[0].text.startswith("0 1 2 3 ")
    row = house.row()
    assert (row.state, row.finish, row.moderation, row.out) == ("final", "content_filter", "words:violence", 21)


async def test_who_hangs_up_pays_what_was_made_though_it_was_held_back(house: House) -> None:
    generate = house.generate(house.moderators(house.service(("after",))), told(*["x "] * 7))
    async with aclosing(generate(asking("x"))) as events:
        assert isinstance(await anext(events), Started)
        house.outside.open.clear()
        waiting = asyncio.ensure_future(anext(events))
        await house.outside.called.wait()
        waiting.cancel()
        await asyncio.wait({waiting})
    assert (house.row().finish, house.row().out) == ("gone", 7)
    assert house.outside.now == 0


async def test_a_service_is_asked_while_the_answer_goes_on_one_question_at_a_time(house: House) -> None:
    engine = house.moderators(house.service(("during",))).answer(told(*["0123456789"] * 12, choices=2))
    house.outside.open.clear()
    async with aclosing(engine(asking("x", choices=2, stream=True))) as events:
        seen: list[Event] = []
        for _ in range(21):
            seen.append(await anext(events))
            await asyncio.sleep(0)
        assert [type(event) for event in seen] == [Started, *[Progress] * 20]  # the engine was not waited for
        assert len(house.outside.asked) == 1
        house.outside.open.set()
        seen += [event async for event in events]
    assert house.outside.most == 1
    assert max(len(text) for texts, _ in house.outside.asked for text in texts) <= 120
    assert sum(isinstance(event, TextDelta) for event in seen) == 24


async def test_a_chunk_is_held_back_behind_what_has_passed(house: House) -> None:
    """`evil` begins in one chunk and ends in the next: nothing of it goes out."""
    pieces = ["01234567", "ev", "il is here", "x" * 30]

    async def slow(request: Request) -> Events:
        async with aclosing(told(*pieces)(request)) as events:
            async for event in events:
                yield event
                for _ in range(3):  # so that the question is answered by the next
                    await asyncio.sleep(0)

    text, seen = await shown(house.moderators(house.service(("during",))), slow, stream=True)
    assert text == ""
    assert isinstance(seen[-1], Finish)
    assert seen[-1].moderation == "svc:hate"


# --------------------------------------------------------------------------------------------------------------- after


@pytest.mark.parametrize(("stream", "most"), [(False, 0), (True, 20)])
async def test_the_whole_is_looked_at_and_its_end_waits(house: House, stream: bool, most: int) -> None:
    pieces = ["good ", "day ", "to ", "you ", "and ", "evil"]
    text, seen = await shown(house.moderators(house.service(("after",))), told(*pieces), stream=stream)
    assert house.outside.asked == [(["".join(pieces)], [])]
    assert "".join(pieces)[: len("".join(pieces)) - 10].startswith(text)
    assert len(text) <= most
    assert isinstance(seen[-1], Finish)
    assert (seen[-1].reason, seen[-1].moderation) == ("content_filter", "svc:hate")
    text, seen = await shown(house.moderators(house.service(("after",))), told("good day"), stream=stream)
    assert text == "good day"


async def test_an_answer_without_words_is_asked_about_by_nobody(house: House) -> None:
    _, seen = await shown(house.moderators(house.service()), told(""))
    assert house.outside.asked == []
    assert isinstance(seen[-1], Finish)
    assert seen[-1].reason == "stop"


# ---------------------------------------------------------------------------------------------------- terms, and caches


async def test_a_tenant_can_be_without_one(house: House) -> None:
    house.terms = ModerationTerms(off=("words",))
    said = await fold(house.generate(house.moderators(Words(LISTS)))(asking("a murder")))
    assert said.choices[0].text == "You said: a murder"


async def test_what_lists_of_words_say_of_a_text_is_said_at_once(house: House) -> None:
    passes = house.moderators(Words(LISTS)).instant("acme")
    assert passes is not None
    assert [passes("all is well"), passes("a murder")] == [True, False]
    assert house.moderators(Words(LISTS), house.service(("during",))).instant("acme") is None
    assert house.moderators(Words(LISTS), house.service(("before",))).instant("acme") is None
    moderators = house.moderators(Words(LISTS, stages=("before",)))
    nobody = moderators.instant("acme")
    assert nobody is not None
    assert nobody("a murder")
    assert moderators.instant("acme") is nobody  # so that whoever keeps it sees when it changes
    house.terms = ModerationTerms(off=("words",))
    assert moderators.instant("acme") is not nobody
    house.terms = ModerationTerms(off=("svc",))
    assert house.moderators(Words(LISTS), house.service()).instant("acme") is not None


async def test_other_moderators_have_another_fingerprint() -> None:
    house = House(create_engine("sqlite://"))
    sets: list[list[Moderator]] = [
        [], [Words(LISTS)], [Words({"a": ["x"]})], [Words(LISTS, stages=("before",))], [house.service()],
        [house.service(model="other")], [house.service(), Words(LISTS)], [Words(LISTS), house.service()],
    ]  # fmt: skip
    prints = [await house.moderators(*each).fingerprint("acme") for each in sets]
    assert len(set(prints)) == len(sets)
    assert await house.moderators(Words(LISTS)).fingerprint("acme") == prints[1]
    house.terms = ModerationTerms(off=("svc",))
    assert await house.moderators(Words(LISTS), house.service()).fingerprint("acme") == prints[1]


async def test_by_itself_every_message_gets_its_own_verdict(house: House) -> None:
    moderators = house.moderators(Words(LISTS), house.service())
    messages = [Message("user", (Text(text),)) for text in ("fine", "a murder", "evil")]
    found = await moderators.judge("acme", messages)
    assert [(each.flagged, each.categories) for each in found] == [
        (False, ()), (True, ("violence",)), (True, ("hate",)),
    ]  # fmt: skip
    assert found[0].scores == {"violence": 0.0, "hate": 0.1}
    house.outside.fault, house.terms = OSError(), ModerationTerms(on_failure="flag")
    assert [each.flagged for each in await moderators.judge("acme", messages[:1])] == [True]
    house.terms = ModerationTerms(on_failure="open")
    assert [each.flagged for each in await moderators.judge("acme", messages[:1])] == [False]
    house.terms = ModerationTerms()
    with pytest.raises(ModerationUnavailable):
        await moderators.judge("acme", messages[:1])


# ------------------------------------------------------------------------------------------------------------- at large


@settings(max_examples=60)
@given(
    pieces=st.lists(st.sampled_from(["mur", "der", " ", "kill", "them", "x", "evil ", "y. "]), min_size=1, max_size=20),
    stages=st.sets(st.sampled_from(["during", "after"]), min_size=1),
    stream=st.booleans(),
)
def test_whatever_is_said_no_more_than_a_clean_beginning_goes_out(
    pieces: list[str], stages: set[Stage], stream: bool
) -> None:
    async def play() -> None:
        house = House(create_engine("sqlite://"))  # whose ledger is not asked
        words = Words(LISTS)
        moderators = house.moderators(words, house.service(tuple(stages)))
        text, seen = await shown(moderators, told(*pieces), stream=stream)
        whole = "".join(pieces)
        last = seen[-1]
        assert isinstance(last, Finish)
        assert whole.startswith(text)
        if not words.passes(whole):
            assert words.passes(text)
            assert last.reason == "content_filter"
        if last.reason == "stop":
            assert text == whole

    asyncio.run(play())
