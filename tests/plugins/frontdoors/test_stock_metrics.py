"""The families that vLLM's dashboards and autoscalers scrape, beside vLLM's own source."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from shuntserve_core.testing.frontdoors import Reply, ScriptedBackend, fixed
from tests.plugins.frontdoors.conftest import MODEL, Serve, Served
from tests.plugins.frontdoors.http import request, send, until

NEEDED = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "generation_tokens",
    "request_success",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_params_max_tokens",
    "request_params_n",
}


async def families(served: Served) -> dict[str, Metric]:
    answer = await send(served.address, request(path="/metrics", method="GET"))
    return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}


def value(families: Mapping[str, Metric], name: str, **labels: str) -> float:
    wanted = {"model_name": MODEL, "engine": "0", **labels}
    for family in families.values():
        for sample in family.samples:
            if sample.name == name and sample.labels == wanted:
                return sample.value
    raise LookupError(name)


@frozen
class Declared:
    kind: str
    labels: frozenset[str]
    buckets: str | None
    """Name of the variable that has them."""


def vllm_source(name: str) -> ast.Module:
    spec = util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    (folder,) = spec.submodule_search_locations
    return ast.parse((Path(folder) / "v1" / "metrics" / name).read_text())


def declared() -> dict[str, Declared]:
    """Every family of vLLM's logger, by its name without `vllm:`."""
    kinds = {"_gauge_cls": "gauge", "_counter_cls": "counter", "_histogram_cls": "histogram"}
    found = {}
    for node in ast.walk(vllm_source("loggers.py")):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kind = kinds.get(node.func.attr)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            name = given.get("name")
            if kind and isinstance(name, ast.Constant):
                labels = ast.unparse(given["labelnames"])
                extra = {"finished_reason"} if "finished_reason" in labels else set()
                assert labels.startswith("labelnames") or name.value not in NEEDED
                buckets = ast.unparse(given["buckets"]) if "buckets" in given else None
                plain = str(name.value).removeprefix("vllm:")
                names = frozenset({"model_name", "engine"} | extra)
                found[plain] = Declared(kind, names, buckets)
    return found


async def test_names_types_labels_and_buckets_are_vllms(serve: Serve) -> None:
    theirs = declared()
    served = await serve()
    async with served.client() as client:
        await client.completions.create(model=MODEL, prompt="fox", max_tokens=3)
    page = await families(served)
    ours = {name.removeprefix("vllm:"): f for name, f in page.items() if name.startswith("vllm:")}
    assert ours.keys() == NEEDED
    for name, family in ours.items():
        their = theirs[name]
        assert family.type == their.kind, name
        labels = {frozenset(s.labels) - {"le"} for s in family.samples}
        assert labels == {their.labels}, name
        if their.buckets is not None:
            bounds = {float(s.labels["le"]) for s in family.samples if "le" in s.labels}
            wanted = bounds_of(their.buckets.removesuffix("_buckets"), served)
            assert bounds - {float("inf")} == wanted, name


def bounds_of(family: str, served: Served) -> set[float]:
    """vLLM's buckets of a kind, for sequences as long as the backend's."""
    module: dict[str, Any] = {"__name__": "buckets"}
    exec(compile(vllm_source("buckets.py"), "buckets.py", "exec"), module)
    found = module["histogram_buckets"](family, max_model_len=served.backend.max_length)
    return set(map(float, found))


async def test_counts_and_latencies(serve: Serve) -> None:
    backend = ScriptedBackend(per_step=2, interval=0.01)
    served = await serve(backend)
    async with served.client() as client:
        answer = await client.completions.create(model=MODEL, prompt="fox dog", max_tokens=6, n=2)
    assert answer.usage is not None
    prompt = len(backend.submitted[0].prompt)
    page = await families(served)
    assert value(page, "vllm:prompt_tokens_total") == 2 * prompt
    assert value(page, "vllm:generation_tokens_total") == 12
    assert value(page, "vllm:request_success_total", finished_reason="length") == 2
    assert value(page, "vllm:request_success_total", finished_reason="stop") == 0
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert value(page, f"vllm:{name}_count") == 2
    # Three steps of two tokens: two pauses for each answer.
    assert value(page, "vllm:inter_token_latency_seconds_count") == 4
    assert value(page, "vllm:request_time_per_output_token_seconds_count") == 2
    assert value(page, "vllm:request_generation_tokens_sum") == 12
    assert value(page, "vllm:request_prompt_tokens_sum") == 2 * prompt
    assert value(page, "vllm:request_params_max_tokens_sum") == 12
    assert value(page, "vllm:request_params_n_sum") == 4
    assert value(page, "vllm:request_queue_time_seconds_count") == 2
    assert value(page, "vllm:kv_cache_usage_perc") == 0.25
    whole = value(page, "vllm:e2e_request_latency_seconds_sum")
    assert whole >= value(page, "vllm:request_inference_time_seconds_sum") > 0
    own = page["shuntserve_inter_token_latency_seconds"].samples
    assert [s.value for s in own if s.name.endswith("_count")] == [4]


async def test_why_answers_ended(serve: Serve, tokenizer: Any) -> None:
    stop = tokenizer.stop_ids[0]
    served = await serve(ScriptedBackend(script=fixed([5, stop])))
    async with served.client() as client:
        await client.completions.create(model=MODEL, prompt="fox")
    failing = await serve(ScriptedBackend(script=lambda _: Reply((5,), "error", "broke")))
    answer = await send(
        failing.address, request({"model": MODEL, "prompt": ["fox", "dog"], "max_tokens": 9})
    )
    assert answer.status == 503
    leaving = await serve(ScriptedBackend(interval=0.01))
    async with leaving.client() as client:
        stream = await client.completions.create(
            model=MODEL, prompt="fox", max_tokens=999, stream=True
        )
        await stream.close()
    await until(lambda: not leaving.backend.running)
    ended = [
        {
            reason: value(await families(one), "vllm:request_success_total", finished_reason=reason)
            for reason in ("stop", "length", "abort", "error", "repetition")
        }
        for one in (served, failing, leaving)
    ]
    assert [{k: v for k, v in one.items() if v} for one in ended] == [
        {"stop": 1},
        {"error": 2},
        {"abort": 1},
    ]
