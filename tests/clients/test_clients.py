"""Foreign clients as they come from their registries, told only where the server is, against both engines."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_compat.demo import SAMPLE
from tests.clients.table import BUILD, CASES, CLIENTS, HERE, INTERPRETERS, NODE, Case, Client, Results
from tests.metered import new_key, rows, wait_until
from tests.serving import Served

pytestmark = pytest.mark.conformance

ANSWERS: dict[tuple[str, Case], tuple[str, str]] = {
    ("demo", "plain"): ("Who are you?", "demonstration model"),
    ("demo", "streamed"): ("Who are you?", "demonstration model"),
    ("demo", "picture"): ("Read the text.", "HELLO42"),
    ("scripted", "plain"): ("say exactly: one two three", "one two three"),
    ("scripted", "streamed"): ("say exactly: one two three", "one two three"),
    ("scripted", "picture"): ("say exactly: seen", "[192x48] seen"),
}
"""What is asked, and what the answer then holds."""

QUIET = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "NODE_USE_ENV_PROXY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks for a newer one, and waits
}
"""Nothing answers at that proxy: a client reaches this machine only."""

EACH = [
    pytest.param(client, case, id=f"{client.name}: {case}")
    for client in CLIENTS
    for case in CASES
    if case not in client.none
]


def told(client: Client, case: str, folder: Path, **environment: str) -> Any:
    """What the driver of a client tells of a case, run in a folder of its own with nothing inherited."""
    script, suffix = HERE / "drivers" / client.driver, Path(client.driver).suffix
    interpreter = INTERPRETERS["node" if suffix == ".mjs" else "dev" if client.place == "node" else client.place]
    modules = BUILD / "node" / "node_modules"
    if client.place == "node":
        assert modules.exists(), "not installed: `make conformance` does that"
    assert interpreter.exists(), "not installed: `make conformance` does that"
    if suffix == ".mjs":  # which finds packages beside and above itself only
        script = shutil.copytree(script.parent, folder / "drivers") / script.name
        (folder / "drivers" / "node_modules").symlink_to(modules)
    home = folder / "home"
    home.mkdir()
    clean = {"PATH": f"{NODE.parent}:{modules / '.bin'}:{os.defpath}", "HOME": str(home), "TMPDIR": str(folder)}
    asked = {"MODEL": "qwen3-vl", "CASE": case, "PICTURE": str(SAMPLE.resolve())}
    ran = subprocess.run(
        [interpreter, script],
        env=clean | QUIET | {name.lower(): text for name, text in QUIET.items()} | asked | environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(("client", "case"), EACH)
def test_client(client: Client, case: Case, demo: Served, scripted: Served, tmp_path: Path, results: Results) -> None:
    results[client.name, case] = False
    served = demo if client.engine(case) == "demo" else scripted
    if case in ("wrong key", "429"):
        check_error(client, case, served, tmp_path)
    else:
        check_answer(client, case, served, tmp_path)
    results[client.name, case] = True


def check_answer(client: Client, case: Case, served: Served, folder: Path) -> None:
    """It gives what the engine said, and the books say that it was asked for in that way."""
    key = new_key(served)
    prompt, expected = ANSWERS.get((client.engine(case), case), (client.call, "found A1"))
    seen = told(client, case, folder, ADDRESS=served.url, KEY=key, PROMPT=prompt)
    assert "error" not in seen, seen["error"]
    if case == "listing":
        assert [name.removeprefix("models/") for name in seen["saw"]] == ["qwen3-vl"]
        return
    assert expected in "".join(seen["saw"])
    if case == "tool":
        assert "The tool says: " in seen["saw"]
    wait_until(lambda: all(row["state"] != "open" for row in rows(served, key)))
    booked = rows(served, key)
    assert len(booked) == (2 if case == "tool" else 1)
    assert {row["state"] for row in booked} == {"final"}
    if case in ("plain", "streamed"):
        assert [bool(row["stream"]) for row in booked] == [case == "streamed"]
    assert sum(row["pictures"] for row in booked) == (case == "picture")


def check_error(client: Client, case: Case, served: Served, folder: Path) -> None:
    """A user can read what the server said."""
    key, expected = "sk-wrong", "The API key is not valid."
    if case == "429":
        key, expected = new_key(served, "--requests", "1/month"), "The limit of this key is reached: 1 request"
        body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": "Hi"}]}
        assert served.post("/v1/chat/completions", body, key).status_code == 200
    way = "streamed" if "plain" in client.none else "plain"
    seen = told(client, way, folder, ADDRESS=served.url, KEY=key, PROMPT="say exactly: hello")
    assert "saw" not in seen
    assert client.hidden.get(case, expected) in seen["error"]
