"""The model list, in one body that OpenAI's and Google's clients can read, and in one for Anthropic's."""

from typing import Any

from litestar import Request as HttpRequest
from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec.structs import replace

from qwen3vl_compat.server.answer import Service, find_model, may_call
from qwen3vl_compat.server.exchange import exchange_of
from qwen3vl_compat.wire import anthropic_messages, generate_content, openai_chat

Http = HttpRequest[Any, Any, Any]


@get(["/v1/models", "/v1beta/models"])
async def list_models(request: Http, service: NamedDependency[Service]) -> dict[str, Any]:
    """OpenAI's `data` and Google's `models`, side by side; Anthropic's `data` alone."""
    exchange, listed = exchange_of(request.scope), service.names.listed
    models = [replace(model, id=name) for name, model in listed.items() if may_call(exchange, model)]
    if exchange.anthropic:
        return anthropic_messages.encode_models(models)
    return {
        "object": "list",
        "data": [openai_chat.encode_model(model) for model in models],
        "models": [generate_content.encode_model(model) for model in models],
    }


@get(["/v1/models/{rest:path}", "/v1beta/models/{rest:path}"])
async def get_model(request: Http, rest: FromPath[str], service: NamedDependency[Service]) -> dict[str, Any]:
    """One model with the fields of both, or Anthropic's."""
    exchange, name = exchange_of(request.scope), rest.strip("/").removeprefix("models/")
    model = replace(find_model(service, exchange, name), id=name)
    if exchange.anthropic:
        return anthropic_messages.encode_model(model)
    return openai_chat.encode_model(model) | generate_content.encode_model(model)
