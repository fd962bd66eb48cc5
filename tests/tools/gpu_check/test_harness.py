"""Whatever a part does, the others run, and it is in the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gpu_check.catalog import BUDGET_SECONDS, PARTS, Part, chosen
from gpu_check.harness import run_all
from gpu_check.report import Report, page, write
from gpu_check.rows import FAILED, MEASURED, PASSED, SKIPPED, Record, Row, Skip, expect, read_rows

SCRIPT = """
import os, sys
from gpu_check import harness
from gpu_check.catalog import Part
from gpu_check.rows import Row
from attrs import asdict
import json, pathlib
rows = harness.run_all(
    [Part(name, "x", name, 4.0, host=True, host_seconds=4.0) for name in sys.argv[2:]],
    "cpu", 30.0, pathlib.Path(sys.argv[1]),
)
print(json.dumps([asdict(row) for row in rows]))
"""
MODULES = {
    "well": "def run(record, place):\n    with record.check('one') as f: f['answer'] = 42",
    "raises": (
        "def run(record, place):\n    record.add('before', 'passed', {})\n    raise KeyError('x')"
    ),
    "crashes": "import os\ndef run(record, place):\n    os.kill(os.getpid(), 11)",
    "hangs": (
        "import subprocess, sys, time\ndef run(record, place):\n"
        "    child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "    record.add('child', 'passed', {'pid': child.pid})\n    time.sleep(1000)"
    ),
    "cannot": "from gpu_check.rows import Skip\ndef run(record, place):\n    raise Skip('no card')",
    "silent": "def run(record, place): pass",
}


def run_parts(directory: Path, *names: str) -> list[Row]:
    """In a process of its own, whose children are all killed: so not in this one."""
    package = directory / "gpu_check" / "parts"
    package.mkdir(parents=True)
    for name in names:
        (package / f"{name}.py").write_text(MODULES[name])
    hook = f"import gpu_check.parts as p; p.__path__.append({str(package)!r})\n"
    (directory / "sitecustomize.py").write_text(hook)
    tools = Path(__file__).parents[3] / "tools"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory), *names],
        env={"PYTHONPATH": f"{directory}:{tools}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [Row(**row) for row in json.loads(done.stdout)]


def test_a_part_that_fails_crashes_or_hangs_is_a_row_and_stops_nothing(tmp_path: Path) -> None:
    rows = run_parts(tmp_path, "raises", "crashes", "hangs", "cannot", "silent", "well")
    found = {(row.part, row.check): row for row in rows}
    assert found["raises", "before"].outcome == PASSED
    assert found["raises", "runs to its end"].outcome == FAILED
    assert "KeyError" in found["raises", "runs to its end"].note
    assert "SIGSEGV" in found["crashes", "runs to its end"].note
    assert "not finished after 4 s" in found["hangs", "runs to its end"].note
    assert found["cannot", "all"] == Row("cannot", "all", SKIPPED, {}, "no card", rows[5].seconds)
    assert found["silent", "runs to its end"].outcome == FAILED
    assert found["well", "one"].outcome == PASSED
    assert found["well", "one"].figures == {"answer": 42}
    assert not psutil.pid_exists(int(found["hangs", "child"].figures["pid"]))


def test_without_a_gpu_only_parts_for_the_host_run_and_nothing_passes_unrun(tmp_path: Path) -> None:
    rows = list(run_all([part for part in PARTS if not part.host], "cpu", 60.0, tmp_path))
    assert rows
    assert {(row.outcome, row.note) for row in rows} == {(SKIPPED, "there is no GPU")}
    assert {part.letter for part in PARTS if part.host} == {"a", "b"}


def test_parts_for_which_no_time_is_left_are_skipped(tmp_path: Path) -> None:
    rows = list(run_all([Part("lending", "a", "", 1.0, host=True)], "cpu", 0.0, tmp_path))
    assert [(row.outcome, row.note) for row in rows] == [(SKIPPED, "no time left of 0 s")]


def test_all_parts_together_take_less_than_eight_minutes() -> None:
    assert BUDGET_SECONDS < 8 * 60
    assert all(part.seconds <= 95 for part in PARTS)
    assert [part.letter for part in PARTS] == sorted(part.letter for part in PARTS)


def test_parts_are_chosen_by_letter_or_name() -> None:
    assert [part.name for part in chosen("c, lending")] == ["lending", "sampler", "graphs"]
    with pytest.raises(ValueError, match="no part 'z'"):
        chosen("a,z")


def test_a_check_is_passed_measured_skipped_or_failed(tmp_path: Path) -> None:
    record = Record("part", tmp_path / "rows")
    with record.check("passes") as figures:
        figures["bytes"] = 3
        expect(True, "never")
    with record.measure("measures"):
        pass
    with record.check("fails"):
        expect(False, "it is not so")
    with record.check("skips"):
        raise Skip("no vLLM")
    with record.check("breaks"):
        raise ZeroDivisionError("oh")
    rows = read_rows(tmp_path / "rows")
    assert [row.outcome for row in rows] == [PASSED, MEASURED, FAILED, SKIPPED, FAILED]
    assert [row.note for row in rows[2:]] == ["it is not so", "no vLLM", "ZeroDivisionError: oh"]


def report_of(gpu: str) -> Report:
    rows = [
        Row("lending", "one | two", PASSED, {"bytes": 1234567, "rate, GB/s": 1.23456}),
        Row("layers", "all", SKIPPED, {}, "there is no GPU"),
    ]
    return Report({"GPU": gpu, "torch": "2.11"}, "2026-01-01", 12.3, rows)


def test_the_page_says_plainly_that_there_was_no_gpu() -> None:
    without, with_one = page(report_of("none")), page(report_of("NVIDIA H100"))
    assert "It has not been run on a GPU yet" in without
    assert "It has not been run on a GPU yet" not in with_one
    assert "1 passed, 0 measured, 0 failed, 1 skipped in 12 s" in without
    assert "| one \\| two | passed | bytes: 1,234,567; rate, GB/s: 1.23 |" in without


def test_the_report_is_written_as_json_and_as_a_page(tmp_path: Path) -> None:
    json_file, page_file = write(report_of("none"), tmp_path / "out")
    data = json.loads(json_file.read_text())
    assert data["outcomes"] == {PASSED: 1, SKIPPED: 1}
    assert data["rows"][0]["figures"]["bytes"] == 1234567
    assert page_file.read_text().startswith("# ")
