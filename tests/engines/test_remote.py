"""An engine behind a socket: what is peculiar to that. tests/contracts asks it what every engine is asked."""

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client.core import GaugeMetricFamily

from qwen3vl_compat import errors
from qwen3vl_compat.engines import EngineUnusable, channel, protocol, remote
from qwen3vl_compat.engines import host as host_module
from qwen3vl_compat.engines.channel import Channel
from qwen3vl_compat.engines.host import Host
from qwen3vl_compat.engines.local.engine import LocalEngine
from qwen3vl_compat.engines.protocol import AHEAD, FromEngine, Generate, Share, Step
from qwen3vl_compat.engines.remote import RemoteEngine
from qwen3vl_compat.engines.scripted import ScriptedEngine
from qwen3vl_compat.errors import ApiError, EngineFailed, InvalidRequest, Overloaded, TooSlow
from qwen3vl_compat.events import Event, Events, Finish, Started, TextDelta, Usage, fold
from qwen3vl_compat.messages import (
    Message,
    OutputFormat,
    Part,
    Picture,
    Request,
    Sampling,
    Text,
    Tool,
    ToolResult,
    Video,
)
from qwen3vl_compat.settings import load_settings
from tests.engines.across import across
from tests.serving import UNCOMPILED


class Tried(ScriptedEngine):
    """Keeps what it is asked, and fails when it is told to."""

    def __init__(self, *, pause: float = 0.0) -> None:
        super().__init__(load_settings(environment={"QWEN3VL_MODEL__PAUSE": str(pause)}))
        self.asked: list[Request] = []
        self.taken = 0
        self.failure: Exception | None = None

    async def check(self, request: Request) -> None:
        if self.failure is not None:
            raise self.failure

    async def generate(self, request: Request) -> Events:
        self.asked.append(request)
        async for event in super().generate(request):
            self.taken += 1
            yield event
            if self.failure is not None:
                raise self.failure


@pytest.fixture
def near() -> Tried:
    return Tried()


@pytest.fixture
async def host(near: Tried) -> Host:
    return Host(near)


@pytest.fixture
async def far(host: Host) -> AsyncIterator[RemoteEngine]:
    async with across(host) as engine:
        yield engine


def ask(*parts: Part, **more: Any) -> Request:
    return Request(id="r", created=0, model="qwen3-vl", messages=(Message("user", parts),), **more)


HELD = ask(Text("Hi"), format=OutputFormat(kind="json_object"))
"""A request whose answer is held to something."""


async def until(found: Any) -> None:
    async with asyncio.timeout(20):
        while not found():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


# ---------------------------------------------------------------------------------------------------------- requests


