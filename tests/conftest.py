"""Servers shared by the whole run: starting one costs seconds."""

from collections.abc import Iterator

import pytest

from tests.serving import Served, serving


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model, served."""
    with serving(tmp_path_factory.mktemp("demo")) as served:
        yield served


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scripted engine, served; it takes 20 ms a token, so that there is time to interrupt it."""
    with serving(tmp_path_factory.mktemp("scripted"), environment={"QWEN3VL_MODEL__ENGINE": "scripted"}) as served:
        yield served
