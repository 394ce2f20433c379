"""What a process tells Prometheus of its moderators."""

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from qwen3vl_compat.accounts.money import Counts
from qwen3vl_compat.accounts.totals import Over
from qwen3vl_compat.policies.moderation import Judged
from qwen3vl_compat.server.figures import Figures, Told
from qwen3vl_compat.settings import Settings


def told(figures: Figures) -> dict[str, float]:
    """Each figure by its name and labels, as Prometheus reads it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(figures)  # type: ignore[arg-type]
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_verdicts_and_times_are_kept_by_moderator() -> None:
    figures = Figures(Settings())
    for judged in (
        Judged("words", "passed"),
        Judged("words", "passed"),
        Judged("words", "flagged"),
        Judged("svc", "passed", 0.2),
        Judged("svc", "failed", 5.0),
        Judged("svc", "failed"),
    ):
        figures.add(judged)
    found = told(figures)
    verdicts = {name: value for name, value in found.items() if "verdicts" in name}
    assert verdicts == {
        'qwen3vl_moderation_verdicts_total{moderator="words",verdict="passed"}': 2,
        'qwen3vl_moderation_verdicts_total{moderator="words",verdict="flagged"}': 1,
        'qwen3vl_moderation_verdicts_total{moderator="svc",verdict="passed"}': 1,
        'qwen3vl_moderation_verdicts_total{moderator="svc",verdict="failed"}': 2,
    }
    assert found['qwen3vl_moderation_seconds_count{moderator="svc"}'] == 2
    assert found['qwen3vl_moderation_seconds_sum{moderator="svc"}'] == 5.2
    assert found['qwen3vl_moderation_seconds_bucket{le="0.25",moderator="svc"}'] == 1
    assert not any("seconds" in name and "words" in name for name in found)


def test_what_figures_are_made_of_travels_from_a_front() -> None:
    made: tuple[Told, ...] = (
        Over("acme", "m", "final", "off", Counts(out=1), 5), Judged("svc", "passed", 0.5), Judged("words", "flagged"),
    )  # fmt: skip
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=tuple[Told, ...]) == made
