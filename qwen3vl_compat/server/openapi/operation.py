"""One route as OpenAPI tells it: its path, what it takes, and every status that it can answer with."""

import inspect
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from qwen3vl_compat.server.door import needs_key
from qwen3vl_compat.server.guard import takes_admin_key
from qwen3vl_compat.server.openapi.forms import TEXT, ref
from qwen3vl_compat.wire.body import Json

JSON, SSE, FORM, BYTES = "application/json", "text/event-stream", "multipart/form-data", "application/octet-stream"
EVENTS: Json = {"description": "Server-sent events, as the API has them whose route this is."}
"""What a stream holds. Of any type: some readers hold the whole text to a schema, others each event as an object."""

NONE = frozenset[int]()
AT_ALL = frozenset({400, 431, 500, 503})
"""Whatever comes may be answered so: no HTTP, too much of a head, a failure of ours, no database."""
KEYED = frozenset({401, 403, 429})
READ = frozenset({408, 413, 415})
"""Of what has a body."""
FOUND = frozenset({404})
COUNTED = READ | FOUND | {504}
ANSWERED = COUNTED | {409}
"""Of what generates: a key of idempotency may be in use."""
_OWN: Mapping[str, Mapping[int, frozenset[int]]] = {
    "openai": {},
    "google": {401: frozenset({400, 403})},
    "anthropic": {503: frozenset({529})},
}
"""Statuses that a wire has others for: see its `status_of`."""
_ERRORS = {"openai": "OpenAIError", "google": "GoogleError", "anthropic": "AnthropicError"}
_SCHEMES = {"openai": ("bearer",), "google": ("bearer", "googleKey", "googleQuery"), "anthropic": ("anthropicKey",)}


class Operation(Struct, frozen=True, kw_only=True):
    """What there is to say of a route beside its handler; schemas by media type."""

    handler: HTTPRouteHandler
    answer: Mapping[str, Json]
    tag: str
    name: str = ""
    """Its id; the handler's name if it is not given."""
    paths: tuple[str, ...] = ()
    """Where the handler's own say too little."""
    body: Mapping[str, Json] = {}
    optional: bool = False
    """Whether the body may be left out."""
    parameters: tuple[Json, ...] = ()
    more: frozenset[int] = NONE
    """What it answers beyond what every route may."""
    other: Mapping[int, Mapping[str, Json]] = {}
    """Answers of another status that are no errors."""


def parameter(place: str, name: str, schema: Json, said: str = "", *, required: bool = False) -> Json:
    """A parameter in the query or a header."""
    made: Json = {"name": name, "in": place, "schema": schema}
    return made | ({"description": said} if said else {}) | ({"required": True} if required else {})


def query(name: str, schema: Json, said: str = "") -> Json:
    """One in the query."""
    return parameter("query", name, schema, said)


def header(name: str, schema: Json, said: str = "", *, required: bool = False) -> Json:
    """One in a header."""
    return parameter("header", name, schema, said, required=required)


def wires_of(path: str, method: str) -> tuple[str, ...]:
    """The APIs whose clients call a path; headers tell them apart where there are several (`server/exchange`)."""
    if path.startswith("/v1/messages"):
        return ("anthropic",)
    if path.startswith(("/v1beta", "/upload/")) or (path.startswith("/v1/models") and method == "POST"):
        return ("google",)
    if path.startswith("/v1/models"):
        return ("openai", "google", "anthropic")
    return ("openai", "google") if path.startswith("/v1/files") else ("openai",)


def described(operation: Operation, refusals: dict[str, Json]) -> Iterable[tuple[str, str, Json]]:
    """(Path, method, operation) for every path and method of a route; its refusals are put among these components."""
    handler = operation.handler
    for place, path in enumerate(operation.paths or sorted(map(_plain, handler.paths))):
        for method in sorted(handler.http_methods):
            wires = wires_of(path, method)
            answers = _refused(operation, path, wires, refusals) | _answered(operation)
            told: Json = {
                "operationId": _id(operation, method, place),
                "responses": {str(status): answers[status] for status in sorted(answers)},
            }
            yield path, method.lower(), told | _described(operation, path, wires)


def _plain(path: str) -> str:
    """A path without the types of its parameters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _id(operation: Operation, method: str, place: int) -> str:
    name = operation.name or operation.handler.fn.__name__
    several = len(operation.handler.http_methods) > 1
    return "_".join([name, *([str(place + 1)] if place else []), *([method.lower()] if several else [])])


def _described(operation: Operation, path: str, wires: tuple[str, ...]) -> Json:
    made: Json = {
        "summary": (inspect.getdoc(operation.handler.fn) or "").partition("\n")[0],
        "tags": [operation.tag],
        "security": _security(path, wires),
    }
    inside = [parameter("path", each, TEXT, required=True) for each in re.findall(r"\{(\w+)\}", path)]
    if inside or operation.parameters:
        made["parameters"] = [*inside, *operation.parameters]
    if operation.body:
        made["requestBody"] = {"content": _content(operation.body), "required": not operation.optional}
    return made


def _answered(operation: Operation) -> dict[int, Json]:
    told = {200: operation.answer} if operation.answer else {}
    return {status: _answer(status, content) for status, content in (told | dict(operation.other)).items()}


def _refused(operation: Operation, path: str, wires: tuple[str, ...], refusals: dict[str, Json]) -> dict[int, Json]:
    """References to the refusals of a path on its wires, by status."""
    common = AT_ALL | operation.more
    common |= KEYED if needs_key(path) else NONE
    common |= READ if operation.body else NONE
    made: dict[int, Json] = {}
    for status in sorted({own for wire in wires for each in common for own in _OWN[wire].get(each, {each})}):
        name = f"{'_or_'.join(wires)}.{status}"
        errors = [ref(_ERRORS[wire]) for wire in wires]
        refusals[name] = _answer(status, {JSON: errors[0] if len(errors) == 1 else {"anyOf": errors}})
        made[status] = {"$ref": f"#/components/responses/{name}"}
    return made


def _answer(status: int, content: Mapping[str, Json]) -> Json:
    headers: Json = {"x-request-id": {"schema": TEXT}}
    if status in (429, 503, 529):
        headers["retry-after"] = {"schema": {"type": "string", "pattern": "^[0-9]+$"}}
    phrases = {each.value: each.phrase for each in HTTPStatus} | {529: "Overloaded"}
    return {"description": phrases[status], "headers": headers, "content": _content(content)}


def _content(content: Mapping[str, Json]) -> Json:
    return {media_type: {"schema": schema} for media_type, schema in content.items()}


def _security(path: str, wires: tuple[str, ...]) -> list[dict[str, list[Any]]]:
    if not needs_key(path):
        return []
    if takes_admin_key(path):
        return [{"adminKey": []}]
    return [{scheme: []} for scheme in dict.fromkeys(each for wire in wires for each in _SCHEMES[wire])]
