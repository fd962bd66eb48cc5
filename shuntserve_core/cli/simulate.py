"""`shuntserve simulate`: replay a workload, and interruptions, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shuntserve_core.cli.common import (
    FiniteRange,
    config_argument,
    config_of,
    json_option,
    naming,
    output_folder,
    print_json,
    suited,
)
from shuntserve_core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from shuntserve_core.config import Config
    from shuntserve_core.simulator.result import Result
    from shuntserve_core.simulator.run import Setting
    from shuntserve_core.traces.workload import Requests
    from shuntserve_core.types import Placement

STRATEGIES = ("shuntserve", "concurrent-init", "migration", "none", "on-demand")
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@config_argument
@click.option("--workload", type=_file, metavar="FILE", help="Requests: a trace of known form.")
@click.option(
    "--rate",
    type=FiniteRange(0, min_open=True),
    metavar="RPS",
    help="Instead: synthetic requests per second.",
)
@click.option(
    "--variation",
    type=FiniteRange(0),
    default=1.0,
    show_default=True,
    help="With --rate: deviation of gaps over their mean; 1 is Poisson.",
)
@click.option("--requests", type=click.IntRange(1), help="At most so many requests.")
@click.option("--first", type=FiniteRange(0), metavar="SECONDS", help="Only the trace's beginning.")
@click.option(
    "--time-scale",
    type=FiniteRange(0),
    default=1.0,
    show_default=True,
    help="Factor on arrival times; 0 has all come at once.",
)
@click.option(
    "--longest",
    type=click.IntRange(1),
    metavar="TOKENS",
    help="Leave out requests with a longer prompt or answer.",
)
@click.option("--events", type=_file, metavar="FILE", help="Interruptions: CSV or JSON.")
@click.option("--events-for", metavar="TYPE", help="Apply foreign traces to this type only.")
@click.option("--strategy", type=click.Choice(STRATEGIES), help="Instead of the file's.")
@click.option("--placement", type=_file, metavar="FILE", help="From plan --out, not searched.")
@click.option(
    "--profile",
    metavar="NAME|FILE",
    default="vllm",
    show_default=True,
    help="How the engine makes steps: vllm, vllm-0.8.1, embedded, or a JSON file.",
)
@click.option("--duration", type=FiniteRange(0), metavar="SECONDS", help="End it then.")
@click.option("--boot", type=FiniteRange(0), metavar="SECONDS", help="Until a node is up.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of synthetic requests."
)
@click.option("--out", metavar="DIR", help="Write summary, requests, timeline and notes there.")
@json_option
@click.pass_context
def simulate(ctx: click.Context, /, config_file: str, as_json: bool, **options: Any) -> None:
    """Predict what CONFIG does with a workload: throughput, latencies, cost.

    With --events, nodes come and go, and the strategy decides what becomes of the requests.
    """
    from shuntserve_core.simulator.run import simulate as run

    config = config_of(ctx, config_file)
    output_folder(options["out"])
    with naming(config.file):
        suited(config)
        placement = _placement(config, options["placement"])
        setting = _setting(config, options, placement)
        requests = _requests(config, options)
        result = run(config, placement, requests, setting)
    if options["out"]:
        from shuntserve_core.simulator.files import write_result

        write_result(Path(options["out"]), result)
    if as_json:
        print_json(result.summary())
    else:
        _show(result)
        if options["out"]:
            click.echo(f"\nWritten to {options['out']}")


def _placement(config: Config, file: Path | None) -> Placement:
    if file is not None:
        from shuntserve_core.placement_json import read_placement

        placement = read_placement(file)
        _fits(config, placement, file)
        return placement
    from shuntserve_core.simulator.placing import place

    return place(config)


def _fits(config: Config, placement: Placement, file: Path) -> None:
    """Raises `UserError` where a placement is of another model or cluster."""
    catalog = config.cluster.catalog
    remedy = f"plan again: shuntserve plan {config.file} --out {file}"
    for pipeline in placement.pipelines:
        layers = sum(stage.layers for stage in pipeline.stages)
        if layers != config.model.layers:
            reason = f"a pipeline has {layers} layers, the model has {config.model.layers}"
            raise UserError(reason, where=str(file), remedy=remedy)
        for stage in pipeline.stages:
            instance = catalog.get(stage.instance)
            if instance is None:
                known = did_you_mean(stage.instance, catalog)
                raise UserError(
                    f"its instance type {stage.instance!r} is not in {config.file}",
                    where=str(file),
                    remedy=f"add a [[cluster]] with it, or {remedy}; {known}",
                )
            if stage.tensor_parallel > instance.gpu_count:
                gpus = f"{stage.instance} has {instance.gpu_count} GPUs"
                reason = f"a stage wants {stage.tensor_parallel}, {gpus}"
                raise UserError(reason, where=str(file), remedy=remedy)


def _requests(config: Config, options: dict[str, Any]) -> Requests:
    if (options["workload"] is None) == (options["rate"] is None):
        raise UserError("no workload", where="--workload", remedy="give a file, or else --rate RPS")
    if options["rate"] is not None:
        return _synthetic(config, options)
    from shuntserve_core.traces.readers import read_requests

    requests = read_requests(options["workload"])
    longest = options["longest"] or config.document.workload.trace_max_tokens
    if longest is not None:
        requests = requests.at_most(longest)
    if options["first"] is not None:
        requests = requests.between(0.0, options["first"])
    if options["requests"] is not None:
        requests = requests.first(options["requests"])
    return requests.scaled(options["time_scale"])


def _synthetic(config: Config, options: dict[str, Any]) -> Requests:
    from shuntserve_core.traces.synthetic import synthetic

    if not options["rate"] > 0:
        raise UserError("the rate must be more than 0", where="--rate", remedy="give one")
    workload = config.workload
    return synthetic(
        options["requests"] or 1000,
        options["rate"],
        workload.lengths or ((workload.input_tokens, workload.output_tokens),),
        variation=options["variation"],
        seed=options["seed"],
    )


def _setting(config: Config, options: dict[str, Any], placement: Placement) -> Setting:
    import math

    from attrs import evolve

    from shuntserve_core.simulator.files import read_profile
    from shuntserve_core.simulator.placing import spares_of
    from shuntserve_core.simulator.recovery import Recovery
    from shuntserve_core.simulator.run import Setting
    from shuntserve_core.traces.spot import read_any_events

    recovery = Recovery(strategy=options["strategy"] or config.document.serve.strategy)
    if options["boot"] is not None:
        recovery = evolve(recovery, boot_seconds=options["boot"])
    spares = spares_of(config, placement)
    events = options["events"]
    return Setting(
        profile=read_profile(options["profile"]),
        recovery=recovery,
        events=()
        if events is None
        else read_any_events(events, config.cluster, _type(config, options)),
        spares=spares,
        duration=math.inf if options["duration"] is None else options["duration"],
    )


def _type(config: Config, options: dict[str, Any]) -> str | None:
    from shuntserve_core.errors import did_you_mean

    name: str | None = options["events_for"]
    if name is not None and name not in config.cluster.counts:
        remedy = did_you_mean(name, config.cluster.counts)
        raise UserError(f'"{name}" is not in the cluster', where="--events-for", remedy=remedy)
    return name


def _show(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    console, summary = Console(highlight=False), result.summary()
    console.print(
        f"{summary['finished']:,} of {summary['requests']:,} requests in "
        f"{summary['seconds']:,.0f} s: [bold green]{summary['requests_per_second']:.4g} "
        f"requests/s[/], {summary['output_tokens_per_second']:,.0f} output tokens/s"
    )
    per_million = summary["cost_per_million_tokens"]
    cost = "-" if per_million is None else f"${per_million:.3g} per 1M tokens"
    console.print(f"${summary['cost']:.2f}, ${summary['cost_per_hour']:.2f}/h, {cost}")
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("seconds")
    names = {
        "latency": "latency",
        "ttft": "TTFT",
        "ttft_after_queue": "TTFT without queue",
        "tpot": "TPOT",
    }
    rows = {label: summary[key] for key, label in names.items() if summary[key]}
    for column in next(iter(rows.values()), {}):
        table.add_column(column, justify="right")
    for label, row in rows.items():
        table.add_row(label, *(f"{value:.4g}" for value in row.values()))
    console.print(table)
    for pipeline in result.pipelines:
        if pipeline["from"] is not None:
            busy = " ".join(f"{share:.0%}" for share in pipeline["busy"])
            span = f"{pipeline['from']:,.0f} to {pipeline['to']:,.0f} s"
            console.print(f"{pipeline['name']} {span}, stages busy {busy}", style="dim")
    console.print(
        f"{summary['migrations']:,} migrations, {summary['preemptions']:,} preemptions, "
        f"simulated in {summary['wall_seconds']:.2f} s",
        style="dim",
    )
