"""vLLM's own names on `/metrics`: dashboards, autoscalers and routers that know vLLM scrape them.

The cluster is shown as one engine, number 0; what each pipeline does is under our own names.
Names, types, labels and buckets are those of vLLM 0.32 (vllm/v1/metrics/loggers.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from shuntserve_plugins.frontdoors.openai.pace import Latencies


def stock_families(model: str, latencies: Latencies, status: Mapping[str, Any]) -> Iterator[Metric]:
    """All of them, from what answers took and from `Backend.status()`."""
    labels = {"model_name": model, "engine": "0"}
    yield from _of_engines(labels, latencies, status)
    yield _ends(labels, latencies)
    for name, text, tally in (
        ("time_to_first_token_seconds", "Arrival to first token", latencies.first_token),
        ("inter_token_latency_seconds", "Token to token", latencies.between_tokens),
        (
            "request_time_per_output_token_seconds",
            "Mean of a request, without its first token",
            latencies.per_token,
        ),
        ("e2e_request_latency_seconds", "Arrival to end", latencies.request),
        ("request_queue_time_seconds", "Arrival to first engine", latencies.queue),
        ("request_inference_time_seconds", "First engine to last token", latencies.inference),
        ("request_prefill_time_seconds", "First engine to first token", latencies.prefill),
        ("request_decode_time_seconds", "First to last token", latencies.decode),
        ("request_prompt_tokens", "Prompt tokens of a request", latencies.prompt),
        ("request_generation_tokens", "Tokens generated for a request", latencies.generation),
        ("request_params_max_tokens", "max_tokens of a request", latencies.max_tokens),
        ("request_params_n", "n of a request", latencies.choices),
    ):
        yield tally.family(f"vllm:{name}", text, labels)


def _of_engines(
    labels: Mapping[str, str], latencies: Latencies, status: Mapping[str, Any]
) -> Iterator[Metric]:
    engines = status.get("engines") or {}
    waiting = engines.get("waiting", 0) + status.get("waiting", 0)
    names, values = list(labels), list(labels.values())
    for name, text, value in (
        ("num_requests_running", "Requests that engines compute", engines.get("running", 0)),
        ("num_requests_waiting", "Requests that wait, here and in engines", waiting),
        ("kv_cache_usage_perc", "Share of KV memory in use, 0 to 1", engines.get("kv_used", 0.0)),
    ):
        gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=names)
        gauge.add_metric(values, value)
        yield gauge
    for name, text, value in (
        ("prefix_cache_queries", "Tokens looked up", engines.get("prefix_queries", 0)),
        ("prefix_cache_hits", "Tokens found", engines.get("prefix_hits", 0)),
        ("num_preemptions", "Requests computed anew", engines.get("preemptions", 0)),
        ("prompt_tokens", "Prompt tokens read", latencies.prompt_tokens),
        ("generation_tokens", "Tokens generated", latencies.generation_tokens),
    ):
        counter = CounterMetricFamily(f"vllm:{name}", text, labels=names)
        counter.add_metric(values, value)
        yield counter


def _ends(labels: Mapping[str, str], latencies: Latencies) -> Metric:
    names, values = list(labels), list(labels.values())
    family = CounterMetricFamily(
        "vllm:request_success", "Requests ended", labels=[*names, "finished_reason"]
    )
    for reason, count in latencies.ended.items():
        family.add_metric([*values, reason], count)
    return family
