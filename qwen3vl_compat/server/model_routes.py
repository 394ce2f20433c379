"""The model list, in one body that both families of clients can read."""

from typing import Any

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath

from qwen3vl_compat.errors import NotFound
from qwen3vl_compat.server.answer import Service
from qwen3vl_compat.wire import generate_content, openai_chat


@get(["/v1/models", "/v1beta/models"])
async def list_models(service: NamedDependency[Service]) -> dict[str, Any]:
    """OpenAI's `data` and Google's `models`, side by side."""
    models = service.engine.models()
    return {
        "object": "list",
        "data": [openai_chat.encode_model(model) for model in models],
        "models": [generate_content.encode_model(model) for model in models],
    }


@get(["/v1/models/{rest:path}", "/v1beta/models/{rest:path}"])
async def get_model(rest: FromPath[str], service: NamedDependency[Service]) -> dict[str, Any]:
    """One model with the fields of both."""
    name = rest.strip("/").removeprefix("models/")
    for model in service.engine.models():
        if model.id == name:
            return openai_chat.encode_model(model) | generate_content.encode_model(model)
    raise NotFound("The model does not exist or you have no access to it.", param="model", code="model_not_found")
