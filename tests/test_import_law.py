"""The import law: which room may know which, and where the heavy packages live (docs/architecture.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = "qwen3vl_compat"
VALUES = ("messages", "events", "errors")

ROOMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(VALUES, VALUES),
    "wire": (*VALUES, "wire"),
    "queue": (*VALUES, "queue"),
    "media": (*VALUES, "media", "queue"),
    "policies": (*VALUES, "policies", "media", "accounts", "queue", "settings"),
    "adapters": (*VALUES, "adapters", "wire"),
    "doctor": ("doctor",),
}
"""The rooms of the house that a room may import; one that is not listed may import any."""

PACKAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*VALUES, "wire", "queue"), ("msgspec",)),
    "media": ("msgspec", "PIL", "numpy", "av", "pypdfium2", "httpcore", "certifi", "obstore"),
    "policies": ("msgspec", "limits", "slowapi", "redis", "hiredis"),
    "doctor": ("msgspec", "httpx"),
}
"""The packages, beside the standard library, that a room may import."""

PURE = ("engines.local.scheduler", "engines.local.sequence", "engines.local.blocks", "engines.local.dialect")
MODEL = ("engines.local", "demo.batches", "demo.blank", "demo.train")
OWNERS = {
    "litestar": ("server",),
    "langchain_core": ("adapters",),
    "httpx": ("adapters", "doctor", "cli_doctor"),
    "httpcore": ("media.fetch", "server.moderators"),
    "obstore": ("media.store",),
    "python_multipart": ("server.form",),
    **dict.fromkeys(("redis", "hiredis"), ("policies.limiting",)),
    "psycopg": ("accounts.postgres",),
    **dict.fromkeys(("torch", "transformers", "accelerate"), MODEL),
}
"""Packages that only some rooms may import, PURE excepted."""


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


def imports(module: str, source: str) -> Iterator[str]:
    """The dotted names a source imports, those under TYPE_CHECKING or in a function too: the law is about knowing."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = f"{HOUSE}.{module}".split(".")[: -node.level] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    """What a module, named as within the house, imports against the law."""
    found: list[str] = []
    for name in imports(module, source):
        package, _, inside = name.partition(".")
        if package == HOUSE:
            lawful = all(within(inside, ROOMS[room]) for room in ROOMS if within(module, (room,)))
        else:
            closed = [PACKAGES[room] for room in PACKAGES if within(module, (room,))]
            lawful = package in sys.stdlib_module_names or all(package in allowed for allowed in closed)
            owned = package not in OWNERS or within(module, OWNERS[package])
            lawful &= owned and not (package in OWNERS and within(module, PURE))
        if not lawful:
            found.append(f"{module} imports {name}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for base, folder in ((ROOT / HOUSE, HOUSE), (ROOT, "policies"), (ROOT, "adapters")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def test_every_module_keeps_the_law() -> None:
    checked = list(modules())
    assert {"messages", "policies", "adapters", "server"} <= {name for name, _ in checked}
    assert [found for name, path in checked for found in violations(name, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("messages", "import numpy"),
        ("events", "from qwen3vl_compat.wire import sse"),
        ("wire.sse", "from ..settings import Settings"),
        ("wire.openai_chat", "import PIL.Image"),
        ("media.image", "from numpy import array\nimport torch"),
        ("policies.keys", "from litestar import Request"),
        ("policies.rate", "if 0:\n    from qwen3vl_compat import engines"),
        ("adapters.client", "def f():\n    import qwen3vl_compat.server.app"),
        ("engines.local.scheduler", "import torch"),
        ("engines.scripted", "import transformers.models"),
        ("demo.pictures", "import torch"),
        ("tokens", "from transformers import AutoTokenizer"),
        ("server.app", "from langchain_core import messages"),
        ("cli", "import litestar"),
        ("media.image", "import httpcore"),
        ("media.spool", "from obstore import put_async"),
        ("server.app", "import python_multipart"),
        ("accounts.keys", "import psycopg.errors"),
        ("doctor.wires", "from qwen3vl_compat.wire import openai_chat"),
    ],
)
def test_a_planted_violation_is_caught(module: str, planted: str) -> None:
    assert len(violations(module, planted)) == 1


@pytest.mark.parametrize(
    ("module", "lawful"),
    [
        ("wire.sse", "import json, msgspec\nfrom . import openai_chat\nfrom qwen3vl_compat.errors import ApiError"),
        ("policies.rate", "from limits.aio import storage\nfrom qwen3vl_compat.accounts.keys import Key"),
        ("engines.local.runner", "import torch, transformers\nfrom qwen3vl_compat.media import image"),
        ("adapters.langchain", "from langchain_core.messages import AIMessage"),
    ],
)
def test_what_the_law_allows_passes(module: str, lawful: str) -> None:
    assert violations(module, lawful) == []


@pytest.mark.parametrize("room", ["server", "wire", "media", "policies"])
def test_importing_a_front_room_leaves_torch_out(room: str) -> None:
    """Every module of the room at once, in a fresh process."""
    names = [f"{HOUSE}.{name}" for name, _ in modules() if within(name, (room,))]
    probe = f"import sys, {', '.join(names)}; print(*{{'torch', 'transformers'}} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (out.returncode, out.stdout.strip()) == (0, ""), out.stderr
