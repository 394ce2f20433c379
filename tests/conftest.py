"""Tiny checkpoints, and servers shared by the whole run: starting one costs seconds."""

import gc
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import hypothesis
import pytest
import trustme

from tests.documented import undocumented
from tests.postgres import empty_postgres, new_postgres, postgres, postgres_template  # noqa: F401, these are fixtures
from tests.redis_server import own_redis, redis_server  # noqa: F401, these too
from tests.serving import ROOT, UNCACHED, Served, serving

hypothesis.settings.register_profile("shared", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin first, above all the one that waits for a compiler at the lowest priority; short ones end it."""

    def place(item: pytest.Item) -> int:
        if item.path.name == "test_compiling.py":
            return 0
        folder = item.path.parent.name
        return 1 if folder == "e2e" else 2 if folder in ("engines", "media") else 3

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What was imported stays to the end: to walk it again and again took the collector an eighth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clients trust one authority: each would read all of certifi's, 25 ms of a core, though it asks by plain HTTP."""
    certificate = tmp_path_factory.mktemp("authority") / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(certificate))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate))
        yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model, served; in the end all that it has answered must be in its description."""
    with serving(tmp_path_factory.mktemp("demo"), environment=UNCACHED) as served:
        yield served
        assert undocumented(served.log()) == set()


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scripted engine, served as the model above; it takes no time, so there is none to interrupt it."""
    with serving(tmp_path_factory.mktemp("scripted"), environment={"QWEN3VL_MODEL__ENGINE": "scripted"}) as served:
        yield served
        assert undocumented(served.log()) == set()


@pytest.fixture(scope="session")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scripted engine as an expert for pictures (tests/adapters/expert.py), served."""
    environment = UNCACHED | {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": "0"}
    folder = tmp_path_factory.mktemp("expert")
    with serving(folder, environment=environment, module="tests.adapters.expert") as served:
        yield served


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's shape with random weights."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    from benchmarks.checkpoint import enliven
    from qwen3vl_compat.demo.blank import write_blank

    folder = tmp_path_factory.mktemp("blank") / "model"
    write_blank(folder, seed=3)
    made = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    enliven(made)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint of the mixture-of-experts class."""
    from benchmarks.checkpoint import write_experts

    folder = tmp_path_factory.mktemp("moe") / "model"
    write_experts(folder)
    return folder


@pytest.fixture(scope="session")
def thinker(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoint with a template that opens a thought, as those of the Thinking models do."""
    folder = tmp_path_factory.mktemp("thinker") / "model"
    shutil.copytree(blank, folder)
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    opened = text.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
    assert opened != text
    template.write_text(opened, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def thinking_server(thinker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The random thinking checkpoint, served."""
    with serving(tmp_path_factory.mktemp("thinking"), "--model", str(thinker), environment=UNCACHED) as served:
        yield served


@pytest.fixture(scope="session")
def moe_server(moe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The random mixture of experts, served."""
    with serving(tmp_path_factory.mktemp("experts"), "--model", str(moe), environment=UNCACHED) as served:
        yield served


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The address of a service that speaks S3, with a bucket in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # In a process and with packages of its own: it needs many, and some of ours in other versions.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT / ".build" / "moto")})
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while server.poll() is None and time.monotonic() < end:
            with suppress(httpx.TransportError):
                httpx.put(f"{url}/bucket")
                break
            time.sleep(0.2)
        assert server.poll() is None, "moto does not run; `make slow` installs it"
        yield url
    finally:
        server.kill()
        server.wait()
