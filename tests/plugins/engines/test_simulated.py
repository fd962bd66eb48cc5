"""The simulated engine keeps the contract, and the durations that it was told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
from attrs import evolve

from shuntserve_core.interfaces.engine import EngineLaunch, RankLaunch
from shuntserve_core.registry import Registry
from shuntserve_core.testing.engines import EngineContract, running
from shuntserve_core.types import ModelSpec
from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput
from shuntserve_plugins.engines.simulated import Simulated, SimulatedSpec
from shuntserve_plugins.engines.simulated_steps import Simulation, made_up_output

MODEL = ModelSpec("tiny", 2, 64, 4, 2, 16, 128, 1000)
SPEC = SimulatedSpec("e", "tiny", 1000, 2, 100, "t", "127.0.0.1", 1.0, 0.1, 0.0, 1, 0.0)


def launch(**changes: object) -> EngineLaunch:
    known: dict[str, object] = {
        "engine_id": "sim-1",
        "model": MODEL,
        "layers": ((0, 2),),
        "tensor_parallel": (1,),
        "ranks": (RankLaunch("n1", "127.0.0.1", 0, 0, 0, ""),),
        "link_token": "secret",
        "max_batch": 4,
        "max_length": 2000,
        "kv_bytes": 0,
        "stage_seconds": {"ttft": 2.0, "tpot": 0.05, "throughput_rps": 8.0},
    } | changes
    for attribute in attrs.fields(EngineLaunch):
        if attribute.default is attrs.NOTHING and attribute.name not in known:
            known[attribute.name] = ""  # nothing that this engine looks at
    return EngineLaunch(**known)  # type: ignore[arg-type]


class TestSimulated(EngineContract):
    @contextmanager
    def engine(self) -> Iterator[tuple[str, str]]:
        with running(Simulated(scale=0.01), launch()) as address:
            yield address, "secret"


def test_it_ends_with_its_agent() -> None:
    (command,) = Simulated().workers(launch())
    process = subprocess.Popen(
        command.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(command.stdin)
    process.stdin.flush()
    events = [json.loads(process.stdout.readline())["event"] for _ in range(2)]
    assert events == ["listening", "ready"]
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()


def test_it_is_registered() -> None:
    assert Registry().get("engine", "simulated") is Simulated


def test_options_come_before_the_estimate_and_scale_both() -> None:
    spec = Simulated(tpot=0.2, scale=0.5).spec(launch())
    assert (spec.ttft, spec.tpot, spec.throughput) == (1.0, 0.1, 16.0)
    assert Simulated(scale=0).spec(launch()).throughput == 0


def simulate(simulation: Simulation, until: float) -> list[tuple[float, StepOutput]]:
    """Run on a clock that jumps from one due time to the next."""
    now, heard = 0.0, []
    while True:
        outputs, due = simulation.step(now)
        heard += [(now, output) for output in outputs]
        if due is None or due > until:
            return heard
        now = max(now, due)


def request(name: str, max_tokens: int = 5, **sampling: object) -> EngineRequest:
    params = SamplingParams(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return EngineRequest(name, (1, 2, 3), params)


def test_first_token_and_gaps_are_those_it_was_told() -> None:
    simulation = Simulation(SPEC)
    simulation.submit(request("a", 20))
    times = [time for time, _ in simulate(simulation, 100)]
    assert times[0] == pytest.approx(1.0)
    assert times[-1] - times[0] == pytest.approx(19 * 0.1, abs=0.1)


def test_a_full_batch_makes_the_others_wait() -> None:
    simulation = Simulation(SPEC)
    for name in "abc":
        simulation.submit(request(name))
    assert simulation.step(0.0) == ([], 1.0)
    assert (simulation.load.running, simulation.load.waiting) == (2, 1)
    heard = simulate(simulation, 100)
    first = {output.id: time for time, output in reversed(heard)}
    assert first["c"] > 2.0
    assert simulation.load.running == 0


def test_starts_are_spread_by_the_throughput() -> None:
    simulation = Simulation(evolve(SPEC, throughput=2.0, max_batch=50, ttft=0.0))
    for i in range(10):
        simulation.submit(request(str(i), 1))
    times = [time for time, _ in simulate(simulation, 100)]
    assert len(times) == 10
    assert times[-1] - times[0] == pytest.approx(4.5, abs=0.51)


def test_tokens_depend_on_prompt_seed_and_place_alone() -> None:
    def tokens(**changes: object) -> list[int]:
        return made_up_output((1, 2), SamplingParams(max_tokens=9, **changes), 1000)  # type: ignore[arg-type]

    assert tokens() == tokens()
    assert tokens(seed=1) != tokens(seed=2)
    assert made_up_output((1,), SamplingParams(9), 1000) != tokens()


def test_an_aborted_request_leaves_the_queue_or_the_batch() -> None:
    simulation = Simulation(SPEC)
    for name in "abc":
        simulation.submit(request(name))
    simulation.step(0.0)
    for name in ("a", "c", "unknown"):
        simulation.abort(name)
    assert {output.id for _, output in simulate(simulation, 100)} == {"b"}
