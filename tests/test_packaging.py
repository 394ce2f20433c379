"""What reaches a user: the two linked folders are real files in the sdist and in the wheel made from it."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
WANTED = (
    "adapters/client.py",
    "adapters/calling/caller.py",
    "policies/__init__.py",
    "py.typed",
    "demo/chat_template.jinja",
)


def build(kind: str, source: Path, into: Path) -> Path:
    """Build in a process of its own: setuptools works in, and changes, the current folder."""
    subprocess.run([sys.executable, "-c", BUILD, kind, str(into)], cwd=source, check=True, capture_output=True)
    (made,) = into.iterdir()
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files git knows of, links kept as links."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    assert (copy / "qwen3vl_compat" / "adapters").is_symlink()
    return copy


def test_wheel_and_sdist_hold_the_linked_folders(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    (tmp_path / "wheel").mkdir()
    with tarfile.open(build("build_sdist", checkout, tmp_path / "sdist")) as sdist:
        real = {member.name.partition("/")[2] for member in sdist if member.isfile()}
        sdist.extractall(tmp_path, filter="data")
    assert {f"qwen3vl_compat/{name}" for name in WANTED} <= real

    (source,) = tmp_path.glob("qwen3vl_compat-*")
    with zipfile.ZipFile(build("build_wheel", source, tmp_path / "wheel")) as wheel:
        held = set(wheel.namelist())
    assert {f"qwen3vl_compat/{name}" for name in WANTED} <= held
    assert not any(name.startswith(("adapters/", "policies/", "tests/")) for name in held)


def test_the_top_level_names_stay_free() -> None:
    """The editable install maps one package; from elsewhere, a bare `adapters` is not ours."""
    probe = (
        "import importlib.util as u; print([n for n in ('adapters', 'policies', 'tests') if u.find_spec(n)]);"
        "import qwen3vl_compat.adapters"
    )
    out = subprocess.run([sys.executable, "-I", "-c", probe], cwd="/", capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
