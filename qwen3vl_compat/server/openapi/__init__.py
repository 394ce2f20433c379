"""This server as OpenAPI 3.1 tells it: every route, made of what the code itself reads and answers by."""

from functools import cache

import msgspec

from qwen3vl_compat import __version__
from qwen3vl_compat.server.openapi import accounts, anthropic, files, google, openai, service
from qwen3vl_compat.server.openapi.operation import Operation, described
from qwen3vl_compat.wire.body import Json

_TABLES = (openai, google, anthropic, files, accounts, service)
OPERATIONS: tuple[Operation, ...] = tuple(operation for table in _TABLES for operation in table.OPERATIONS)
_SCHEMES: dict[str, Json] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A tenant's key; any of the ways will do anywhere."},
    "googleKey": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
    "googleQuery": {"type": "apiKey", "in": "query", "name": "key"},
    "anthropicKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "adminKey": {"type": "http", "scheme": "bearer", "description": "An admin key, which is for these routes alone."},
}


@cache
def document() -> bytes:
    """The whole document as JSON, made once."""
    components: dict[str, Json] = {}
    for table in _TABLES:
        assert not components.keys() & table.COMPONENTS.keys(), components.keys() & table.COMPONENTS.keys()
        components |= table.COMPONENTS
    paths, refusals = dict[str, Json](), dict[str, Json]()
    for operation in OPERATIONS:
        for path, method, told in described(operation, refusals):
            paths.setdefault(path, {})[method] = told
    info = {
        "title": "qwen3vl-compat",
        "version": __version__,
        "description": "Qwen3-VL behind the APIs of OpenAI, Google and Anthropic.",
    }
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": info,
            "servers": [{"url": "/"}],
            "paths": dict(sorted(paths.items())),
            "components": {"schemas": components, "responses": refusals, "securitySchemes": _SCHEMES},
        }
    )
