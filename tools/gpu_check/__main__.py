"""`python -m gpu_check`: see the package; `tools/gpu-check` starts it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from gpu_check.catalog import BUDGET_SECONDS, PARTS, chosen
from gpu_check.harness import run_all
from gpu_check.machine import look
from gpu_check.report import Report, show, write
from gpu_check.rows import FAILED, Row


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 0 unless something failed."""
    parser = argparse.ArgumentParser(
        prog="gpu-check", description="Check on this machine what needs a GPU."
    )
    letters = ",".join(dict.fromkeys(part.letter for part in PARTS))
    parser.add_argument("--out", type=Path, default=Path("gpu-check-out"), help="for the report")
    parser.add_argument("--parts", default=letters, help=f"of {letters}, or names of single parts")
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS, help="for all together")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    options = parser.parse_args(arguments)
    try:
        parts = chosen(options.parts)
    except ValueError as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    began = time.monotonic()
    found, machine = look()
    device = "cpu" if options.device == "cpu" else found
    with tempfile.TemporaryDirectory(prefix="gpu-check-logs-") as logs:
        rows = list(run_all(parts, device, options.seconds, Path(logs), _tell(console)))
        _keep_logs(Path(logs), rows, options.out)
    date = time.strftime("%Y-%m-%d")
    facts = machine if device != "cpu" else {**machine, "GPU": "none"}
    report = Report(facts, date, time.monotonic() - began, rows)
    show(report, console)
    for path in write(report, options.out):
        console.print(f"Written: {path}")
    return 1 if report.outcomes[FAILED] else 0


def _tell(console: Console) -> Callable[[Row], None]:
    def tell(row: Row) -> None:
        console.print(f"{row.part}: {row.check}: {row.outcome} {row.note}", markup=False)

    return tell


def _keep_logs(logs: Path, rows: list[Row], out: Path) -> None:
    """Keep what parts with a failure said."""
    out.mkdir(parents=True, exist_ok=True)
    for part in {row.part for row in rows if row.outcome == FAILED}:
        log = logs / f"{part}.log"
        if log.exists():
            (out / f"{part}.log").write_bytes(log.read_bytes()[-200_000:])


if __name__ == "__main__":
    sys.exit(main())
