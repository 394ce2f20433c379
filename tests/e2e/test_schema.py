"""The description of the server held against the server: bodies made of it by Schemathesis, answers judged by it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec import Struct

from qwen3vl_compat.server.openapi import document
from tests.serving import Served, serving

pytestmark = pytest.mark.filterwarnings("default")

DOCUMENT: Any = json.loads(document())
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
EXAMPLES = 6
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


class Described(Struct):
    """A server, and its description as Schemathesis reads it."""

    served: Served
    schema: Any
    checks: list[Any]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own: what is made up here changes prices and tenants."""
    environment = {"QWEN3VL_MODEL__ENGINE": "scripted", "QWEN3VL_MODEL__PAUSE": "0"}
    with serving(tmp_path_factory.mktemp("described"), environment=environment) as served:
        yield served


@pytest.fixture(scope="module")
def described(own: Served) -> Described:
    import schemathesis
    from schemathesis import checks

    schema = schemathesis.openapi.from_dict(DOCUMENT)
    return Described(own, schema, [getattr(checks, name) for name in CHECKS])


def key_for(served: Served, path: str) -> str:
    return served.admin_key if path.startswith("/admin") or path == "/metrics" else served.key


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda value: value)
def test_it_answers_as_it_says(described: Described, path: str, method: str) -> None:
    served = described.served

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=described.schema[path][method.upper()].as_strategy())
    def answer(case: Any) -> None:
        headers = {"authorization": f"Bearer {key_for(served, path)}"}
        case.call_and_validate(base_url=served.url, headers=headers, checks=described.checks, timeout=30)

    answer()


@pytest.mark.conformance
@pytest.mark.parametrize("admin", [False, True], ids=["tenant", "admin"])
def test_at_length(own: Served, admin: bool) -> None:
    """Every phase of Schemathesis' own, with what is wrong too."""
    key, place = (own.admin_key, "--include-path-regex") if admin else (own.key, "--exclude-path-regex")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{own.url}/schema", "--checks", ",".join(CHECKS),
        "--header", f"Authorization: Bearer {key}", place, "^/(admin/|metrics)", "--phases", "examples,coverage,fuzzing",
        "--max-examples", "50", "--seed", "1", "--generation-deterministic", "--request-timeout", "30",
        "--continue-on-failure",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