async def test_a_request_with_everything_arrives_as_it_was(near: Tried, far: RemoteEngine) -> None:
    def picture(size: int, grid: tuple[int, int, int] = (1, 2, 2)) -> Picture:
        return Picture(digest=f"{size}", patches=bytes(range(256)) * (size // 256), grid=grid, width=9, height=9)

    pairs = tuple(replace(picture(size), frames=2) for size in (2**20, 256, 0))
    message = Message("user", (Text("Hi"), picture(protocol.PIECE), Video(pairs, (0.5, 1.5, 2.5))))
    result = Message("tool", (ToolResult("1", "f", (picture(protocol.PIECE * 3 + 256), Text("there"))),))
    request = replace(
        ask(), messages=(message, result), sampling=Sampling(seed=2**63 - 1, stop=("x",), logit_bias=((1, -1.5),))
    )
    await fold(far.generate(request))
    assert near.asked == [request]


async def test_large_pictures_do_not_hold_up_others(near: Tried, far: RemoteEngine) -> None:
    """100 MB; an answer that is under way goes on while they are handed over."""
    large = Picture(digest="d", patches=bytes(100_000_000), grid=(1, 2, 2), width=9, height=9)
    counting = far.generate(ask(Text("count to 100000")))
    await anext(counting)
    handing = asyncio.create_task(fold(far.generate(ask(large))))
    seen = 0
    while not handing.done():
        await anext(counting)
        seen += 1
    await counting.aclose()
    assert near.asked[-1].messages[0].parts == (large,)
    assert seen > 100


async def test_a_text_that_is_too_large_is_refused(far: RemoteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "LARGEST", 2**20)
    large = ask(Text("x" * 2**20))
    for asked in (far.count(large), far.check(replace(large, format=HELD.format)), fold(far.generate(large))):
        with pytest.raises(InvalidRequest, match="can be handed to the model") as refused:
            await asked
        assert (refused.value.status, refused.value.code) == (413, "request_too_large")
    assert (await far.count(ask(Text("Hi")))).prompt_text == 5


async def test_many_at_once_are_told_apart(far: RemoteEngine, host: Host) -> None:
    async def one(number: int) -> tuple[str, Usage]:
        request = ask(Text(f"say exactly: {number}"))
        return (await fold(far.generate(request))).choices[0].text, await far.count(request)

    answers = await asyncio.gather(*map(one, range(300)))
    assert [text for text, _ in answers] == [str(number) for number in range(300)]
    assert host.running == 0


# ------------------------------------------------------------------------------------------------------------ rooms


async def test_the_room_comes_with_the_count(far: RemoteEngine, near: Tried) -> None:
    request = ask(Text("Hello there"), sampling=Sampling(max_tokens=7))
    assert far.room(request, await far.count(request)) == 7
    request = ask(Text("Hello there"))
    assert far.room(request, usage := await far.count(request)) == near.room(request, usage) == 32_768 - 6
    crowded = ask(Text("word " * 33_000))
    usage = await far.count(crowded)
    with pytest.raises(InvalidRequest) as refused:
        far.room(crowded, usage)
    assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")


async def test_an_uncounted_prompt_has_the_contexts_room(far: RemoteEngine) -> None:
    assert far.room(ask(Text("Hi")), Usage(prompt_text=700)) == 32_068
    assert far.room(ask(Text("Hi"), sampling=Sampling(max_tokens=5)), Usage(prompt_text=700)) == 5


# ----------------------------------------------------------------------------------------------------------- errors

FIELDS: dict[str, Any] = {"headers": (("x-a", "b"),)}
KINDS = [
    ApiError("m", param="p", code="c", status=418, retry_after=3, headers=(("x-a", "b"),)),
    errors.InvalidRequest("m", param="messages[0]", status=413),
    errors.Unauthorized("m"),
    errors.Forbidden("m"),
    errors.NotFound("m", param="model", code="model_not_found"),
    errors.TooSlow("m"),
    errors.RateLimited("m", quota="tokens", retry_after=9, **FIELDS),
    errors.OutOfCredit("m", quota="budget", **FIELDS),
    errors.Overloaded("m", retry_after=7),
    errors.ModerationUnavailable("words:failed"),
    errors.ContentRefused(),
    errors.DeadlineExceeded("m"),
    errors.EngineFailed("m"),
]


def test_every_kind_of_error_is_tried() -> None:
    assert {type(error) for error in KINDS} == {ApiError, *ApiError.__subclasses__()}


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
async def test_errors_go_through_as_they_were(error: ApiError, near: Tried, far: RemoteEngine) -> None:
    near.failure = error
    for asked in (far.check(HELD), fold(far.generate(ask(Text("Hi"))))):
        with pytest.raises(ApiError) as raised:
            await asked
        assert type(raised.value) is type(error)
        assert vars(raised.value) == vars(error)
        assert (str(raised.value), raised.value.quota) == (str(error), error.quota)


@pytest.mark.parametrize(
    "held",
    [
        {"format": OutputFormat(kind="regex", value="a")},
        {"tools": (Tool(name="f"),)},
        {"sampling": Sampling(logit_bias=((1, 1.0),))},
        {"sampling": Sampling(stop_tokens=(1,))},
    ],
)
async def test_what_is_held_to_something_is_checked(held: Any, near: Tried, far: RemoteEngine) -> None:
    near.failure = InvalidRequest("m")
    await far.check(ask(Text("Hi")))
    with pytest.raises(InvalidRequest):
        await far.check(ask(Text("Hi"), **held))


async def test_any_other_error_is_the_engines_and_logged(
    near: Tried, far: RemoteEngine, caplog: pytest.LogCaptureFixture
) -> None:
    near.failure = ValueError("secret")
    events = far.generate(ask(Text("Hi")))
    assert isinstance(await anext(events), Started)
    with pytest.raises(EngineFailed) as raised, caplog.at_level(logging.ERROR):
        await anext(events)
    assert "secret" not in raised.value.message
    assert "ValueError: secret" in caplog.text
    near.failure = None
    assert (await fold(far.generate(ask(Text("Hi"))))).choices[0].text == "You said: Hi"


# ----------------------------------------------------------------------------------------- who leaves, who is slow


async def test_closing_ends_the_generation(host: Host, near: Tried, far: RemoteEngine) -> None:
    events = far.generate(ask(Text("count to 100000")))
    for _ in range(5):
        await anext(events)
    assert host.running == 1
    await events.aclose()
    await until(lambda: host.running == 0)
    assert near.taken < 5 + 2 * AHEAD


async def test_leaving_while_pictures_are_handed_over_begins_nothing(near: Tried, far: RemoteEngine) -> None:
    large = Picture(digest="d", patches=bytes(200_000_000), grid=(1, 2, 2), width=9, height=9)
    asking = asyncio.create_task(anext(far.generate(ask(large))))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait({asking})
    assert asking.cancelled()
    await fold(far.generate(ask(Text("Hi"))))
    assert len(near.asked) == 1


async def test_a_question_nobody_waits_for_is_given_up(far: RemoteEngine, near: Tried) -> None:
    ended: list[str] = []

    async def forever(request: Request) -> Usage:
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            ended.append("ended")

    near.count = forever  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await far.count(ask(Text("Hi")))
    await until(lambda: ended)


async def test_a_slow_reader_gets_everything_and_little_is_kept_for_it(
    far: RemoteEngine, near: Tried, host: Host
) -> None:
    events = far.generate(ask(Text("count to 3000")))
    told: list[Event] = [await anext(events)]
    await asyncio.sleep(0.2)
    assert near.taken <= AHEAD + 2
    told += [event async for event in events]
    text = "".join(event.text for event in told if isinstance(event, TextDelta))
    assert text == " ".join(str(number + 1) for number in range(3000))
    assert isinstance(told[-1], Finish)
    assert told[-1].usage.completion == 3000
    await until(lambda: host.running == 0)


async def test_the_engine_gives_up_who_takes_nothing() -> None:
    """What it has waited for is what this test is about: its own patience, seen from behind the socket."""
    near = LocalEngine(load_settings(flags={"model.take_idle": 0.3}, environment=UNCOMPILED))
    await near.start()
    async with across(near) as far:
        sampling = Sampling(temperature=2.0, top_p=1.0, top_k=0, max_tokens=5000, ignore_eos=True, seed=1)
        events = far.generate(ask(Text("Hello"), sampling=sampling))
        assert isinstance(await anext(events), Started)
        assert near._worker is not None
        await until(lambda: near._worker is not None and near._worker.busy)
        await until(lambda: near._worker is not None and not near._worker.busy)
        with pytest.raises(TooSlow):
            async for _ in events:
                pass
    await near.close()


async def test_a_step_of_all_requests_is_one_message() -> None:
    class Together(ScriptedEngine):
        """All its answers advance at once, as those of a model do."""

        def __init__(self) -> None:
            super().__init__()
            self.bell = asyncio.Event()

        async def generate(self, request: Request) -> Events:
            yield Started(Usage(prompt_text=1))
            for number in itertools.count(1):
                await self.bell.wait()
                yield TextDelta(0, "a", number)

    near, steps = Together(), list[Step]()
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(Host(near).serve(ours))

    def take(message: FromEngine) -> None:
        if isinstance(message, Step):
            steps.append(message)

    front: Channel[FromEngine] = Channel(FromEngine, take, lambda: None)
    await front.open(theirs)
    for number in range(16):
        front.send(Generate(number, ask(Text("Hi")), []))
    await until(lambda: sum(len(step.shares) for step in steps) == 16)
    steps.clear()
    for turn in range(1, 4):
        near.bell.set()
        near.bell.clear()
        await until(lambda turn=turn: len(steps) == turn)
    assert [sorted(share.number for share in step.shares) for step in steps] == [[*range(16)]] * 3
    assert steps[0].shares[0] == Share(steps[0].shares[0].number, [TextDelta(0, "a", 1)])
    await front.close()
    await serving


async def test_a_step_that_is_too_large_is_sent_in_parts(far: RemoteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def one(size: int) -> str:
        return (await fold(far.generate(ask(Text("say exactly: " + "x" * size))))).choices[0].text

    monkeypatch.setattr(channel, "LARGEST", 5000)
    assert [len(text) for text in await asyncio.gather(*map(one, [4000] * 8))] == [4000] * 8


# -------------------------------------------------------------------------------------------------- life and death


async def test_a_front_that_dies_frees_its_places(host: Host) -> None:
    async with across(host) as one, across(host) as other:
        left = [one.generate(ask(Text("count to 100000"))) for _ in range(5)]
        kept = other.generate(ask(Text("count to 2000")))
        for events in (*left, kept):
            await anext(events)
        assert host.running == 6
        one._channel._transport.abort()
        await until(lambda: host.running == 1)
        assert len([event async for event in kept]) > 2000
        for events in left:
            with pytest.raises(EngineFailed):
                async for _ in events:
                    pass


async def test_an_engine_that_dies_ends_everything_with_an_error(near: Tried) -> None:
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task((host := Host(near)).serve(ours))
    host.ready = True
    far = await RemoteEngine.connect(theirs)
    await far.start()
    assert far.alive
    events = far.generate(ask(Text("count to 100000")))
    await anext(events)
    serving.cancel()
    await asyncio.wait({serving})
    async with asyncio.timeout(20):
        await far.lost.wait()
    assert not far.alive
    with pytest.raises(EngineFailed):
        async for _ in events:
            pass
    for asked in (far.count(ask(Text("Hi"))), fold(far.generate(ask(Text("Hi")))), far.collect()):
        with pytest.raises(Overloaded) as refused:
            await asked
        assert refused.value.retry_after == 5
    with pytest.raises(EngineUnusable):
        await far.start()
    await far.disconnect()


async def test_nobody_at_the_other_end_is_said_so() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(EngineUnusable, match="has ended"):
        await RemoteEngine.connect(ours)


async def test_it_is_alive_once_the_engine_is_and_as_long_as_it_says_so(
    near: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    host = Host(near)
    serving = asyncio.create_task(host.serve(ours))
    far = await RemoteEngine.connect(theirs)
    assert far.models() == near.models()
    assert far.vision == near.vision
    starting = asyncio.create_task(far.start())
    await asyncio.sleep(0.5)
    assert not far.alive
    assert not starting.done()
    host.ready = True
    await asyncio.wait_for(starting, 20)
    assert far.alive
    near.alive = False  # type: ignore[misc]
    await until(lambda: not far.alive)
    near.alive = True  # type: ignore[misc]
    await until(lambda: far.alive)
    monkeypatch.setattr(remote, "SILENT", 0.0)
    assert not far.alive
    await far.close()
    await far.disconnect()
    await serving


async def test_closing_gives_up_what_is_asked_and_words_still_go_through(near: Tried) -> None:
    ours, theirs = socket.socketpair()
    heard: list[bytes] = []
    serving = asyncio.create_task((host := Host(near)).serve(ours, heard.append))
    far = await RemoteEngine.connect(theirs)
    events = far.generate(ask(Text("count to 100000")))
    await anext(events)
    await far.close()
    with pytest.raises(Overloaded, match="stopping"):
        async for _ in events:
            pass
    await until(lambda: host.running == 0)
    far.say(b"words")
    await far.disconnect()
    await serving
    assert heard == [b"words"]


async def test_a_front_that_says_nothing_is_given_up(near: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no more can be sent to it; a process that was stopped is such a one."""
    monkeypatch.setattr(host_module, "UNHEARD", 3)
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(2**16))
        await asyncio.wait_for(Host(near).serve(ours), 30)


async def test_a_front_that_has_nothing_to_ask_is_heard_all_the_same(
    near: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "UNHEARD", 3)
    async with across(Host(near)) as far:
        await asyncio.sleep(10 * host_module.BEAT_S)
        assert not far.lost.is_set()


async def test_figures_are_the_engines_and_what_is_told_beside() -> None:
    near = LocalEngine(load_settings(environment=UNCOMPILED))
    await near.start()
    more = GaugeMetricFamily("beside", "told too", labels=("model",))
    more.add_metric(("m",), 2.5)
    async with across(Host(near, lambda: [more])) as far:
        await fold(far.generate(ask(Text("Hello"), sampling=Sampling(max_tokens=3))))
        told = [*await far.collect()]
        expected = [*await near.collect(), more]
        assert [each.name for each in told] == [each.name for each in expected]
        for one, other in zip(told, expected, strict=True):
            assert (one.type, one.documentation, one.unit) == (other.type, other.documentation, other.unit)
            assert [line[:3] for line in one.samples] == [line[:3] for line in other.samples]
    await near.close()
