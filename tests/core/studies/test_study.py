"""A small study from the command line: results, report, and going on where it was."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.studies.cells import cells_of
from shuntserve_core.studies.study import is_study, read_study
from tests.core.cli.conftest import Shuntserve, shuntserve
from tests.core.simulator.configs import write

__all__ = ["shuntserve"]

STUDY = """
[study]
title = "Toys & <tags>"
about = "One.\\n\\nTwo."
[[placement]]
config = "toy.toml"
optimizers = ["exact", "beam-search"]
[[workload]]
name = "steady"
rate = 20
requests = 200
[[events]]
name = "one goes"
file = "events.csv"
[[experiment]]
name = "Who places best"
measured = { "exact" = 18.0 }
[[experiment]]
name = "Who recovers best"
placements = ["exact"]
events = ["one goes"]
strategies = ["on-demand", "shuntserve", "none"]
recovery = { boot_seconds = 1, start_seconds = 2 }
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write(tmp_path)
    (tmp_path / "events.csv").write_text("at,node,kind,notice\n2,one#0,notice,5\n")
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    return file


class Page(HTMLParser):
    """Checks that tags are closed, and collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            v or ""
            for k, v in attrs
            if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_study_and_then_again(study: Path, shuntserve: Shuntserve) -> None:
    out = study.parent / "out"
    done = shuntserve("compare", study, "--out", out, "--workers", 2, "--json")
    assert done.code == 0, done.err
    rows = done.json
    assert [(row["experiment"], row["label"]) for row in rows] == [
        ("Who places best", "exact"),
        ("Who places best", "beam-search"),
        *(("Who recovers best", label) for label in ("on-demand", "shuntserve", "none")),
    ]
    assert all(row["finished"] == 200 and not row["error"] for row in rows)
    assert rows[2]["cost_per_hour"] == pytest.approx(4 * 2.0)
    with (out / "results.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == [row["label"] for row in rows]
    assert len(json.loads((out / "results.json").read_text())) == 5

    page = Page()
    page.feed((out / "report.html").read_text())
    assert page.fetched == []
    assert page.tags.count("svg") >= 8
    assert "Toys & <tags>" in page.text
    assert "Who recovers best" in page.text

    kept = {file: file.stat().st_mtime_ns for file in (out / "runs").iterdir()}
    shuntserve("compare", study, "--out", out, "--workers", 1)
    assert {file: file.stat().st_mtime_ns for file in (out / "runs").iterdir()} == kept

    # Another trace makes other runs of those that use it, and of no others.
    (study.parent / "events.csv").write_text("at,node,kind,notice\n3,one#0,notice,5\n")
    shuntserve("compare", study, "--out", out, "--workers", 1)
    assert len(list((out / "runs").iterdir())) == 5 + 3


def test_one_mistake_spoils_one_row(study: Path, shuntserve: Shuntserve) -> None:
    study.write_text(STUDY.replace("boot_seconds", "boots"))
    done = shuntserve("compare", study, "--out", study.parent / "out", "--json")
    errors = [row["error"] for row in done.json]
    assert errors[:2] == ["", ""]
    assert all("boots" in error for error in errors[2:])
    assert "boots" in (study.parent / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('placements = ["exact"]', 'placements = ["exakt"]', "exact"),
        ('"none"]', '"non"]', "none"),
        ("rate = 20", "", "neither trace nor rate"),
        ("[[events]]", "[[event]]", "event"),
    ],
)
def test_mistakes_are_explained(study: Path, old: str, new: str, said: str) -> None:
    study.write_text(STUDY.replace(old, new))
    with pytest.raises(UserError, match=said) as error:
        read_study(study)
    assert str(study) in str(error.value)


def test_what_a_study_is(study: Path) -> None:
    assert is_study(study)
    assert not is_study(study.parent / "toy.toml")


def test_the_paper_study_is_well_formed() -> None:
    file = Path(__file__).parents[3] / "examples" / "studies" / "paper.toml"
    cells = cells_of(read_study(file), file.parent)
    assert {cell.strategy for cell in cells} == {
        "shuntserve",
        "concurrent-init",
        "migration",
        "none",
        "on-demand",
    }
    measured = {table.name: table.measured for table in read_study(file).experiment}
    for name, values in measured.items():
        assert set(values) <= {cell.label for cell in cells if cell.experiment == name}
