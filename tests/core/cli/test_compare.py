"""`shuntserve compare`: table, JSON, CSV and plot."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tests.core.cli.conftest import Shuntserve

QWEN = Path(__file__).parents[3] / "examples" / "paper-qwen3-32b.toml"
QUICK = ("--optimizers", "beam-search,single-pipeline", "--estimator", "paper")
PNG = b"\x89PNG\r\n\x1a\n"


def test_json_has_a_placement_a_row(shuntserve: Shuntserve) -> None:
    outcome = shuntserve("compare", QWEN, *QUICK, "--json")
    assert outcome.code == 0
    assert [row["optimizer"] for row in outcome.json] == ["beam-search", "single-pipeline"]
    for row in outcome.json:
        assert row["estimator"] == "paper"
        assert row["throughput_rps"] > 0
        assert row["seconds"] > 0
        assert row["pipelines"]
        assert row["error"] == ""


def test_for_people(shuntserve: Shuntserve) -> None:
    outcome = shuntserve("compare", QWEN, *QUICK)
    assert "100.0%" in outcome.out
    assert "single-pipeline" in outcome.out
    assert "beam-search on paper" in outcome.err


def test_files(shuntserve: Shuntserve, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "results"
    assert shuntserve("compare", QWEN, *QUICK, "--out", folder).code == 0
    rows = json.loads((folder / "compare.json").read_text())
    with (folder / "compare.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["optimizer"] for row in table] == [row["optimizer"] for row in rows]
    assert float(table[0]["throughput_rps"]) == rows[0]["throughput_rps"]
    assert int(table[0]["pipelines"]) == len(rows[0]["pipelines"])
    assert (folder / "compare.png").read_bytes().startswith(PNG)


def test_what_refuses_the_task_is_a_row(shuntserve: Shuntserve, tmp_path: Path) -> None:
    """The published model knows no quantised weights."""
    file = tmp_path / "quantised.toml"
    file.write_text(QWEN.read_text().replace("[model]", '[model]\nweight_dtype = "fp8"'))
    options = ("--optimizers", "single-pipeline", "--estimator", "paper,roofline")
    outcome = shuntserve("compare", file, *options, "--json")
    assert outcome.code == 0
    refused, found = outcome.json
    assert "one element size" in refused["error"]
    assert found["throughput_rps"] > 0
    alone = shuntserve("compare", file, *options[:2], "--estimator", "paper")
    assert alone.code == 2
    assert "refused" in alone.out
    assert "no optimizer found a placement" in alone.err


def test_unknown_names(shuntserve: Shuntserve) -> None:
    outcome = shuntserve("compare", QWEN, "--optimizers", "beam-serch")
    assert outcome.code == 2
    assert "--optimizers: unknown optimizer" in outcome.err
    assert "did you mean 'beam-search'" in outcome.err
    outcome = shuntserve("compare", QWEN, "--estimator", "paper,papr")
    assert "--estimator: unknown estimator" in outcome.err
