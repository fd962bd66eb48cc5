"""`shuntserve estimate`: known answers of the published model, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.cli.conftest import Shuntserve

EXAMPLES = Path(__file__).parents[3] / "examples"
QWEN = EXAMPLES / "paper-qwen3-32b.toml"
LLAMA = EXAMPLES / "paper-llama-3.1-70b.toml"


def test_a_published_pipeline(shuntserve: Shuntserve) -> None:
    stages = "g6.12xlarge:14,g6.12xlarge:14" + 4 * ",g6e.xlarge:13"
    result = shuntserve(
        "estimate", LLAMA, "--estimator", "paper", "--pipeline", stages, "--json"
    ).json
    assert result["throughput_rps"] == pytest.approx(1.9951945710714942, rel=1e-9)
    assert result["kv_blocks"] == 15173
    assert result["unused"] == {"g5.12xlarge": 2, "g6.12xlarge": 1, "g6e.xlarge": 0}
    assert result["cost_per_hour"] == pytest.approx(2 * 1.9445 + 4 * 0.704)


def test_parts_of_instances_share_them(shuntserve: Shuntserve) -> None:
    """Eight stages on one GPU each are two instances, and the published model likes them better."""
    stages = ",".join(["g5.12xlarge/1:8"] * 8)
    split = shuntserve(
        "estimate", QWEN, "--estimator", "paper", "--pipeline", stages, "--json"
    ).json
    whole = shuntserve(
        "estimate", QWEN, "--estimator", "paper",
        "--pipeline", "g5.12xlarge:38,g5.12xlarge:26", "--json",
    ).json  # fmt: skip
    assert split["throughput_rps"] > 3.6 > 1 > whole["throughput_rps"] > 0.95
    assert split["cost_per_hour"] == whole["cost_per_hour"] == pytest.approx(2 * 2.2915)
    assert {stage["node"] for stage in split["pipelines"][0]["stages"]} == {
        "g5.12xlarge#0",
        "g5.12xlarge#1",
    }


def test_several_pipelines_and_types_that_the_file_lacks(shuntserve: Shuntserve) -> None:
    options = ("--pipeline", "g6e.xlarge:32,g6e.xlarge:32", "--pipeline", "p4d.24xlarge:64")
    result = shuntserve("estimate", QWEN, "--estimator", "paper", *options, "--json").json
    assert len(result["pipelines"]) == 2
    assert result["cost_per_hour"] == pytest.approx(2 * 0.704 + 21.95764)


def test_one_that_does_not_fit_says_why(shuntserve: Shuntserve) -> None:
    outcome = shuntserve(
        "estimate", LLAMA, "--estimator", "paper", "--pipeline", "g6.xlarge:40,g6.xlarge:40"
    )
    assert outcome.code == 0
    assert "does not fit" in outcome.out
    assert "nothing served" in outcome.out


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ("g6e.xlarge:32,g6e.xlarge:31", "the stages hold 63 layers and Qwen/Qwen3-32B has 64; add"),
        ("g6e.xlarge:65", "take off 1"),
        ("g6e.xlarge", "is not a stage; write INSTANCE:LAYERS"),
        ("g6e.xlarge:", "is not a stage"),
        ("g6e.xlarge:-4", "is not a stage"),
        ("g6e.xlarge/x:64", "is not a stage"),
        ("", "is not a stage"),
        ("g6.xlrge:64", "unknown instance type \"g6.xlrge\"; did you mean 'g6.xlarge'?"),
        ("g5.12xlarge/8:64", "has 4 GPUs, not 8; use /1 to /4"),
        ("g5.12xlarge/3:64", "64 attention heads do not divide by 3; usable after the slash: 1, 2"),
    ],
)
def test_mistakes_are_one_line(stages: str, says: str, shuntserve: Shuntserve) -> None:
    outcome = shuntserve("estimate", QWEN, "--estimator", "paper", "--pipeline", stages)
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.err.startswith("--pipeline: ")
    assert len(outcome.err.splitlines()) == 1
