"""`shuntserve layer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shuntserve_core.cli import cli
from shuntserve_core.errors import UserError

TOML = """
[model]
name = "my-llama-30b"
layers = 60
hidden = 6656
heads = 52
kv_heads = 52
intermediate = 17920
vocab = 32000

[workload]
input_tokens = 763
output_tokens = 232
max_length = 2048

[[cluster]]
instance = "g6.12xlarge"
count = 2
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "config.toml"
    file.write_text(TOML)
    return str(file)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(
        cli, ["layer", *arguments], catch_exceptions=False, standalone_mode=False
    )


def test_json_is_a_list_of_rows(config: str) -> None:
    result = run(
        config,
        "--gpu",
        "T4",
        "--prefill",
        "250,1000",
        "--decode",
        "8",
        "--context",
        "100",
        "--json",
    )
    rows = json.loads(result.stdout)
    assert [(row["phase"], row.get("tokens"), row.get("batch")) for row in rows] == [
        ("prefill", 250, None),
        ("prefill", 1000, None),
        ("decode", None, 8),
    ]
    assert set(rows[0]) == {"phase", "tokens", "milliseconds", "bound"}
    assert set(rows[2]) == {"phase", "batch", "context", "milliseconds", "bound"}
    assert rows[2]["context"] == 100
    assert 0 < rows[0]["milliseconds"] < rows[1]["milliseconds"]


def test_a_table_for_people(config: str) -> None:
    output = run(config, "--gpu", "A100", "--tp", "2").output
    assert "my-llama-30b on 2 × A100" in output
    assert "prefill" in output
    assert "memory bandwidth" in output


def test_the_gpu_need_not_be_in_the_cluster_or_in_any_instance_type(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        TOML + '\n[[gpu]]\nname = "B42"\nmemory_bytes = 96000000000\nmemory_bandwidth = 8e12\n'
        "[gpu.flops]\nfloat16 = 2e15\n"
    )
    rows = json.loads(run(str(file), "--gpu", "B42", "--json").output)
    assert all(row["milliseconds"] > 0 for row in rows)
    with pytest.raises(UserError, match="no instance type has 2 B42 GPUs"):
        run(str(file), "--gpu", "B42", "--tp", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "T44"), 'unknown GPU "T44".*did you mean'),
        (("--gpu", "L4", "--tp", "3"), "cannot use 3 GPUs"),
        (("--gpu", "L4", "--estimator", "paper"), "does not predict single layers"),
        (("--gpu", "L4", "--tp", "4", "--measure"), "only a layer on one GPU"),
    ],
)
def test_mistakes_have_a_remedy(config: str, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(config, *arguments)
    caught.match(message)
    assert caught.value.remedy
    assert caught.value.where.startswith("--")


@pytest.mark.parametrize("value", ["", "0", "1,,2", "-1", "x", "1e3", "99999999"])
def test_counts_are_positive_whole_numbers(config: str, value: str) -> None:
    result = CliRunner().invoke(cli, ["layer", config, "--gpu", "L4", "--decode", value])
    assert result.exit_code == 2
    assert "--decode" in result.output


def test_measured_times_stand_beside_predicted_ones(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(
        TOML.replace("6656", "64")
        .replace("52", "4")
        .replace("17920", "96")
        .replace("vocab = 32000", 'vocab = 32000\ndtype = "float32"')
    )
    result = run(
        str(file), "--gpu", "CPU", "--prefill", "8", "--decode", "2", "--measure", "--json"
    )
    rows = json.loads(result.stdout)
    assert [set(row) >= {"milliseconds", "measured_milliseconds"} for row in rows] == [True, True]
    assert all(row["measured_milliseconds"] > 0 for row in rows)
