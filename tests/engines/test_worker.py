"""The engine in trouble: failures stay with the request they belong to, and nothing is left behind."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.engines.local import worker
from qwen3vl_compat.engines.local.engine import LOST, LocalEngine
from qwen3vl_compat.engines.local.job import Job
from qwen3vl_compat.errors import ApiError, EngineFailed, InvalidRequest, Overloaded, TooSlow
from qwen3vl_compat.events import Completion, Finish, Started, TextDelta, Usage, fold
from qwen3vl_compat.media.image import decode_image
from qwen3vl_compat.messages import Caller, Message, Request, Sampling, Text
from qwen3vl_compat.settings import load_settings
from tests.serving import UNCOMPILED


async def started(**flags: Any) -> LocalEngine:
    engine = LocalEngine(
        load_settings(flags={f"model.{name}": value for name, value in flags.items()}, environment=UNCOMPILED)
    )
    await engine.start()
    return engine


@pytest.fixture
async def engine() -> AsyncIterator[LocalEngine]:
    made = await started()
    yield made
    await made.close()


def ask(engine: LocalEngine, text: str = "Hello", *, tenant: str = "t", picture: bool = False, **more: Any) -> Request:
    parts: tuple[Any, ...] = (Text(text),)
    if picture:
        parts = (decode_image(SAMPLE.read_bytes(), engine.vision), *parts)
    sampling = Sampling(temperature=0.0, max_tokens=more.pop("max_tokens", 24))
    return Request(
        id="r", created=0, model="qwen3-vl", messages=(Message("user", parts),), sampling=sampling,
        caller=Caller(tenant, "k"), **more,
    )  # fmt: skip


async def outcome(engine: LocalEngine, request: Request) -> Completion | ApiError:
    try:
        return await fold(engine.generate(request))
    except ApiError as error:
        return error


async def idle(engine: LocalEngine) -> None:
    """Wait until nothing runs; then nothing may be left behind."""
    assert engine._worker is not None
    for _ in range(200):
        if not engine._worker.busy:
            break
        await asyncio.sleep(0.02)
    engine._worker.check()


async def test_a_crowd_that_hangs_up_leaves_nothing_behind(engine: LocalEngine) -> None:
    rng = Random(4)
    whole = await outcome(engine, ask(engine, "Read the text.", picture=True))

    async def one(number: int) -> None:
        request = ask(engine, "Read the text.", picture=True, tenant=f"t{number % 3}", choices=1 + number % 3)
        events = engine.generate(request)
        leave = rng.choice((None, 0, 1, 3))
        texts = ""
        try:
            async for place, event in counted(events):
                if leave is not None and place >= leave:
                    return
                texts += event.text if isinstance(event, TextDelta) and event.index == 0 else ""
        finally:
            await events.aclose()
        assert isinstance(whole, Completion)
        assert texts == whole.choices[0].text

    await asyncio.gather(*(one(number) for number in range(32)))
    await idle(engine)


async def test_closing_stops_within_a_step(engine: LocalEngine) -> None:
    assert engine._worker is not None
    request = ask(engine, choices=4, max_tokens=5_000)
    events = engine.generate(replace(request, sampling=Sampling(temperature=2.0, max_tokens=5_000, seed=3)))
    for _ in range(3):
        await anext(events)
    await events.aclose()
    await asyncio.sleep(0.2)
    assert not engine._worker.busy
    told = {sample.name: sample.value for metric in await engine.collect() for sample in metric.samples}
    assert told["qwen3vl_generated_tokens_total"] < 2_000


async def test_metrics_tell_what_happened(engine: LocalEngine) -> None:
    for _ in range(2):
        await outcome(engine, ask(engine, "Read the text. " * 20, picture=True))
    await idle(engine)
    told = {sample.name: sample.value for metric in await engine.collect() for sample in metric.samples}
    assert told["qwen3vl_first_token_seconds_count"] == 2
    assert told["qwen3vl_inter_token_seconds_count"] == told["qwen3vl_generated_tokens_total"] - 2
    assert told["qwen3vl_prefix_hits_total"] >= 32
    assert (told["qwen3vl_running"], told["qwen3vl_waiting"], told["qwen3vl_kv_used_ratio"]) == (0, 0, 0)
    assert (told["qwen3vl_vision_queries_total"], told["qwen3vl_vision_hits_total"]) == (1, 0)
    assert told["qwen3vl_vision_bytes"] > 0


async def counted(events: Any) -> AsyncIterator[tuple[int, Any]]:
    place = 0
    async for event in events:
        yield place, event
        place += 1


async def test_one_that_fails_fails_alone(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine._worker is not None
    inner = engine._worker.runner.decode

    def fragile(sequences: Any) -> torch.Tensor:
        if any(each.tenant == "bad" for each in sequences):
            raise ValueError("boom")
        return inner(sequences)

    monkeypatch.setattr(engine._worker.runner, "decode", fragile)
    outcomes = await asyncio.gather(*(outcome(engine, ask(engine, tenant=name)) for name in ("a", "bad", "b", "bad")))
    assert [isinstance(each, EngineFailed) for each in outcomes] == [False, True, False, True]
    assert "boom" not in str(outcomes[1])
    await idle(engine)


@pytest.mark.parametrize("failing", [{0}, {1}, {0, 1}])
async def test_choices_that_fail_touch_no_other_request(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    """When one choice of a request fails, its siblings lose their rows, which others may stand in by then."""
    assert engine._worker is not None
    alone = await outcome(engine, ask(engine, "Read the text.", picture=True))
    inner = engine._worker.runner.decode

    def fragile(sequences: Any) -> Any:
        if any(each.tenant == "bad" and each.choice in failing for each in sequences):
            raise ValueError("boom")
        assert all(each.row is not None for each in sequences)
        return inner(sequences)

    monkeypatch.setattr(engine._worker.runner, "decode", fragile)
    wanted = [ask(engine, "Read the text.", tenant=name, picture=True, choices=2) for name in ("a", "bad", "b")]
    outcomes = await asyncio.gather(*(outcome(engine, each) for each in wanted))
    assert isinstance(outcomes[1], EngineFailed)
    for each in (outcomes[0], outcomes[2]):
        assert isinstance(each, Completion)
        assert isinstance(alone, Completion)
        assert [choice.text for choice in each.choices] == [alone.choices[0].text] * 2
    await idle(engine)
    assert engine.alive


async def test_no_memory_to_draw_sheds_and_goes_on(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = worker.draw, list[int]()

    def narrow(scores: Any, rows: Any) -> Any:
        calls.append(len(rows))
        if len(rows) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return whole(scores, rows)

    monkeypatch.setattr(worker, "draw", narrow)
    # Long enough for all three to be at it together, however late one of them comes.
    wanted = [
        ask(engine, tenant="a", max_tokens=200),
        ask(engine, "x " * 300, tenant="large", max_tokens=200),
        ask(engine, tenant="b", max_tokens=200),
    ]
    outcomes = await asyncio.gather(*(outcome(engine, each) for each in wanted))
    assert max(calls) == 3
    assert [isinstance(each, Overloaded) for each in outcomes] == [False, True, False]
    await idle(engine)


async def test_an_engine_that_has_failed_takes_no_more(engine: LocalEngine) -> None:
    assert engine._worker is not None
    engine._worker.abandon(EngineFailed("The engine failed."))
    assert not engine.alive
    assert isinstance(await outcome(engine, ask(engine)), Overloaded)


async def test_no_memory_sheds_the_largest(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine._worker is not None
    inner = engine._worker.runner.decode

    def narrow(sequences: Any) -> torch.Tensor:
        if any(each.tenant == "large" for each in sequences):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return inner(sequences)

    monkeypatch.setattr(engine._worker.runner, "decode", narrow)
    wanted = [ask(engine, tenant="a"), ask(engine, "x " * 300, tenant="large"), ask(engine, tenant="b")]
    outcomes = await asyncio.gather(*(outcome(engine, each) for each in wanted))
    assert [isinstance(each, Overloaded) for each in outcomes] == [False, True, False]
    await idle(engine)


async def test_a_step_that_hangs_makes_the_server_unready(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await started(stalled=0.2)
    assert engine._worker is not None
    inner = engine._worker.runner.compute

    def slow(pieces: Any) -> torch.Tensor:
        time.sleep(0.8)
        return inner(pieces)

    monkeypatch.setattr(engine._worker.runner, "compute", slow)
    answer = asyncio.create_task(outcome(engine, ask(engine)))
    await asyncio.sleep(0.5)
    assert not engine.alive
    assert isinstance(await answer, Completion)
    assert engine.alive
    await engine.close()


async def test_a_full_queue_and_a_long_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await started(max_waiting=3, max_rows=4, max_wait=0.3)
    assert engine._worker is not None
    inner = engine._worker.runner.decode
    monkeypatch.setattr(engine._worker.runner, "decode", lambda each: time.sleep(0.05) or inner(each))
    running = [asyncio.create_task(outcome(engine, ask(engine, choices=4))) for _ in range(1)]
    await asyncio.sleep(0.2)
    waiting = [asyncio.create_task(outcome(engine, ask(engine))) for _ in range(3)]
    await asyncio.sleep(0.1)
    refused = await outcome(engine, ask(engine))
    assert isinstance(refused, Overloaded)
    assert refused.retry_after
    assert all(isinstance(each, Overloaded) for each in await asyncio.gather(*waiting))
    assert all(isinstance(each, Completion) for each in await asyncio.gather(*running))
    await engine.close()


async def test_what_can_never_fit_is_told_so() -> None:
    engine = await started(kv_memory=0.003)
    assert engine._worker is not None
    room = engine._worker.scheduler.blocks.tokens
    refused = await outcome(engine, ask(engine, "x " * room))
    assert isinstance(refused, InvalidRequest)
    assert f"{room} tokens" in refused.message
    short = await outcome(engine, ask(engine, max_tokens=10_000))
    assert isinstance(short, Completion)
    await engine.close()


def lost(code: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import asyncio, torch
from tests.engines.test_worker import ask, outcome, started
async def main():
    engine = await started()
    def broken(*_): {code}
    engine._worker.runner.decode = broken
    print(type(await outcome(engine, ask(engine))).__name__, engine.alive, flush=True)
    await asyncio.sleep(5)
asyncio.run(main())
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_a_lost_device_ends_the_process_after_the_errors_went_out() -> None:
    ended = lost("raise torch.AcceleratorError('CUDA error: device-side assert triggered')")
    assert ended.returncode == LOST, ended.stderr
    assert ended.stdout.startswith("EngineFailed")


async def test_what_is_not_read_is_kept_short() -> None:
    job = Job(Any, SimpleNamespace(usage=Usage(prompt_text=1)), [Any, Any])  # type: ignore[arg-type]
    job.put(Started(Usage(prompt_text=1)))
    for count in range(1, 5):
        job.put(TextDelta(0, "a", count))
        job.put(TextDelta(1, "b", count))
    end = Usage(prompt_text=1, completion=8)
    job.put(Finish(0, "stop", end))
    job.put(Finish(1, "stop", end))
    events = [event async for event in job.events()]
    assert events[1:3] == [TextDelta(0, "aaaa", 4), TextDelta(1, "bbbb", 4)]
    assert len(events) == 5


async def test_a_reader_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await started(take_idle=0.2)
    assert engine._worker is not None
    inner = engine._worker.runner.decode
    monkeypatch.setattr(engine._worker.runner, "decode", lambda each: time.sleep(0.05) or inner(each))
    events = engine.generate(ask(engine))
    assert isinstance(await anext(events), Started)
    await asyncio.sleep(0.6)
    await idle(engine)
    with pytest.raises(TooSlow, match="not read in time"):
        assert len([event async for event in events]) == 1
    await engine.close()


async def test_what_was_pushed_out_is_not_begun_any_more() -> None:
    """The device's thread may begin it in the very moment in which it has to go."""
    job = Job(Any, SimpleNamespace(usage=Usage(prompt_text=1)), [Any])  # type: ignore[arg-type]
    job.put(Overloaded("no room"))
    job.put(Started(Usage(prompt_text=1)))
    with pytest.raises(Overloaded, match="no room"):
        await anext(job.events())
