"""`shuntserve compare`: several optimizers on the same model, cluster, workload and estimator; or a
whole study of them, simulated, with a report."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from shuntserve_core.cli.common import (
    Asked,
    config_argument,
    config_of,
    json_option,
    naming,
    output_folder,
    print_json,
    search_options,
    suited,
)
from shuntserve_core.errors import UserError

if TYPE_CHECKING:
    from shuntserve_core.config import Config


@click.command()
@config_argument
@click.option(
    "--optimizers",
    metavar="A,B",
    help="Which, separated by commas; all that there are if left out.",
)
@click.option(
    "--estimator",
    "estimators",
    metavar="A,B",
    help="Predict with these, separated by commas, instead of the file's.",
)
@search_options
@click.option(
    "--workers", type=click.IntRange(1), help="Processes of a study; by default all cores."
)
@click.option(
    "--out",
    metavar="DIR",
    help="Write compare.json, compare.csv and compare.png to a folder; of a study, the report.",
)
@json_option
@click.pass_context
def compare(
    ctx: click.Context,
    config_file: str,
    optimizers: str | None,
    estimators: str | None,
    asked: Asked,
    workers: int | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Run several optimizers on CONFIG and show what each finds, and how long it takes.

    Where the file has a table [study], it is one: placements, strategies, workloads and traces are
    simulated against each other, and a report is written to --out.
    """
    from shuntserve_core.studies.study import is_study

    if is_study(Path(config_file)):
        from shuntserve_core.cli.study import study

        study(Path(config_file), out, workers, as_json=as_json)
        return
    config = config_of(ctx, config_file)
    names = _names(config, "optimizer", optimizers)
    predictors = _names(config, "estimator", estimators or config.document.estimator.name)
    output_folder(out)
    with naming(config.file):
        suited(config)
        changes = asked.changes(config)
        results = []
        for estimator in predictors:
            for name in names:
                click.echo(f"{name} on {estimator} ...", err=True)
                results.append(_run(config, name, estimator, changes))
    if as_json:
        print_json(results)
    else:
        _show(results, config.model.name)
    if out:
        _write(Path(out), results, config.model.name)
        click.echo(f"Written to {out}", err=True)
    if all(result["error"] for result in results):
        raise UserError("no optimizer found a placement", remedy="each row says why")


def _names(config: Config, kind: str, given: str | None) -> list[str]:
    """Names out of a list with commas, each once and each known."""
    known = config.registry.entries(kind)
    names = list(known) if given is None else [name.strip() for name in given.split(",")]
    for name in names:
        if name not in known:
            raise UserError(
                f'unknown {kind} "{name}"',
                where=f"--{kind}s" if kind == "optimizer" else f"--{kind}",
                remedy=config.registry.remedy(kind, name),
            )
    return list(dict.fromkeys(names))


def _run(config: Config, optimizer: str, estimator: str, changes: dict[str, Any]) -> dict[str, Any]:
    """One row; an optimizer that refuses the task is a row with its reason."""
    from shuntserve_core.config import optimizer_from, problem_from
    from shuntserve_core.placement_json import placement_to_json

    row = {"optimizer": optimizer, "estimator": estimator, "error": ""}
    start = perf_counter()
    try:
        problem = problem_from(config, estimator, **changes)
        search = optimizer_from(config, optimizer)
        start = perf_counter()  # importing and binding is not the search's time
        placement = search.place(problem)
    except UserError as error:
        return {**row, "seconds": perf_counter() - start, "error": str(error)}
    result = placement_to_json(placement, config.workload)
    return {**result, **row, "seconds": perf_counter() - start}


COLUMNS = (
    "optimizer",
    "estimator",
    "throughput_rps",
    "cost_per_hour",
    "cost_per_million_tokens",
    "kv_blocks",
    "pipelines",
    "optimal",
    "bound_rps",
    "seconds",
    "error",
)
"""Of the table in the terminal and of the CSV file; `pipelines` is their number there."""


def _cell(result: dict[str, Any], column: str) -> Any:
    value = result.get(column)
    return len(value) if column == "pipelines" and value is not None else value


def _show(results: list[dict[str, Any]], model: str) -> None:
    from rich.console import Console
    from rich.table import Table

    best = max((result.get("throughput_rps", 0.0) for result in results), default=0.0)
    several = len({result["estimator"] for result in results}) > 1
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("optimizer", "estimator") if several else ("optimizer",):
        table.add_column(name, no_wrap=True)
    for name in ("req/s", "of best", "$/h", "$/1M tok", "pipelines", "took"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in results:
        names = [result["optimizer"], result["estimator"]][: 2 if several else 1]
        took = f"{result['seconds']:.2f} s"
        if result["error"]:
            table.add_row(*names, "refused", "-", "-", "-", "-", took, style="red")
            continue
        rps, per_million = result["throughput_rps"], result["cost_per_million_tokens"]
        table.add_row(
            *names,
            f"{rps:.4f}",
            f"{rps / best:.1%}" if best else "-",
            f"{result['cost_per_hour']:.2f}",
            "-" if per_million is None else f"{per_million:.3f}",
            str(len(result["pipelines"])),
            took,
            _proof(result),
        )
    console = Console(highlight=False)
    if not several:
        console.print(f"{model}, estimator {results[0]['estimator']}", style="bold")
    console.print(table)
    for result in results:
        if result["error"]:
            line = f"{result['optimizer']} on {result['estimator']}: {result['error']}"
            console.print(line, style="red", soft_wrap=True, markup=False)


def _proof(result: dict[str, Any]) -> str:
    if result["optimal"]:
        return "optimal"
    if result["bound_rps"] and result["throughput_rps"]:
        return f"gap {result['bound_rps'] / result['throughput_rps'] - 1:.1%}"
    return ""


def _write(folder: Path, results: list[dict[str, Any]], model: str) -> None:
    import csv
    import json

    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=2, allow_nan=False) + "\n"
        (folder / "compare.json").write_text(text, encoding="utf-8")
        with (folder / "compare.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for result in results:
                writer.writerow([_cell(result, column) for column in COLUMNS])
        plot(results, model, folder / "compare.png")
    except OSError as error:
        reason = (error.strerror or "failed").lower()
        raise UserError(
            f"cannot write {folder}: {reason}", where="--out", remedy="name a folder"
        ) from error


def plot(results: list[dict[str, Any]], model: str, file: Path) -> None:
    """Draw throughput, cost and search time of each result side by side, as a PNG."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError(
            "the plot needs matplotlib", where="--out", remedy="pip install 'shuntserve[plot]'"
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    done = [result for result in results if not result["error"]]
    several = len({result["estimator"] for result in done}) > 1
    labels = [
        f"{result['optimizer']}\n({result['estimator']})" if several else result["optimizer"]
        for result in done
    ]
    panels = (
        ("throughput_rps", "requests/s", "linear"),
        ("cost_per_million_tokens", "$ per 1M tokens", "linear"),
        ("seconds", "search, seconds", "log"),
    )
    height = 1.2 + 0.45 * max(len(done), 2)
    figure, axes = plt.subplots(1, 3, figsize=(11, height), sharey=True, layout="constrained")
    for axis, (key, label, scale) in zip(axes, panels, strict=True):
        values = [result[key] or 0.0 for result in done]
        bars = axis.barh(labels, values, color="#3b6ea5", height=0.6)
        axis.bar_label(bars, labels=[f"{value:.3g}" for value in values], padding=3)
        axis.set_xscale(scale)
        axis.set_xlabel(label)
        axis.margins(x=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(model)
    figure.savefig(file, dpi=120)
    plt.close(figure)
