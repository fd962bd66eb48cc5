"""The table on the terminal, the JSON for programs, the page for the documentation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import asdict, frozen
from rich.console import Console
from rich.table import Table

from gpu_check.catalog import PARTS
from gpu_check.machine import Facts
from gpu_check.rows import FAILED, MEASURED, PASSED, SKIPPED, Figure, Row

_COLOURS = {PASSED: "green", FAILED: "red", SKIPPED: "yellow", MEASURED: "cyan"}
_TITLES = {part.name: f"({part.letter}) {part.title}" for part in PARTS}


@frozen
class Report:
    """One run."""

    machine: Facts
    date: str
    seconds: float
    rows: Sequence[Row]

    @property
    def outcomes(self) -> Counter[str]:
        """How many rows of each kind."""
        return Counter(row.outcome for row in self.rows)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU was there."""
        return self.machine["GPU"] != "none"

    @property
    def summary(self) -> str:
        """In one line; what was skipped is never among what passed."""
        words = (PASSED, MEASURED, FAILED, SKIPPED)
        counts = ", ".join(f"{self.outcomes[word]} {word}" for word in words)
        return f"{counts} in {self.seconds:.0f} s"


def show(report: Report, console: Console) -> None:
    """Print the table."""
    table = Table(title="gpu-check", title_justify="left")
    for name in ("part", "check", "outcome", "figures", "note"):
        table.add_column(name, overflow="fold")
    last = ""
    for row in report.rows:
        colour = _COLOURS[row.outcome]
        outcome = f"[{colour}]{row.outcome}[/{colour}]"
        part = row.part if row.part != last else ""
        table.add_row(part, row.check, outcome, _figures(row, "\n"), row.note)
        last = row.part
    console.print(table)
    console.print(report.summary)


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `gpu-check.json` and `gpu-check.md`; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": report.machine,
        "date": report.date,
        "seconds": round(report.seconds, 1),
        "outcomes": dict(report.outcomes),
        "rows": [asdict(row) for row in report.rows],
    }
    json_file, page_file = folder / "gpu-check.json", folder / "gpu-check.md"
    json_file.write_text(json.dumps(data, indent=1) + "\n")
    page_file.write_text(page(report))
    return json_file, page_file


def page(report: Report) -> str:
    """The page, in Markdown."""
    lines = ["# Results of gpu-check", "", _opening(report), ""]
    lines += [f"{report.date}: {report.summary}.", ""]
    lines += ["| machine | |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in report.machine.items()]
    for part in dict.fromkeys(row.part for row in report.rows):
        lines += ["", f"## {_TITLES.get(part, part)}", ""]
        lines += ["| check | outcome | figures | note |", "| --- | --- | --- | --- |"]
        lines += _page_rows(row for row in report.rows if row.part == part)
    return "\n".join(lines) + "\n"


def _opening(report: Report) -> str:
    if report.on_gpu:
        return (
            "Written by `tools/gpu-check` (see [how to check a GPU](../how-to/gpu-check.md)).  "
            "A check that could not run is skipped with its reason, and counts as nothing."
        )
    return (
        "Written by `tools/gpu-check` (see [how to check a GPU](../how-to/gpu-check.md)).  "
        "**It has not been run on a GPU yet.**  This machine had none: parts (a) and (b) ran on "
        "host memory, everything else was skipped, and nothing on this page tells how the project "
        "does on a GPU."
    )


def _page_rows(rows: Iterable[Row]) -> list[str]:
    return [
        f"| {_cell(row.check)} | {row.outcome} | {_cell(_figures(row, '; '))} | {_cell(row.note)} |"
        for row in rows
    ]


def _figures(row: Row, separator: str) -> str:
    return separator.join(f"{name}: {_number(value)}" for name, value in row.figures.items())


def _number(value: Figure) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def _cell(text: str) -> str:
    escaped = text.replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())
