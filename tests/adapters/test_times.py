"""What a model says of time is read as it is meant."""

import pytest

from qwen3vl_compat.adapters.times import seconds_in


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("<12.5 seconds>", [12.5]),
        ("The door opens at <0.2 seconds> and closes at <7200.0 seconds>.", [0.2, 7200.0]),
        ("01:15:32", [4532.0]),
        ("at 1:02.5, then 00:00:07", [62.5, 7.0]),
        ("75:10", [4510.0]),
        ("about 12.5 s, or 13 seconds, or 14sec", [12.5, 13.0, 14.0]),
        ("1:75:00 and 12:99", []),
        ("version 1.2.3, page 7, 16:9:4:3, 5 sunsets", []),
        ("", []),
    ],
)
def test_moments(text: str, seconds: list[float]) -> None:
    assert seconds_in(text) == seconds
