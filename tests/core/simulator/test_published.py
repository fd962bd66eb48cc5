"""Against what was measured on real GPUs (arXiv 2606.18600), with nothing fitted to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve_core.config import Config, load_config
from shuntserve_core.planning.written import estimate_pipelines, parse_pipeline
from shuntserve_core.simulator.profile import VLLM_0_8_1
from shuntserve_core.simulator.recovery import Recovery
from shuntserve_core.simulator.result import Result
from shuntserve_core.simulator.run import Setting, simulate
from shuntserve_core.studies.study import read_study
from shuntserve_core.traces.events import read_events
from shuntserve_core.traces.readers import read_requests
from shuntserve_core.traces.workload import Requests

EXAMPLES = Path(__file__).parents[3] / "examples"
TRACE = EXAMPLES / "traces" / "azure-conversation-2023.csv"
STUDY = read_study(EXAMPLES / "studies" / "paper.toml")
PIPELINES = {table.name: table.pipelines for table in STUDY.placement if table.pipelines}
MEASURED = {table.name: table.measured for table in STUDY.experiment}
OFFLINE = MEASURED["Offline throughput"]
INTERRUPTED = MEASURED["Interruptions, all requests at once"]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(EXAMPLES / "paper-llama-3.1-70b.toml")


@pytest.fixture(scope="module")
def trace() -> Requests:
    return read_requests(TRACE)


def run(config: Config, name: str, requests: Requests, setting: Setting) -> Result:
    chosen = [parse_pipeline(text, config) for text in PIPELINES[name]]
    return simulate(config, estimate_pipelines(config, chosen, "paper"), requests, setting)


def test_the_workload_is_the_published_one(trace: Requests) -> None:
    first = trace.between(0.0, 300.0)
    assert (len(trace), len(first)) == (16663, 1309)
    assert (first.prompt.sum(), first.answer.sum()) == (1_015_532, 357_872)


def test_offline_throughput(config: Config, trace: Requests) -> None:
    requests = trace.between(0.0, 300.0).scaled(0.0)
    found = {
        name: run(config, name, requests, Setting(profile=VLLM_0_8_1)).summary() for name in OFFLINE
    }
    rates = {name: summary["requests_per_second"] for name, summary in found.items()}
    assert rates["ShuntServe"] > rates["even split"]
    for name, measured in OFFLINE.items():
        assert rates[name] == pytest.approx(measured, rel=0.2), name


def test_interruptions(config: Config, trace: Requests) -> None:
    events = read_events(EXAMPLES / "traces" / "paper-interruptions.csv")
    rates = {}
    for strategy in INTERRUPTED:
        setting = Setting(
            profile=VLLM_0_8_1,
            recovery=Recovery(strategy=strategy, boot_seconds=0.0, replan=False),
            events=events,
            duration=3600.0,
        )
        requests = trace.between(0.0, 1200.0).scaled(0.0)
        rates[strategy] = run(config, "ShuntServe", requests, setting).summary()[
            "requests_per_second"
        ]
    assert sorted(rates, key=rates.__getitem__) == sorted(INTERRUPTED, key=INTERRUPTED.__getitem__)
    for strategy, measured in INTERRUPTED.items():
        found = rates[strategy] / rates["on-demand"]
        assert found == pytest.approx(measured / INTERRUPTED["on-demand"], abs=0.1), strategy
