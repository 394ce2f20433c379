"""The server's description of itself: valid, whole, no more than there is, and open to whoever asks."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from qwen3vl_compat.server.app import build_routes
from qwen3vl_compat.server.exchange import Exchange
from qwen3vl_compat.server.openapi import OPERATIONS, document
from qwen3vl_compat.server.openapi.operation import wires_of
from tests.documented import undocumented
from tests.server.test_app import House, client, house, service  # noqa: F401, these are fixtures

METHODS = ("get", "post", "put", "patch", "delete")


@cache
def told() -> Any:
    return json.loads(document())


def operations() -> list[tuple[str, str, Any]]:
    return [(path, method, each[method]) for path, each in told()["paths"].items() for method in each]


def filled(path: str) -> str:
    return re.sub(r"\{\w+\}", "x", path)


def test_it_is_openapi() -> None:
    from schemathesis.specs.openapi.definitions import OPENAPI_31

    jsonschema.Draft202012Validator(OPENAPI_31).validate(told())
    for schema in told()["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere() -> None:
    for name in set(re.findall(r'"\$ref":"#/components/([^"]+)"', document().decode())):
        kind, _, each = name.partition("/")
        assert each in told()["components"][kind], name


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)


def test_every_route_is_described_and_nothing_else(house: House) -> None:  # noqa: F811
    """By the handler that Litestar's own router finds for the method and path."""
    routes = build_routes(house.service).routes
    handlers = [handler for route in routes for handler in getattr(route, "route_handlers", ())]
    ours = {handler.fn for handler in handlers if "OPTIONS" not in handler.http_methods}
    assert ours == {each.handler.fn for each in OPERATIONS}
    patterns = {
        re.sub(r"\\\{[^}]*path\\\}", ".+", re.sub(r"\\\{[^}]*str\\\}", "[^/]+", re.escape(route.path))): route
        for route in routes
    }
    served = {
        (pattern, method.lower())
        for pattern, route in patterns.items()
        for method in getattr(route, "methods", ())
        if method != "OPTIONS"
    }
    reached: set[tuple[str, str]] = set()
    for path, method, _ in operations():
        found = {(pattern, method) for pattern in patterns if re.fullmatch(pattern, filled(path))} & served
        assert found, (method, path)
        reached |= found
    assert served == reached


@pytest.mark.parametrize(("path", "method", "operation"), operations(), ids=lambda value: str(value)[:60])
def test_what_an_operation_says_is_so(path: str, method: str, operation: Any) -> None:
    """Whose errors it answers, whether it needs a key, and what every route may answer."""
    scope: Any = {"path": filled(path), "method": method.upper(), "headers": [], "query_string": b""}
    assert Exchange(scope).wire in wires_of(path, method.upper())
    assert operation["summary"].endswith(".")
    assert {"400", "431", "500"} <= operation["responses"].keys()
    assert ("429" in operation["responses"]) == bool(operation["security"])
    if "requestBody" in operation:
        assert {"408", "413", "415"} <= operation["responses"].keys()


@pytest.mark.parametrize("path", ["/schema", "/schema/openapi.json"])
async def test_whoever_asks_is_told(client: httpx.AsyncClient, path: str) -> None:  # noqa: F811
    answer = await client.get(path, headers={"authorization": ""})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == told()
    assert (await client.post(path, json={})).status_code == 405


def test_bodies_say_what_the_tables_of_fields_say() -> None:
    chat = told()["components"]["schemas"]["Chat.request"]
    assert chat["required"] == ["model", "messages"]
    assert chat["properties"]["n"]["anyOf"][0] | {"default": 1} == {
        "type": "integer", "default": 1, "minimum": 1, "maximum": 4,
    }  # fmt: skip
    assert chat["properties"]["store"]["enum"] == [False, None]
    items = {"$ref": "#/components/schemas/Chat.message"}
    assert chat["properties"]["messages"] == {"type": "array", "items": items, "minItems": 1}
    config = told()["components"]["schemas"]["Google.generationConfig"]
    assert config["properties"]["topP"]["anyOf"][0]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert config["additionalProperties"] is False
    assert "effect" in chat["properties"]["user"]["description"]


def test_what_a_log_tells_of_can_be_missing() -> None:
    """The fixtures of whole servers look for it (tests/conftest.py)."""
    line = "id=01 key=a model=- tokens=- ms=1 status={} {} {}\n"
    known = line.format(404, "GET", "/v1/models/x") + line.format(499, "POST", "/v1/messages")
    assert undocumented(known + line.format(404, "GET", "/nowhere") + line.format(405, "PUT", "/v1/usage")) == set()
    assert undocumented(known + line.format(418, "GET", "/v1/models/x")) == {"418 GET /v1/models/x"}


def test_the_server_starts_without_it(tmp_path: Path) -> None:
    """It is made when it is first asked for."""
    import subprocess
    import sys

    code = "import sys, qwen3vl_compat.server.app; print('qwen3vl_compat.server.openapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
