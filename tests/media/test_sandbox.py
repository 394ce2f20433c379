"""Children that die, hang or bloat cost one request a refusal and nobody else anything."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from qwen3vl_compat.errors import InvalidRequest, Overloaded
from qwen3vl_compat.media.image import decode_image
from qwen3vl_compat.media.jobs import Footage, PagesJob, PictureJob, Pictures
from qwen3vl_compat.media.limits import Bounds, VisionSpec
from qwen3vl_compat.media.sandbox import Sandbox, SandboxLimits
from tests.media.crafted import drawing, encoded
from tests.media.films import pdf_of
from tests.media.hostile import DOCUMENTS

SPEC = VisionSpec(min_pixels=1024, max_pixels=16_777_216)
PICTURE = PictureJob(spec=SPEC, bounds=Bounds())
PAGES = PagesJob(spec=SPEC, first=1, last=None, most=100, most_in_all=500, text=False, digest="d")
GOOD = encoded(drawing(320, 200), "PNG")
ENDLESS = DOCUMENTS["pdf whose forms draw a thousand million"]()


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    made = Sandbox(SandboxLimits(memory=2**30, jobs=5))
    await made.start()
    yield made
    await made.close()


def children() -> list[psutil.Process]:
    return [
        each
        for each in psutil.Process().children()
        if each.status() != psutil.STATUS_ZOMBIE and "qwen3vl_compat.media.child" in each.cmdline()
    ]


async def test_pictures_come_out_as_they_would_here(sandbox: Sandbox) -> None:
    for data in (GOOD, encoded(drawing(64, 640), "JPEG"), encoded(drawing(3000, 200), "WEBP")):
        reply = await sandbox.run(PICTURE, data)
        assert isinstance(reply, Pictures)
        assert reply.pictures == (decode_image(data, SPEC),)


async def test_a_file_is_read_where_it_lies(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(GOOD)
    reply = await sandbox.run(PICTURE, tmp_path / "picture")
    assert isinstance(reply, Pictures)
    assert reply.pictures == (decode_image(GOOD, SPEC),)


async def test_a_child_that_bloats_dies_alone(sandbox: Sandbox) -> None:
    async def good() -> None:
        for _ in range(20):
            await sandbox.run(PICTURE, GOOD)

    with pytest.raises(InvalidRequest, match="the PDF cannot be read") as refusal:
        await asyncio.gather(good(), sandbox.run(PAGES, ENDLESS))
    assert refusal.value.code == "invalid_pdf"
    await good()
    assert sandbox.deaths == 1


async def test_a_child_that_takes_too_long_is_killed() -> None:
    sandbox = Sandbox(SandboxLimits(children=1, seconds=0.5, memory=2**32))
    await sandbox.start()
    (before,) = children()
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="too complex"):
        await sandbox.run(PAGES, ENDLESS)
    assert time.monotonic() - began < 5
    await sandbox.run(PICTURE, GOOD)
    assert before.pid not in {child.pid for child in children()}
    await sandbox.close()


async def test_a_child_that_burns_its_processor_time_is_killed() -> None:
    sandbox = Sandbox(SandboxLimits(children=1, cpu_seconds=1, seconds=60, memory=2**33))
    with pytest.raises(InvalidRequest, match="too complex"):
        await sandbox.run(PAGES, ENDLESS)
    assert sandbox.deaths == 1
    await sandbox.close()


async def test_a_killed_child_is_replaced(sandbox: Sandbox) -> None:
    for child in children():
        child.kill()
    for _ in range(2):
        with contextlib.suppress(InvalidRequest):
            await sandbox.run(PICTURE, GOOD)
    await sandbox.run(PICTURE, GOOD)


async def test_children_are_replaced_when_they_have_done_their_jobs(sandbox: Sandbox) -> None:
    before = {child.pid for child in children()}
    for _ in range(12):
        await sandbox.run(PICTURE, GOOD)
    await asyncio.sleep(1)
    assert not before & {child.pid for child in children()}
    assert len(children()) == 2
    assert sandbox.deaths == 0


async def test_too_many_waiting_are_told_to_come_back() -> None:
    sandbox = Sandbox(SandboxLimits(children=1, waiting=2))
    jobs = [asyncio.create_task(sandbox.run(PICTURE, GOOD)) for _ in range(4)]
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    await sandbox.close()
    assert [type(each) for each in answers] == [Pictures, Pictures, Pictures, Overloaded]


async def test_a_caller_that_leaves_does_not_disturb_the_next(sandbox: Sandbox) -> None:
    for _ in range(6):
        job = asyncio.create_task(sandbox.run(PICTURE, GOOD))
        await asyncio.sleep(0.002)
        job.cancel()
        reply = await sandbox.run(PICTURE, GOOD)
        assert isinstance(reply, Pictures)
        assert reply.pictures == (decode_image(GOOD, SPEC),)
    assert sandbox.deaths == 0


async def test_a_caller_that_leaves_waits_no_longer() -> None:
    sandbox = Sandbox(SandboxLimits(children=1, seconds=60))
    await sandbox.start()
    slow = encoded(Image.new("RGB", (7000, 7000), "red"), "PNG")
    first = asyncio.create_task(sandbox.run(PICTURE, slow))
    waiting = [asyncio.create_task(sandbox.run(PICTURE, slow)) for _ in range(20)]
    await asyncio.sleep(0.05)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await first
    began = asyncio.get_running_loop().time()
    await sandbox.run(PICTURE, GOOD)
    assert asyncio.get_running_loop().time() - began < 1
    await sandbox.close()


async def test_who_waits_when_all_is_closed_starts_nothing() -> None:
    sandbox = Sandbox(SandboxLimits(children=1))
    await sandbox.start()
    slow = encoded(Image.new("RGB", (7000, 7000), "red"), "PNG")
    jobs = [asyncio.create_task(sandbox.run(PICTURE, slow)) for _ in range(4)]
    await asyncio.sleep(0.1)
    await sandbox.close()
    _, *waited = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(each) for each in waited] == [Overloaded] * 3
    assert children() == []


async def test_a_file_that_is_gone_harms_no_child(sandbox: Sandbox, tmp_path: Path) -> None:
    before = {child.pid for child in children()}
    with pytest.raises(Overloaded):
        await sandbox.run(PICTURE, tmp_path / "gone")
    assert isinstance(await sandbox.run(PICTURE, GOOD), Pictures)
    assert {child.pid for child in children()} == before


def status(child: psutil.Process, name: str) -> str:
    return Path(f"/proc/{child.pid}/{name}").read_text()


async def test_a_child_knows_no_secret_and_has_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3VL_SECRET", "canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with socket_to_leak():
        sandbox = Sandbox(SandboxLimits(children=1))
        await sandbox.start()
    (child,) = children()
    assert "canary" not in " ".join(child.environ().values())
    assert child.num_fds() <= 6
    limits = status(child, "limits")
    assert "Max address space         2147483648" in limits
    assert child.num_threads() == 1
    assert "libtorch" not in status(child, "maps")
    await sandbox.close()
    assert children() == []


@contextlib.contextmanager
def socket_to_leak() -> "contextlib._GeneratorContextManager[None]":
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        yield


async def test_this_process_stays_small(sandbox: Sandbox) -> None:
    large = encoded(Image.new("RGB", (7000, 7000), "red"), "PNG")
    await sandbox.run(PICTURE, large)
    before = psutil.Process().memory_info().rss
    for _ in range(5):
        await sandbox.run(PICTURE, large)
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


async def test_documents_longer_than_one_job_come_in_pieces(sandbox: Sandbox) -> None:
    data = pdf_of([drawing(64, 64, seed=page) for page in range(20)])
    reply = await sandbox.run(PAGES, data)
    assert isinstance(reply, Pictures)
    assert (reply.numbers[0], reply.numbers[-1], reply.last) == (1, 4, 20)
    assert not isinstance(reply, Footage)
