"""A real server in a process of its own, for tests that speak to it over a socket."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]


@dataclass
class Served:
    """A running server: where it is, the keys it printed, its process and its log."""

    url: str
    key: str
    admin_key: str
    process: subprocess.Popen[bytes]
    output: Path
    state: Path

    def log(self) -> str:
        """Everything it has printed so far."""
        return self.output.read_text(encoding="utf-8")

    def post(self, path: str, body: object, key: str | None = None) -> httpx.Response:
        """Send a JSON body with the model key."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=60)


UNCOMPILED = {"QWEN3VL_MODEL__COMPILE": "false"}
"""The environment of a server that compiles nothing: it takes a minute of the machine. test_compiling.py does it."""

UNCACHED = {"QWEN3VL_CACHE__MEMORY": "0"}
"""The environment of a server whose engine is tried: an answer that is kept proves nothing of it."""


@contextmanager
def serving(
    folder: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    during: Callable[[str], None] | None = None,
    module: str = "qwen3vl_compat",
) -> Iterator[Served]:
    """Start `qwen3vl-compat serve` on a free port with its state in `folder`; stop it at the end.

    `during` is called with its address while it starts; `module` is run in place of the program's own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"output-{port}.txt"  # two servers may share a folder
    command = [
        sys.executable,
        "-m",
        module,
        "serve",
        "--port",
        str(port),
        "--state-dir",
        str(folder / "state"),
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QWEN3VL_")}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=inherited | UNCOMPILED | dict(environment or {}),
        )
    url = f"http://127.0.0.1:{port}"
    try:
        if during is not None:
            during(url)
        _wait_until_ready(process, url, output)
        text = output.read_text(encoding="utf-8")
        keys = re.findall(r"sk-[0-9A-Za-z]{12}-[\w-]{43}", text)
        model, admin = (keys[0], keys[1]) if len(keys) >= 2 else ("", "")
        yield Served(url, model, admin, process, output, folder / "state")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, output: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"the server ended:\n{output.read_text(encoding='utf-8')}")
        try:
            if httpx.get(url + "/readyz").status_code == 200:
                assert "Try it:" in output.read_text(encoding="utf-8"), "it is ready before it has shown its keys"
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the server was not ready in 90 s:\n{output.read_text(encoding='utf-8')}")
