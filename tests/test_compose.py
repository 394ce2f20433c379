"""compose.yaml and the Dockerfile, checked without a Docker daemon: by the specification's schema and by our needs."""

import copy
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    """The compose specification's own schema, as the package check-jsonschema carries it."""
    path = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    return jsonschema.Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture
def compose() -> dict[str, Any]:
    """compose.yaml with its anchors resolved, as plain dicts."""
    return json.loads(json.dumps(YAML(typ="safe").load(ROOT / "compose.yaml")))


@pytest.fixture(scope="module")
def stages() -> dict[str, str]:
    """The Dockerfile's text by stage name, continued lines joined and comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = " ".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#"))
    parts = re.split(r"(?m)^\s*FROM (\S+) AS (\S+)$", lines.replace("\\\n", ""))
    return {name: f"FROM {base}{body}" for base, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def test_compose_follows_the_specification(schema: Any, compose: dict[str, Any]) -> None:
    assert [error.message for error in schema.iter_errors(compose)] == []


@pytest.mark.parametrize("where", [(), ("services", "server"), ("services", "server", "healthcheck")])
def test_a_misspelt_key_is_refused(schema: Any, compose: dict[str, Any], where: tuple[str, ...]) -> None:
    wrong = copy.deepcopy(compose)
    node = wrong
    for key in where:
        node = node[key]
    node["helthcheck"] = {}
    assert not schema.is_valid(wrong)


def test_each_profile_starts_one_server_that_proves_itself_ready(compose: dict[str, Any]) -> None:
    by_profile = {service["profiles"][0]: service for service in compose["services"].values()}
    assert set(by_profile) == {"demo", "gpu"}
    for profile, service in by_profile.items():
        assert service["build"]["target"] == profile
        assert service["ports"] == ["8080:8080"]
        assert "/readyz" in service["healthcheck"]["test"][-1]
        assert "state:/var/lib/qwen3vl" in service["volumes"]


def test_the_gpu_profile_reserves_a_card_and_takes_any_model(compose: dict[str, Any]) -> None:
    gpu = compose["services"]["server-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert gpu["environment"]["QWEN3VL_MODEL__PATH"].endswith(":-Qwen/Qwen3-VL-4B-Instruct}")


def test_the_gpu_image_can_compile_what_triton_writes(stages: dict[str, str]) -> None:
    installed = re.findall(r"install --yes --no-install-recommends ([^&\n]+)", stages["gpu"])
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(" ".join(installed).split())


def test_the_images_take_the_lock_and_do_not_run_as_root(stages: dict[str, str]) -> None:
    assert "--require-hashes --no-deps -r requirements.lock" in stages["base"]
    assert all(stages[name].rstrip().endswith("USER qwen3vl") for name in ("demo", "gpu"))


def test_everything_copied_into_the_image_is_let_through() -> None:
    copied = re.findall(r"(?m)^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    allowed = re.findall(r"(?m)^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"))
    assert {name for names in copied for name in names.split()} == set(allowed)
