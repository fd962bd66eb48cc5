"""One self-contained page that says what a study found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from shuntserve_core import __version__
from shuntserve_core.studies.figures import Run, figures_of
from shuntserve_core.studies.study import ExperimentTable, Study

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; color: #24292f;
  background: #f6f7f9; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 0 0 .4rem; letter-spacing: -.01em; }
h3 { font-size: .95rem; margin: 0 0 .5rem; color: #57606a; font-weight: 600; }
p { max-width: 46rem; margin: .5rem 0; }
.faint { color: #6e7781; font-size: .88rem; }
nav { margin-top: 1rem; line-height: 1.9; }
nav a { margin-right: 1.4rem; white-space: nowrap; }
a { color: #2f6db0; text-decoration: none; }
section { background: #fff; border: 1px solid #e3e6ea; border-radius: 10px; padding: 1.6rem 1.8rem;
  margin: 1.8rem 0; }
.scroll { overflow-x: auto; margin: 1.1rem 0 1.4rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th { color: #57606a; font-weight: 600; text-align: right; vertical-align: bottom; }
th, td { padding: .38rem .5rem; border-bottom: 1px solid #eceff2; }
td { white-space: nowrap; }
td { text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; }
tr:last-child td { border-bottom: none; }
.best { font-weight: 700; color: #2c7a51; }
.error { color: #b5333f; text-align: left; white-space: normal; }
.figures { display: grid; grid-template-columns: 1fr 1fr; gap: 1.8rem 2rem; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure svg { width: 100%; height: auto; display: block; }
@media (max-width: 760px) { .figures { grid-template-columns: 1fr; } }
"""


def write_report(file: Path, study: Study, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write the page.  Raises `UserError` without matplotlib."""
    sections = [
        _section(index, table, [run for run in runs if run["experiment"] == table.name])
        for index, table in enumerate(study.experiment)
    ]
    links = " ".join(
        f'<a href="#e{index}">{escape(table.name)}</a>'
        for index, table in enumerate(study.experiment)
    )
    seconds = sum(run["summary"]["wall_seconds"] for run in runs if not run["error"])
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    foot = f"shuntserve {__version__}, {now}; {len(runs)} runs, simulated in {seconds:.0f} s"
    title = escape(study.study.title)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><main><h1>{title}</h1>{_paragraphs(study.study.about)}<nav>{links}</nav>
{"".join(sections)}<p class="faint">{escape(foot)}.  Every run and its figures are in results.json
and results.csv beside this page.</p></main></body></html>
"""
    file.write_text(page, encoding="utf-8")


def _paragraphs(text: str) -> str:
    parts = (part.strip() for part in text.split("\n\n"))
    return "".join(f"<p>{escape(part)}</p>" for part in parts if part)


def _section(index: int, table: ExperimentTable, runs: Sequence[Run]) -> str:
    good = [run for run in runs if not run["error"]]
    figures = figures_of(good, table.measured) if good else []
    drawn = "".join(
        f"<figure{' class=wide' if wide else ''}><h3>{escape(title)}</h3>{svg}</figure>"
        for title, svg, wide in figures
    )
    return (
        f'<section id="e{index}"><h2>{escape(table.name)}</h2>{_paragraphs(table.note)}'
        f"{_table(runs, table.measured)}"
        f'<div class="figures">{drawn}</div></section>'
    )


def _table(runs: Sequence[Run], measured: Mapping[str, float]) -> str:
    good = [run for run in runs if not run["error"]]
    known = any(run["label"] in measured for run in good)
    relative = known and any(run["events"] for run in good)
    heads = ["", "requests/s"]
    heads += ["measured", "of it"] if known else ["estimated"]
    heads += ["of first row", "of first row, measured"] if relative else []
    heads += ["$/h", "$/1M tokens", "TTFT p50, s", "TTFT p99, s", "TPOT p50, s", "TPOT p99, s"]
    heads.append("moved")
    top = max((run["summary"]["requests_per_second"] for run in good), default=0.0)
    first = good[0] if good else None
    rows = []
    for run in runs:
        if run["error"]:
            wide = f'<td class="error" colspan="{len(heads) - 1}">{escape(run["error"])}</td>'
            rows.append(f"<tr><td>{escape(run['label'])}</td>{wide}</tr>")
            continue
        cells = _cells(run, measured, known=known, first=first if relative else None)
        best = ' class="best"' if run["summary"]["requests_per_second"] == top else ""
        drawn = "".join(f"<td{best if i == 1 else ''}>{cell}</td>" for i, cell in enumerate(cells))
        rows.append(f"<tr>{drawn}</tr>")
    header = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return (
        f'<div class="scroll"><table><thead><tr>{header}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cells(run: Run, measured: Mapping[str, float], *, known: bool, first: Run | None) -> list[str]:
    summary = run["summary"]
    rate = summary["requests_per_second"]
    cells = [escape(run["label"]), f"{rate:.3f}"]
    there = measured.get(run["label"])
    if known:
        cells += ["-", "-"] if there is None else [f"{there:.3f}", f"{rate / there:.0%}"]
    else:
        cells.append(f"{run['predicted_rps']:.3f}")
    if first is not None:
        cells.append(f"{rate / first['summary']['requests_per_second']:.1%}")
        base = measured.get(first["label"])
        cells.append("-" if there is None or not base else f"{there / base:.1%}")
    cost = summary["cost_per_million_tokens"]
    cells += [f"{summary['cost_per_hour']:.2f}", "-" if cost is None else f"{cost:.2f}"]
    for key in ("ttft_after_queue", "tpot"):
        values = summary[key]
        for cut in ("p50", "p99"):
            cells.append("-" if values is None else _seconds(values[cut]))
    return [*cells, f"{summary['migrations']:,}"]


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
