"""What this process has charged since it started, in Prometheus' terms."""

from collections import Counter
from collections.abc import Iterator
from threading import Lock

from msgspec import Struct
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from qwen3vl_compat.accounts.money import NANO, Counts

_TOKENS = ("text_in", "vision_in", "cached_in", "out", "reasoning")


class Over(Struct, frozen=True, array_like=True, tag="over"):
    """A request whose row has left `open`; `cost` is in nano-units."""

    tenant: str
    model: str
    state: str
    cache: str
    counts: Counts
    cost: int


class Totals:
    """Requests that are over, with their tokens, pictures and cost, by model; by tenant too where that is asked for."""

    def __init__(self, currency: str, *, by_tenant: bool = False) -> None:
        """`currency` is that of the ledger."""
        self._currency, self._by_tenant = currency, by_tenant
        self._lock = Lock()
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._tokens: Counter[tuple[str, ...]] = Counter()
        self._pictures: Counter[tuple[str, ...]] = Counter()
        self._cost: Counter[tuple[str, ...]] = Counter()

    def add(self, over: Over) -> None:
        """Note a request. May be called from any thread."""
        whose = (over.model, over.tenant) if self._by_tenant else (over.model,)
        with self._lock:
            self._requests[(*whose, over.state, over.cache)] += 1
            for kind in _TOKENS:
                self._tokens[(*whose, kind)] += getattr(over.counts, kind)
            self._pictures[whose] += over.counts.pictures
            self._cost[(*whose, self._currency)] += over.cost

    def collect(self) -> Iterator[Metric]:
        """Everything, as prometheus_client's collectors do."""
        whose = ("model", "tenant") if self._by_tenant else ("model",)
        with self._lock:
            kept = [dict(each) for each in (self._requests, self._tokens, self._pictures, self._cost)]
        for (name, meaning, labels, scale), values in zip(_FAMILIES, kept, strict=True):
            family = CounterMetricFamily(name, meaning, labels=(*whose, *labels))
            for label, value in sorted(values.items()):
                family.add_metric(label, value / scale)
            yield family


_FAMILIES = (
    ("qwen3vl_requests", "Requests that are over, by how they ended and what the cache had", ("state", "cache"), 1),
    ("qwen3vl_request_tokens", "Their tokens by kind; reasoning is a part of out", ("kind",), 1),
    ("qwen3vl_request_pictures", "Their pictures, videos and pages", (), 1),
    ("qwen3vl_request_cost", "What they cost", ("currency",), NANO),
)
