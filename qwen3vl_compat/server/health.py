"""Is it alive, can it take work: three open routes."""

from typing import Any

from litestar import Response, get
from litestar.di import NamedDependency

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
    body = {"status": state, "models": models, "running": service.lifecycle.running}
    return Response(body, status_code=200 if service.ready else 503)
