"""`shuntserve plan` and `check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shuntserve_core.placement_json import placement_from_json, read_placement
from tests.core.cli.conftest import Shuntserve

EXAMPLES = Path(__file__).parents[3] / "examples"
QWEN = EXAMPLES / "paper-qwen3-32b.toml"
LLAMA = EXAMPLES / "paper-llama-3.1-70b.toml"
QUICK = ("--optimizer", "single-pipeline", "--estimator", "paper")


def test_json_keys(shuntserve: Shuntserve) -> None:
    outcome = shuntserve("plan", QWEN, *QUICK, "--json")
    assert outcome.code == 0
    result = outcome.json
    wanted = {"throughput_rps", "kv_blocks", "cost_per_hour", "optimal", "bound_rps", "seconds"}
    assert wanted <= result.keys()
    assert result["throughput_rps"] > 0
    for pipeline in result["pipelines"]:
        assert sum(stage["layers"] for stage in pipeline["stages"]) == 64
        for stage in pipeline["stages"]:
            assert {"instance", "tensor_parallel", "layers"} <= stage.keys()
    assert result["throughput_rps"] == pytest.approx(
        sum(pipeline["throughput_rps"] for pipeline in result["pipelines"])
    )


@pytest.mark.parametrize(
    ("example", "published"), [(LLAMA, 2.8305), (QWEN, 9.45065)], ids=["llama", "qwen"]
)
def test_the_published_clusters(example: Path, published: float, shuntserve: Shuntserve) -> None:
    options = ("--optimizer", "beam-search", "--estimator", "paper", "--json")
    assert shuntserve("plan", example, *options).json["throughput_rps"] >= published


def test_the_default_optimizer_is_at_least_as_good(shuntserve: Shuntserve) -> None:
    """`exact`, on whole instances, with the published estimator; and it proves it."""
    result = shuntserve("plan", QWEN, "--estimator", "paper", "--whole-instances", "--json").json
    assert result["optimizer"] == "exact"
    assert result["throughput_rps"] >= 9.45065
    assert result["bound_rps"] >= result["throughput_rps"] * (1 - 1e-9)


def test_for_people(shuntserve: Shuntserve, tmp_path: Path) -> None:
    out = tmp_path / "placement.json"
    outcome = shuntserve("plan", QWEN, *QUICK, "--out", out)
    for part in ("requests/s", "/h", "per 1M tokens", "Pipeline 1", "├", "bound by", "Unused"):
        assert part in outcome.out
    assert f"Written to {out}" in outcome.out
    assert read_placement(out).optimizer == "single-pipeline"


def test_flags_replace_what_the_file_says(shuntserve: Shuntserve) -> None:
    result = shuntserve(
        "plan", QWEN, "--optimizer", "beam-search", "--estimator", "paper",
        "--objective", "cost", "--rate", "1", "--json",
    ).json  # fmt: skip
    assert 1 <= result["throughput_rps"] < 9
    assert result["cost_per_hour"] < 13


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--objective", "cost"), "--rate: the objective cost needs a rate; add --rate"),
        (("--rate", "0"), "--rate: 0 is out of range"),
        (("--time-limit", "nan"), "--time-limit: nan is out of range"),
        (("--optimizer", "exakt"), "did you mean 'exact'?"),
        (("--estimator", "rooflin"), "did you mean 'roofline'?"),
        (("--out", "/no/such/folder/x.json", *QUICK), "--out: cannot write"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], says: str, shuntserve: Shuntserve
) -> None:
    outcome = shuntserve("plan", QWEN, *arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_model_that_fits_nowhere(shuntserve: Shuntserve, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    text = LLAMA.read_text().partition("[[cluster]]")[0].replace("70B", "405B")
    file.write_text(text + '[[cluster]]\ninstance = "g6e.xlarge"\ncount = 2\n')
    for options in ((), QUICK):
        outcome = shuntserve("plan", file, *options)
        assert outcome.code == 2
        assert outcome.err.startswith(str(file))
        assert "bytes" in outcome.err
        assert len(outcome.err.splitlines()) == 1


def test_check_says_ok(shuntserve: Shuntserve) -> None:
    outcome = shuntserve("check", LLAMA)
    assert outcome.code == 0
    assert "ok: meta-llama/Llama-3.1-70B, up to 9 instances of 3 types" in outcome.out
    assert shuntserve("check", LLAMA, "--json").json == {
        "file": str(LLAMA),
        "ok": True,
        "errors": [],
        "notes": [],
    }


def test_check_lists_every_mistake(shuntserve: Shuntserve, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[model]\nname = "nope"\n[workload]\ninput_tokens = -1\n')
    outcome = shuntserve("check", file)
    assert outcome.code == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{file}: ") for line in lines)
    machine = shuntserve("check", file, "--json")
    assert machine.code == 2
    assert not machine.json["ok"]
    assert [error["where"] for error in machine.json["errors"]] == [
        line.split(": ")[0] + ": " + line.split(": ")[1] for line in lines
    ]


def test_schema_is_json(shuntserve: Shuntserve) -> None:
    schema = json.loads(shuntserve("schema").out)
    assert schema["properties"]["model"]["properties"]["name"]["type"] == "string"
    assert "memory_fraction" in schema["properties"]["estimator"]["properties"]


def test_what_plan_prints_is_what_serve_reads(shuntserve: Shuntserve) -> None:
    result = shuntserve("plan", QWEN, *QUICK, "--json").json
    placement = placement_from_json(result)
    assert placement.throughput_rps == result["throughput_rps"]
    assert [s.instance for s in placement.pipelines[0].stages] == [
        stage["instance"] for stage in result["pipelines"][0]["stages"]
    ]
