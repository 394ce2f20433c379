"""Is it alive, can it take work, how is it doing."""

from typing import Any

from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric

from qwen3vl_compat import __version__
from qwen3vl_compat.server.answer import Service


@get("/livez")
async def livez() -> dict[str, str]:
    """The process answers; stays true while it drains, so that nothing kills it early."""
    return {"status": "ok"}


@get(["/readyz", "/startupz", "/health"])
async def readyz(service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """Requests are taken: the model is loaded, its thread lives and the server is not stopping."""
    state = "ok" if service.ready else "stopping" if service.lifecycle.draining else "unavailable"
    models = [model.id for model in service.engine.models()]
    body = {"status": state, "models": models, "running": service.lifecycle.running, "version": __version__}
    return Response(body, status_code=200 if service.ready else 503)


class _Told:
    """Figures that were collected, for a registry, which cannot wait for them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


@get("/metrics")
async def metrics(service: NamedDependency[Service]) -> Response[bytes]:
    """The engine's figures, what was charged and what moderators said, in Prometheus' text form."""
    registry = CollectorRegistry(auto_describe=False)
    told = _Told([*await service.engine.collect(), *service.figures.collect()])
    registry.register(told)  # pyright: ignore[reportArgumentType]
    form, _, _ = CONTENT_TYPE_LATEST.partition("; charset")  # which is added to it
    return Response(generate_latest(registry), media_type=form)
