"""Decoding, compiled behind a running engine: the same answers, kept on disk, and never in the way."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from msgspec.structs import replace

from qwen3vl_compat.demo import MODEL
from qwen3vl_compat.engines.local import compiling
from qwen3vl_compat.engines.local.checkpoint import read_checkpoint
from qwen3vl_compat.engines.local.compiling import Compiler, Recipe
from qwen3vl_compat.engines.local.engine import LocalEngine
from qwen3vl_compat.engines.local.packed import PackedLinear
from qwen3vl_compat.engines.local.runner import Runner
from qwen3vl_compat.settings import ModelSettings, load_settings
from tests.engines.test_worker import ask, idle, outcome

RECIPE = Recipe("Qwen3VLForConditionalGeneration", "{}", "float32", packed=False, rows=0, context=64)
"""Of nothing that could be compiled."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


async def engine_with(cache: Path, **flags: Any) -> LocalEngine:
    named = {"server.state_dir": str(cache), "model.max_rows": "6"} | {f"model.{k}": v for k, v in flags.items()}
    engine = LocalEngine(load_settings(flags=named, environment={}))
    await engine.start()
    return engine


async def compiled(engine: LocalEngine) -> bool:
    """Whether decoding is compiled, when that is settled."""
    assert engine._worker is not None
    for _ in range(3000):
        if not engine._worker.metrics.compiling:
            break
        await asyncio.sleep(0.1)
    return engine._worker.metrics.compiled


async def answers(engine: LocalEngine) -> list[Any]:
    """One alone, then several at once, longer than a window."""
    alone = await outcome(engine, ask(engine, "Read the text.", picture=True))
    asked = [ask(engine, f"{number} " * 40 * number, picture=number % 2 == 0, max_tokens=40) for number in range(6)]
    return [alone, *await asyncio.gather(*(outcome(engine, each) for each in asked))]


async def test_compiled_answers_are_the_plain_ones_and_compiling_stops_nobody(cache: Path) -> None:
    engine = await engine_with(cache)
    assert engine._worker is not None
    assert engine._worker.metrics.compiling
    plain = await answers(engine)
    assert engine._worker.metrics.compiling, "it was compiled before the first answers"
    assert await compiled(engine), "this test needs a C++ compiler: install g++"
    again = await answers(engine)  # of prompts whose beginnings are known by now
    assert [each.choices for each in again] == [each.choices for each in plain]
    await idle(engine)
    await engine.close()
    assert [path.name for path in (cache / "compiled").iterdir()] == [engine._compiler._recipe.name()]  # type: ignore[union-attr]


