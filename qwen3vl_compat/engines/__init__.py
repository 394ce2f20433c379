"""What answers requests. An engine turns a checked Request into Events and knows nothing of HTTP, tenants or money."""

import importlib
from collections.abc import Iterable
from typing import Protocol

from prometheus_client.metrics_core import Metric

from qwen3vl_compat.events import Events, Usage
from qwen3vl_compat.media.limits import VisionSpec
from qwen3vl_compat.messages import ModelInfo, Request
from qwen3vl_compat.queue import Occupancy
from qwen3vl_compat.settings import Settings


class EngineUnusable(Exception):
    """The engine cannot be started; the text is one plain sentence for the operator."""


class Engine(Protocol):
    """A model that can be asked. All methods are called from one asyncio loop."""

    @property
    def vision(self) -> VisionSpec:
        """The grid pictures must be brought to before they come here."""
        ...

    @property
    def alive(self) -> bool:
        """Whether a request given now can be expected to be answered."""
        ...

    def models(self) -> tuple[ModelInfo, ...]:
        """The models this engine answers for."""
        ...

    @property
    def occupancy(self) -> Occupancy:
        """How many more requests `generate` would take now, and whose wait: a cheap look, not a promise."""
        ...

    def generate(self, request: Request) -> Events:
        """Answer: Started, deltas, one Finish per choice. Closing the iterator stops the generation within a step.

        What finds no room waits, tenants in turn (`queue`); Overloaded where the queue is full, or the wait too long.
        """
        ...

    async def count(self, request: Request) -> Usage:
        """The exact prompt tokens of a request, pictures included, without generating anything."""
        ...

    async def check(self, request: Request) -> None:
        """Raise InvalidRequest for what no answer can be held to, as a schema or a token's id; asked before booking."""
        ...

    async def collect(self) -> Iterable[Metric]:
        """What it tells of itself, for Prometheus."""
        ...

    def room(self, request: Request, usage: Usage) -> int:
        """Most tokens each choice can have after that prompt; raises InvalidRequest when there is no room."""
        ...

    async def start(self) -> None:
        """Become ready; raises EngineUnusable."""
        ...

    async def close(self) -> None:
        """Stop at once; running generations end with an error."""
        ...


ENGINES = {
    "local": "qwen3vl_compat.engines.local.engine:LocalEngine",
    "scripted": "qwen3vl_compat.engines.scripted:ScriptedEngine",
}


def make_engine(settings: Settings) -> Engine:
    """The engine the settings name, not yet started."""
    place = ENGINES.get(settings.model.engine)
    if place is None:
        raise EngineUnusable(f"There is no engine called '{settings.model.engine}'; there are {', '.join(ENGINES)}.")
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(settings)
    except ModuleNotFoundError as error:
        raise EngineUnusable(
            f"The engine '{settings.model.engine}' needs the package '{error.name}': install qwen3vl-compat[local]."
        ) from None
