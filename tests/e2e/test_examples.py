"""The examples, run as programs of their own against running servers."""

import os
import re
import subprocess
import sys

import pytest

from examples.read_scans import edits
from tests.serving import ROOT, Served


def run(name: str, served: Served) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), "--url", served.url, "--key", served.key]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bundled_model_reads_the_scans(demo: Served) -> None:
    told = run("read_scans.py", demo)
    rates = [float(rate) for rate in re.findall(r"CER ([\d.]+)", told)]
    assert len(rates) == 9
    assert rates[-1] < 0.05, told
    assert "6.png: 'FRAGILE', CER 0.000" in told


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "examples").glob("*.py"))])
def test_each_says_how_to_run_it_and_on_which_model(name: str) -> None:
    """Outside the environment that `make run` makes they find nothing of ours; the bundled model can do one of them."""
    command = [sys.executable, str(ROOT / "examples" / name), "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, capture_output=True, check=True, env=environment, encoding="utf-8").stdout
    assert f"`.venv/bin/python examples/{name} " in told
    assert ("serve --model Qwen/" in told) is (name != "read_scans.py")
    assert "bundled" in told


@pytest.mark.parametrize(
    ("one", "other", "fewest"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("0O", "O0", 2),
        ("AB", "B", 1),
    ],
)
def test_errors_are_counted(one: str, other: str, fewest: int) -> None:
    assert edits(one, other) == edits(other, one) == fewest


def test_repair_advice_with_a_link_from_a_function(expert: Served) -> None:
    defect, advice = run("repair_advice.py", expert).splitlines()
    assert defect == "hinge: bent, moderate"
    assert advice.endswith("tighten both screws: https://manuals.example.org/hinge.pdf")


def test_product_texts_in_three_languages(expert: Served) -> None:
    assert run("product_texts.py", expert).splitlines() == [
        "[en] Lamp: It shines.", "[de] Lampe: Sie leuchtet.", "[zh] 灯: 它会发光。",
    ]  # fmt: skip
