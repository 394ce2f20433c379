"""What a process tells Prometheus of what it has charged."""

from prometheus_client import CollectorRegistry, generate_latest

from qwen3vl_compat.accounts.money import NANO, Counts
from qwen3vl_compat.accounts.totals import Over, Totals

COUNTS = Counts(text_in=10, vision_in=4, cached_in=3, out=7, reasoning=2, pictures=1)


def told(totals: Totals) -> dict[str, float]:
    """Each figure by its name and labels, as Prometheus reads it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(totals)  # type: ignore[arg-type]
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_sums_are_kept_by_model() -> None:
    totals = Totals("USD")
    totals.add(Over("acme", "qwen3-vl", "final", "off", COUNTS, NANO // 2))
    totals.add(Over("other", "qwen3-vl", "final", "off", COUNTS, 1))
    totals.add(Over("other", "qwen3-vl", "aborted", "off", Counts(), 0))
    assert told(totals) == {
        'qwen3vl_requests_total{cache="off",model="qwen3-vl",state="final"}': 2,
        'qwen3vl_requests_total{cache="off",model="qwen3-vl",state="aborted"}': 1,
        'qwen3vl_request_tokens_total{kind="text_in",model="qwen3-vl"}': 20,
        'qwen3vl_request_tokens_total{kind="vision_in",model="qwen3-vl"}': 8,
        'qwen3vl_request_tokens_total{kind="cached_in",model="qwen3-vl"}': 6,
        'qwen3vl_request_tokens_total{kind="out",model="qwen3-vl"}': 14,
        'qwen3vl_request_tokens_total{kind="reasoning",model="qwen3-vl"}': 4,
        'qwen3vl_request_pictures_total{model="qwen3-vl"}': 2,
        'qwen3vl_request_cost_total{currency="USD",model="qwen3-vl"}': 0.500000001,
    }


def test_tenants_are_named_only_where_that_is_asked_for() -> None:
    named, unnamed = Totals("USD", by_tenant=True), Totals("USD")
    for totals in (named, unnamed):
        totals.add(Over("acme", "qwen3-vl", "final", "off", COUNTS, 1))
        totals.add(Over("other", "qwen3-vl", "final", "off", COUNTS, 1))
    assert not any("acme" in name for name in told(unnamed))
    assert told(named)['qwen3vl_requests_total{cache="off",model="qwen3-vl",state="final",tenant="acme"}'] == 1
    assert len(told(named)) == 2 * len(told(unnamed))


def test_nothing_is_told_before_the_first() -> None:
    assert told(Totals("USD")) == {}
