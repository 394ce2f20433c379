"""What the engine tells of itself, in Prometheus' terms."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from qwen3vl_compat.engines.local.scheduler import Scheduler
from qwen3vl_compat.engines.local.vision import Vision

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """Counters kept as things happen, gauges read when asked."""

    def __init__(self, scheduler: Scheduler, vision: Vision) -> None:
        self._scheduler, self._vision = scheduler, vision
        self.compiling = self.compiled = False
        self._registry = registry = CollectorRegistry()
        self.prompt_tokens = Counter("qwen3vl_prompt_tokens", "Prompt tokens of requests begun", registry=registry)
        self.tokens = Counter("qwen3vl_generated_tokens", "Tokens generated", registry=registry)
        self.first_token = Histogram(
            "qwen3vl_first_token_seconds", "From the queue to the first token", buckets=_SECONDS, registry=registry
        )
        self.between_tokens = Histogram(
            "qwen3vl_inter_token_seconds", "Between tokens of one answer", buckets=_SECONDS, registry=registry
        )

    def collect(self) -> Iterator[Metric]:
        """Everything, as prometheus_client's collectors do."""
        yield from self._registry.collect()
        yield from self._gauges()
        yield from self._totals()

    def _gauges(self) -> Iterable[Metric]:
        blocks = self._scheduler.blocks
        for name, meaning, value in (
            ("qwen3vl_waiting", "Answers that wait for a row and memory", len(self._scheduler.waiting)),
            ("qwen3vl_running", "Answers in the making", len(self._scheduler.running)),
            ("qwen3vl_kv_used_ratio", "Share of the KV blocks in use", blocks.used / max(1, blocks.count)),
            ("qwen3vl_kv_tokens", "Tokens the KV memory holds", blocks.tokens),
            ("qwen3vl_compiling", "Whether the decode step is being compiled", self.compiling),
            ("qwen3vl_compiled", "Whether the decode step runs compiled", self.compiled),
            ("qwen3vl_vision_bytes", "Embeddings of pictures in memory", self._vision.bytes),
        ):
            yield GaugeMetricFamily(name, meaning, value)

    def _totals(self) -> Iterable[Metric]:
        blocks = self._scheduler.blocks
        for name, meaning, value in (
            ("qwen3vl_prefix_queries", "Tokens looked for in earlier prompts", blocks.queries),
            ("qwen3vl_prefix_hits", "Tokens found in earlier prompts", blocks.hits),
            ("qwen3vl_vision_queries", "Pictures needed", self._vision.queries),
            ("qwen3vl_vision_hits", "Pictures that had been encoded before", self._vision.hits),
            ("qwen3vl_preemptions", "Answers that lost their memory and began again", self._scheduler.preemptions),
        ):
            yield CounterMetricFamily(name, meaning, value)
