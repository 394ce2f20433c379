"""The whole examination of the bundled model, through the HTTP API."""

import pytest

from benchmarks.examination import examine
from qwen3vl_compat.demo.pictures import QUESTIONS
from tests.serving import Served


def test_a_sample(demo: Served) -> None:
    marks = examine(demo.url, demo.key, count=48, seed=7)["all"]
    # The card's figure is 0.93; the promise, 0.90 on 504 pictures, is what `make slow` holds the model to.
    assert sum(marks) >= 0.85 * len(marks), f"{sum(marks)} of {len(marks)}"


@pytest.mark.slow
def test_the_whole(demo: Served) -> None:
    marks = examine(demo.url, demo.key, count=504)
    for heading in ("all", *QUESTIONS):
        share = sum(marks[heading]) / len(marks[heading])
        assert share >= 0.90, f"{heading}: {share:.3f}"
