"""The study form of `shuntserve compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from shuntserve_core.cli.common import print_json
from shuntserve_core.errors import UserError


def study(file: Path, out: str | None, workers: int | None, *, as_json: bool) -> None:
    """Run a study, show its results, and write the report.  Raises `UserError`."""
    from shuntserve_core.studies.report import write_report
    from shuntserve_core.studies.runner import run_study
    from shuntserve_core.studies.study import read_study
    from shuntserve_core.studies.tables import flat, write_tables

    wanted = read_study(file)
    folder = Path(out or f"{file.stem}-study")
    runs = run_study(wanted, file.parent, folder, workers=workers)
    write_tables(folder, runs)
    write_report(folder / "report.html", wanted, runs)
    if as_json:
        print_json([flat(run) for run in runs])
    else:
        _show(runs)
        click.echo(f"\nReport: {folder / 'report.html'}")
    if all(run["error"] for run in runs):
        raise UserError("no run succeeded", where=str(file), remedy="each row says why")


def _show(runs: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for experiment in dict.fromkeys(run["experiment"] for run in runs):
        console.print(f"\n{experiment}", style="bold", markup=False)
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("")
        for name in ("req/s", "$/h", "$/1M tok", "TTFT p50", "TPOT p50", "moved"):
            table.add_column(name, justify="right", no_wrap=True)
        for run in runs:
            if run["experiment"] == experiment:
                table.add_row(*_row(run))
        console.print(table)


def _row(run: Mapping[str, Any]) -> list[str]:
    if run["error"]:
        return [f"{run['label']}: {run['error']}", *["-"] * 6]
    summary = run["summary"]
    per_million, ttft, tpot = (
        summary["cost_per_million_tokens"],
        summary["ttft_after_queue"],
        summary["tpot"],
    )
    return [
        run["label"],
        f"{summary['requests_per_second']:.3f}",
        f"{summary['cost_per_hour']:.2f}",
        "-" if per_million is None else f"{per_million:.2f}",
        "-" if ttft is None else f"{ttft['p50']:.3g} s",
        "-" if tpot is None else f"{tpot['p50']:.3g} s",
        f"{summary['migrations']:,}",
    ]
