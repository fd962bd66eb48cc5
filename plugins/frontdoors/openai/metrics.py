"""Prometheus metrics of the front door, and of the cluster behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shuntserve_core.interfaces.frontdoor import Backend
from shuntserve_plugins.frontdoors.openai.pace import Latencies
from shuntserve_plugins.frontdoors.openai.stock import stock_families
from shuntserve_plugins.frontdoors.openai.survival import survival

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one front door, in a registry of their own."""

    def __init__(self, backend: Backend, model: str) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "shuntserve_requests",
            "HTTP requests answered",
            ["endpoint", "status"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "shuntserve_requests_in_flight", "Generations under way", registry=registry
        )
        """Read when Prometheus asks, as `Site` tells it how."""
        self.connections = Gauge(
            "shuntserve_connections", "Open client connections", registry=registry
        )
        self.prompt_tokens = Counter(
            "shuntserve_prompt_tokens", "Prompt tokens taken", registry=registry
        )
        self.completion_tokens = Counter(
            "shuntserve_completion_tokens", "Tokens generated", registry=registry
        )
        self.disconnects = Counter(
            "shuntserve_client_disconnects", "Clients gone before the end", registry=registry
        )
        self.cut = Counter(
            "shuntserve_slow_clients_cut", "Clients cut off for not reading", registry=registry
        )
        self.first_token = Histogram(
            "shuntserve_time_to_first_token_seconds",
            "Arrival to first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.duration = Histogram(
            "shuntserve_request_seconds",
            "Arrival to end of generation",
            buckets=_SECONDS,
            registry=registry,
        )
        self.latencies = Latencies(backend.max_length)
        self.registry.register(_Cluster(backend, model, self.latencies))
        self._by_endpoint: dict[tuple[str, int], Counter] = {}

    def answered(self, endpoint: str, status: int) -> None:
        """Count a response."""
        counter = self._by_endpoint.get((endpoint, status))
        if counter is None:
            counter = self.requests.labels(endpoint, str(status))
            self._by_endpoint[endpoint, status] = counter
        counter.inc()

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Cluster(Collector):
    """What `Backend.status()` counts, read when Prometheus asks."""

    def __init__(self, backend: Backend, model: str, latencies: Latencies) -> None:
        self._backend, self._model, self._latencies = backend, model, latencies

    def collect(self) -> Iterator[Metric]:
        ready = 1.0 if self._backend.ready else 0.0
        yield GaugeMetricFamily("shuntserve_ready", "Whether any pipeline serves", ready)
        status = self._backend.status()
        for name, value in _numbers(status):
            yield GaugeMetricFamily(f"shuntserve_cluster_{name}", f"Cluster: {name}", value)
        yield from survival(status)
        for name, value in _numbers(status.get("counters")):
            yield CounterMetricFamily(f"shuntserve_cluster_{name}", f"Cluster: {name}", value)
        yield from _pipelines(status.get("pipelines") or ())
        latencies = self._latencies
        yield latencies.between_tokens.family(
            "shuntserve_inter_token_latency_seconds", "Token to token of an answer"
        )
        yield latencies.per_token.family(
            "shuntserve_time_per_output_token_seconds",
            "Mean from the second token of an answer to its last",
        )
        yield from stock_families(self._model, latencies, status)

    def describe(self) -> list[Metric]:
        return []


def _pipelines(statuses: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """One gauge for each number of a pipeline's status."""
    gauges: dict[str, GaugeMetricFamily] = {}
    for status in statuses:
        engine = {f"engine_{name}": value for name, value in (status.get("engine") or {}).items()}
        for name, value in _numbers({**status, **engine}):
            if name not in gauges:
                gauges[name] = GaugeMetricFamily(
                    f"shuntserve_pipeline_{name}", f"Pipeline: {name}", labels=["pipeline"]
                )
            gauges[name].add_metric([str(status.get("name"))], value)
    yield from gauges.values()


def _numbers(counters: Any) -> Iterator[tuple[str, float]]:
    """Every number of a table, whatever its other entries are."""
    if not isinstance(counters, Mapping):
        return
    for name, value in counters.items():
        if isinstance(value, int | float):
            yield str(name).replace("-", "_").replace(".", "_"), float(value)
