"""The description of the server held against the server: bodies made of it by Schemathesis, answers judged by it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from msgspec import Struct

from qwen3vl_compat.demo import SAMPLE
from qwen3vl_compat.server.openapi import document
from tests.metered import new_key, public
from tests.serving import Served, serving

pytestmark = pytest.mark.filterwarnings("default")

DOCUMENT: Any = json.loads(document())
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
EXAMPLES = 6
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
PATIENT = {"X-Server-Timeout": "60"}
"""What would be made up in its place is told in time that it was too little, which is no fault."""
GENERATION = {"allow-x00": False, "codec": "utf-8"}
"""Texts that no JSON of ours may hold are all refused alike."""


class Described(Struct):
    """A server, and its description as Schemathesis reads it."""

    served: Served
    document: Any
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
    from schemathesis.config import SchemathesisConfig

    known = with_what_there_is(own)
    config = SchemathesisConfig.from_dict({"generation": GENERATION})
    schema = schemathesis.openapi.from_dict(known, config=config)
    return Described(own, known, schema, [getattr(checks, name) for name in CHECKS])


def with_what_there_is(served: Served) -> Any:
    """The description, with names of what is there in place of any: else nothing is found, and nothing is answered."""
    headers = {"authorization": f"Bearer {served.key}"}
    made = served.post("/v1/responses", {"model": "qwen3-vl", "input": "a"}).json()["id"]
    form: Any = {"files": {"file": ("a.png", SAMPLE.read_bytes())}, "data": {"purpose": "vision"}}
    file = httpx.post(f"{served.url}/v1/files", headers=headers, **form).json()["id"]
    there = {"model": "qwen3-vl", "name": made, "reference": file, "tenant": "default", "key": public(new_key(served))}
    known = json.loads(document())
    for methods in known["paths"].values():
        for method, operation in methods.items():
            for each in operation.get("parameters", ()):
                if each["in"] == "path" and each["name"] in there and method not in ("delete", "patch"):
                    each["schema"] = {"enum": [there[each["name"]]]}
    for name, schema in known["components"]["schemas"].items():
        if name.endswith((".request", ".create", ".count")) and "model" in schema["properties"]:
            schema["properties"]["model"] = {"enum": ["qwen3-vl"]}
    return known


def key_for(served: Served, path: str) -> str:
    return served.admin_key if path.startswith("/admin") or path == "/metrics" else served.key


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda value: value)
def test_it_answers_as_it_says(described: Described, path: str, method: str) -> None:
    served = described.served

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=described.schema[path][method.upper()].as_strategy())
    def answer(case: Any) -> None:
        headers = PATIENT | {"authorization": f"Bearer {key_for(served, path)}"}
        case.call_and_validate(base_url=served.url, headers=headers, checks=described.checks, timeout=30)

    answer()


def test_what_is_not_said_is_found(described: Described) -> None:
    """The checks above can fail: a description without what is answered does not pass."""
    import schemathesis
    from schemathesis.core.failures import FailureGroup

    short = json.loads(json.dumps(described.document))
    del short["paths"]["/v1/models"]["get"]["responses"]["200"]
    short["components"]["schemas"]["Alive"]["properties"]["status"]["enum"] = ["well"]
    for path in ("/v1/models", "/livez"):
        case = schemathesis.openapi.from_dict(short)[path]["GET"].Case()
        with pytest.raises(FailureGroup):
            case.call_and_validate(
                base_url=described.served.url,
                headers={"authorization": f"Bearer {described.served.key}"},
                checks=described.checks,
            )


@pytest.mark.conformance
@pytest.mark.parametrize("admin", [False, True], ids=["tenant", "admin"])
def test_at_length(described: Described, tmp_path: Path, admin: bool) -> None:
    """Every phase of Schemathesis' own, with what is wrong too."""
    served = described.served
    key, which = (served.admin_key, "--include-path-regex") if admin else (served.key, "--exclude-path-regex")
    (tmp_path / "openapi.json").write_text(json.dumps(described.document), encoding="utf-8")
    (tmp_path / "schemathesis.toml").write_text('[generation]\nallow-x00 = false\ncodec = "utf-8"\n', encoding="utf-8")
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml"), "run",
        str(tmp_path / "openapi.json"), "--url", served.url, "--checks", ",".join(CHECKS),
        "--header", f"Authorization: Bearer {key}", "--header", "X-Server-Timeout: 60",
        which, "^/(admin/|metrics)", "--phases", "examples,coverage,fuzzing", "--max-examples", "50",
        "--seed", "1", "--generation-deterministic", "--request-timeout", "30", "--continue-on-failure",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
