"""Metrics of how the cluster comes through interruptions, from `Backend.status()`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

RESUME_IMPOSSIBLE = "resume_impossible_"
MIGRATED = "migrated_"


def survival(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Migrations, stalls, states, weights and dollars; nothing of what a status leaves out."""
    counters = status.get("counters") or {}
    yield _labelled("shuntserve_migrations", "Requests carried on", "kind", counters, MIGRATED)
    yield _labelled(
        "shuntserve_resume_impossible",
        "Requests that no engine could go on with",
        "feature",
        counters,
        RESUME_IMPOSSIBLE,
    )
    yield from _durations(status.get("durations") or {})
    cluster = status.get("cluster") or {}
    if cluster:
        yield from _states(cluster)
        yield GaugeMetricFamily(
            "shuntserve_dollars_per_hour", "Price of all nodes", cluster["cost_per_hour"]
        )


def _labelled(
    name: str, text: str, label: str, counters: Mapping[str, int], prefix: str
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in counters.items():
        if key.startswith(prefix):
            family.add_metric([key.removeprefix(prefix)], value)
    return family


def _durations(durations: Mapping[str, Any]) -> Iterator[Metric]:
    if "stall" in durations:
        stalls = HistogramMetricFamily(
            "shuntserve_stall_seconds", "Order to move to next token", labels=["kind"]
        )
        for kind, counted in durations["stall"].items():
            stalls.add_metric([kind], _buckets(counted), counted["seconds"])
        yield stalls
    if "switch" in durations:
        switches = HistogramMetricFamily(
            "shuntserve_switch_seconds", "From an engine to its successor", labels=["part"]
        )
        for part, counted in durations["switch"].items():
            switches.add_metric([part], _buckets(counted), counted["seconds"])
        yield switches
    if "queue" in durations:
        waits = HistogramMetricFamily("shuntserve_queue_seconds", "Arrival to first engine")
        waits.add_metric([], _buckets(durations["queue"]), durations["queue"]["seconds"])
        yield waits


def _buckets(counted: Mapping[str, Any]) -> list[tuple[str, float]]:
    bounds = [*map(str, counted["bounds"]), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counted["counts"])), strict=True))


def _states(cluster: Mapping[str, Any]) -> Iterator[Metric]:
    for kind in ("node", "pipeline"):
        family = GaugeMetricFamily(
            f"shuntserve_{kind}s", f"{kind.capitalize()}s in a state", labels=["state"]
        )
        for state, count in Counter(part["state"] for part in cluster[f"{kind}s"]).items():
            family.add_metric([state], count)
        yield family
    moves = CounterMetricFamily(
        "shuntserve_transitions", "Of nodes and pipelines", labels=["old", "new"]
    )
    for way, count in cluster["transitions"].items():
        moves.add_metric(way.split("->"), count)
    yield moves
    read = CounterMetricFamily(
        "shuntserve_weights_read_bytes", "Read from the weight store", labels=["node"]
    )
    for node in cluster["nodes"]:
        read.add_metric([node["name"]], node["weights_read_bytes"])
    yield read
