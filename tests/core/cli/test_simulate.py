"""`shuntserve simulate`."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from shuntserve_core.simulator.files import profile_to_json, read_profile
from shuntserve_core.simulator.profile import EMBEDDED, MeasuredSteps
from tests.core.cli.conftest import Shuntserve
from tests.core.simulator.configs import write


@pytest.fixture
def config(tmp_path: Path) -> Path:
    trace = "".join(f"{i * 0.1},100,{20 + i % 5}\n" for i in range(100))
    (tmp_path / "trace.csv").write_text("at,input_tokens,output_tokens\n" + trace)
    (tmp_path / "events.csv").write_text("at,node,kind,notice\n2,one#0,notice,5\n")
    return write(tmp_path)


def test_everything_at_once(config: Path, shuntserve: Shuntserve) -> None:
    here = config.parent
    plan = shuntserve("plan", config, "--optimizer", "beam-search", "--out", here / "plan.json")
    assert plan.code == 0
    done = shuntserve(
        "simulate", config, "--workload", here / "trace.csv", "--events", here / "events.csv",
        "--strategy", "migration", "--placement", here / "plan.json", "--profile", "vllm-0.8.1",
        "--time-scale", "2", "--out", here / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = done.json
    assert summary == json.loads((here / "out" / "summary.json").read_text())
    assert summary["finished"] == 100
    assert summary["seconds"] > 19.8
    with (here / "out" / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    latencies = [float(row["Latency"]) for row in rows]
    assert sum(latencies) / 100 == pytest.approx(summary["latency"]["mean"], rel=1e-4)
    notes = json.loads((here / "out" / "notes.json").read_text())
    assert any(note["what"] == "interruption notice" for note in notes["notes"])
    timeline = json.loads((here / "out" / "timeline.json").read_text())
    width = timeline["at"][1] - timeline["at"][0]
    assert sum(timeline["requests_per_second"]) * width == pytest.approx(100)


def test_for_a_person(config: Path, shuntserve: Shuntserve) -> None:
    done = shuntserve("simulate", config, "--rate", "30", "--requests", "50")
    assert done.code == 0, done.err
    assert "50 of 50 requests" in done.out
    assert "TTFT" in done.out


def test_the_same_seed_gives_the_same(config: Path, shuntserve: Shuntserve) -> None:
    def said(seed: int) -> dict[str, object]:
        command = ("simulate", config, "--rate", "30", "--requests", "50", "--variation", "3")
        summary = shuntserve(*command, "--seed", seed, "--json").json
        return {key: value for key, value in summary.items() if key != "wall_seconds"}

    assert said(1) == said(1)
    assert said(1) != said(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no workload"),
        (["--rate", "0"], "not in the range x>0"),
        (["--rate", "1", "--profile", "vlm"], "vllm"),
        (["--rate", "1", "--profile", "nothing.json"], "nothing.json"),
        (["--rate", "1", "--events-for", "on"], "one"),
    ],
)
def test_mistakes(config: Path, shuntserve: Shuntserve, options: list[str], said: str) -> None:
    if "--events-for" in options:
        options = [*options, "--events", str(config.parent / "events.csv")]
    done = shuntserve("simulate", config, *options)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_profiles_survive_a_file(tmp_path: Path) -> None:
    profile = evolve(EMBEDDED, name="mine", measured={"*": MeasuredSteps(0.01, 0.001)})
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(profile_to_json(profile)))
    assert read_profile(str(file)) == profile
    file.write_text('{"like": "vllm", "step_tokens": 512}')
    assert read_profile(str(file)).step_tokens == 512


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instance": "h9.large"}, "'h9.large' is not in .*add a .*cluster.* or plan again: "),
        ({"tensor_parallel": 64}, "a stage wants 64, .* GPUs; plan again: shuntserve plan"),
        ({"layers": 1}, "layers, the model has .*; plan again: shuntserve plan"),
    ],
)
def test_a_placement_of_something_else_is_refused(
    config: Path, shuntserve: Shuntserve, change: dict[str, Any], said: str
) -> None:
    plan = config.parent / "plan.json"
    assert shuntserve("plan", config, "--optimizer", "beam-search", "--out", plan).code == 0
    placement = json.loads(plan.read_text())
    placement["pipelines"][0]["stages"][0].update(change)
    plan.write_text(json.dumps(placement))
    done = shuntserve("simulate", config, "--rate", "1", "--placement", plan)
    assert done.code == 2
    told = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert len(told) == 1
    assert re.search(said, told[0]), done.err
