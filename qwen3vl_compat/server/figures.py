"""What a process tells Prometheus beside its engine's figures: what was charged, and what moderators said."""

from collections import Counter
from collections.abc import Iterator
from threading import Lock

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from qwen3vl_compat.accounts.totals import Over, Totals
from qwen3vl_compat.policies.moderation import Judged
from qwen3vl_compat.settings import Settings

Told = Over | Judged
"""What figures are made of: requests that are over, and questions to moderators."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures:
    """Sums since the process started. Of what moderators said they hold no tenant and no category: labels stay few."""

    def __init__(self, settings: Settings) -> None:
        self._totals = Totals(settings.ledger.currency, by_tenant=settings.server.metrics_by_tenant)
        self._lock = Lock()
        self._verdicts: Counter[tuple[str, str]] = Counter()
        self._services = CollectorRegistry()
        self._seconds = Histogram(
            "qwen3vl_moderation_seconds",
            "How long services were asked, to their verdict or failure",
            ("moderator",),
            buckets=_SECONDS,
            registry=self._services,
        )

    def add(self, told: Told) -> None:
        """Note what happened. May be called from any thread."""
        if isinstance(told, Over):
            self._totals.add(told)
            return
        with self._lock:
            self._verdicts[told.moderator, told.verdict] += 1
        if told.seconds is not None:
            self._seconds.labels(told.moderator).observe(told.seconds)

    def collect(self) -> Iterator[Metric]:
        """Everything, as prometheus_client's collectors do."""
        yield from self._totals.collect()
        with self._lock:
            verdicts = sorted(self._verdicts.items())
        family = CounterMetricFamily(
            "qwen3vl_moderation_verdicts", "What came of questions to moderators", labels=("moderator", "verdict")
        )
        for labels, count in verdicts:
            family.add_metric(labels, count)
        yield family
        yield from self._services.collect()