async def test_what_was_compiled_once_is_there_at_the_next_start(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_has_compiler", lambda: False)
    engine = await engine_with(cache)
    assert await compiled(engine)
    await engine.close()
    other = await engine_with(cache, max_rows="7")
    assert not await compiled(other), "another recipe took it"
    await other.close()


async def test_other_threads_go_on_during_a_compiled_step(cache: Path) -> None:
    runner = Runner(read_checkpoint(str(MODEL), ""), ModelSettings(device="cpu", max_rows=6))
    (folder,) = (cache / "compiled").iterdir()
    step = compiling.Compiled(folder, runner.decoder(runner.memory))
    inputs, ticks, stop = compiling.example(6, 2000, runner.memory.layers), list[float](), threading.Event()  # type: ignore[attr-defined]

    def tick() -> None:
        while not stop.wait(0.0005):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    inside = 0
    for _ in range(50):
        began = time.monotonic()
        step(*inputs)
        inside += any(began < at < time.monotonic() for at in ticks[-20:])
    stop.set()
    thread.join()
    assert inside > 10


async def test_a_damaged_step_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = (cache / "compiled").iterdir()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    damaged = next(folder.glob("one.*.so"))
    damaged.unlink()  # the library in use stays as it is
    damaged.write_bytes(whole[damaged.name][: len(whole[damaged.name]) // 2])

    def restored(self: Compiler, made: Path) -> bool:
        made.mkdir()
        for name, content in whole.items():
            (made / name).write_bytes(content)
        return True

    monkeypatch.setattr(Compiler, "_compile", restored)
    engine = await engine_with(cache)
    assert await compiled(engine)
    await engine.close()


async def test_a_compiled_step_that_says_something_else_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inner = compiling.Compiled.__call__

    def wrong(self: Any, *inputs: torch.Tensor) -> Any:
        mask = inputs[3].clone()
        mask[..., 0] = -torch.inf  # it overlooks one token of those before
        return inner(self, *inputs[:3], mask, *inputs[4:])

    monkeypatch.setattr(compiling.Compiled, "__call__", wrong)
    monkeypatch.setattr(compiling, "_has_compiler", lambda: False)
    engine = await engine_with(cache)
    assert not await compiled(engine)
    assert "logits are others" in caplog.text
    await engine.close()
    assert not list((cache / "compiled").iterdir()), "what is of no use is made again"


async def test_without_a_compiler_the_engine_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    engine = await engine_with(tmp_path)
    assert not await compiled(engine)
    assert "there is no C++ compiler" in caplog.text
    await engine.close()


@pytest.mark.parametrize(
    ("more", "reason"), [({"config": "{}"}, "Error"), ({"architecture": "NoSuchModel"}, "NoSuchModel")]
)
def test_a_model_that_cannot_be_compiled_is_told_in_a_line(
    more: dict[str, str], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bool] = []
    Compiler(replace(RECIPE, **more), tmp_path, lambda _: True, told.append)._work()
    assert told == [False]
    assert reason in caplog.text
    assert not list(tmp_path.iterdir())


async def test_closing_ends_the_child(tmp_path: Path) -> None:
    engine = await engine_with(tmp_path)
    compiler = engine._compiler
    assert compiler is not None
    for _ in range(500):
        if compiler._child is not None:
            break
        await asyncio.sleep(0.02)
    assert compiler._child is not None
    await engine.close()
    assert compiler._child.wait(5) != 0
    assert not compiler._thread.is_alive()
    assert not list((tmp_path / "compiled").iterdir())


def test_a_child_that_is_stopped_with_the_server_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[bool] = []
    compiler = Compiler(replace(RECIPE, rows=6), tmp_path, lambda _: True, told.append)
    compiler.start()
    while compiler._child is None:
        time.sleep(0.01)
    assert os.getpgid(compiler._child.pid) == compiler._child.pid, "a terminal's Ctrl-C does not reach it"
    compiler._child.terminate()
    compiler._thread.join(60)
    assert told == [False]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    compiler.close()


def test_the_child_ends_with_its_parent_and_leaves_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work-of-one"
    (work / "made").mkdir(parents=True)
    command = [sys.executable, "-m", compiling.__name__, str(work / "made")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdin is not None
    config = (MODEL / "config.json").read_text()
    child.stdin.write(msgspec.json.encode(replace(RECIPE, config=config, rows=6)) + b"\n")
    child.stdin.close()  # as the system does when the parent is killed
    assert child.wait(60) == 1
    assert not work.exists()


def test_only_the_steps_used_last_are_kept(tmp_path: Path) -> None:
    for number in range(compiling.KEPT + 3):
        (tmp_path / str(number)).mkdir()
        os.utime(tmp_path / str(number), (number, number))
    (tmp_path / "work-of-another").mkdir()
    Compiler(RECIPE, tmp_path, lambda _: True, lambda _: None)._prune()
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"work-of-another", *map(str, range(3, compiling.KEPT + 3))}


def test_two_servers_may_compile_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / RECIPE.name()

    def faster(_: Compiler, made: Path, work: Path) -> None:
        (made / "one.so").touch()
        folder.mkdir()
        (folder / "one.so").touch()

    monkeypatch.setattr(Compiler, "_run_child", faster)
    offered: list[Path] = []
    Compiler(RECIPE, tmp_path, lambda each: offered.append(each) or True, lambda _: None)._work()
    assert offered == [folder]
    assert list(tmp_path.iterdir()) == [folder]


def test_packed_layers_compute_what_plain_ones_do() -> None:
    torch.manual_seed(1)
    for bias in (True, False):
        plain = torch.nn.Linear(96, 160, bias=bias, dtype=torch.bfloat16).requires_grad_(requires_grad=False)
        packed = PackedLinear(plain)
        for rows in (1, 3, 50):
            values = torch.randn(2, rows, 96, dtype=torch.bfloat16)
            torch.testing.assert_close(packed(values), plain(values), rtol=0.02, atol=0.02)


def test_a_bfloat16_model_is_packed_and_a_float32_one_is_not() -> None:
    checkpoint = read_checkpoint(str(MODEL), "")
    for dtype in ("bfloat16", "float32"):
        runner = Runner(checkpoint, ModelSettings(device="cpu", dtype=dtype, max_rows=4))  # type: ignore[arg-type]
        kinds = {type(module) for module in runner._model.modules()}
        assert (PackedLinear in kinds) == (dtype == "bfloat16" and runner.packed)
        assert (torch.nn.Linear in kinds) != (PackedLinear in kinds)
