"""`shuntserve bench`: load on any OpenAI endpoint, and what it gave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shuntserve_core.cli.common import FiniteRange, json_option, print_json, registry_of
from shuntserve_core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shuntserve_core.bench.arrivals import Arrival
    from shuntserve_core.registry import Registry

_KEY_VARIABLE = "OPENAI_API_KEY"


@click.command()
@click.argument("target", metavar="URL|CONFIG")
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Closed loop: requests at once.",
)
@click.option(
    "--rate",
    type=FiniteRange(0, min_open=True),
    metavar="PER_SECOND",
    help="Open loop instead: Poisson arrivals at this rate.",
)
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Open loop instead: replay a trace, in any form that `simulate --workload` reads.",
)
@click.option(
    "--time-scale",
    type=FiniteRange(0),
    default=1.0,
    show_default=True,
    help="Factor on the trace's times; 0.5 is twice as fast.",
)
@click.option("--requests", "-n", type=click.IntRange(1), help="How many [100; a whole trace].")
@click.option(
    "--input-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Mean prompt length.",
)
@click.option(
    "--output-tokens",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Mean answer length.",
)
@click.option(
    "--spread",
    type=FiniteRange(0, 1),
    default=0.0,
    show_default=True,
    help="Lengths vary by up to this share of their mean.",
)
@click.option("--model", help="Model to ask for [the first that is served].")
@click.option(
    "--token-ids",
    type=(int, int),
    default=(100, 1000),
    show_default=True,
    help="Prompts are drawn from these ids.",
)
@click.option(
    "--min-tokens/--no-min-tokens",
    default=True,
    show_default=True,
    help="Whether the server knows `min_tokens`.",
)
@click.option(
    "--timeout",
    type=FiniteRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds that one request may take.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random numbers.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a CSV file, one row a request.",
)
@json_option
@click.pass_context
def bench(
    ctx: click.Context, /, target: str, as_json: bool, output: Path | None, **options: Any
) -> None:
    """Load an endpoint and report latencies and rates.

    The API key is taken from OPENAI_API_KEY.  Exits with status 1 if any request failed.
    """
    import asyncio

    from shuntserve_core.bench.report import summary, write_csv

    if output is not None:
        write_csv(output, ())  # an hour's load must not end in a folder that is not there
    results = asyncio.run(_run(_url(target, registry_of(ctx)), options, quiet=as_json))
    if output is not None:
        write_csv(output, results)
    report = summary(results)
    if as_json:
        print_json(report)
    else:
        _show(report)
    if report["failed"] or not results:
        raise SystemExit(1)


async def _run(url: str, options: dict[str, Any], *, quiet: bool) -> list[Any]:
    from rich.console import Console
    from rich.progress import Progress

    from shuntserve_core.bench.calls import Endpoint
    from shuntserve_core.bench.load import model_of, run

    key = os.environ.get(_KEY_VARIABLE, "")
    endpoint = Endpoint(
        url=url,
        model=options["model"] or await model_of(url, key),
        api_key=key,
        first_token_id=options["token_ids"][0],
        last_token_id=options["token_ids"][1],
        min_tokens=options["min_tokens"],
    )
    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("requests", total=options["requests"])
        return await run(
            endpoint,
            _arrivals(options),
            concurrency=options["concurrency"],
            request_seconds=options["timeout"],
            seed=options["seed"],
            on_result=lambda _: progress.advance(task),
        )


def _arrivals(options: dict[str, Any]) -> Iterable[Arrival]:
    from shuntserve_core.bench import arrivals

    if options["trace"] is not None:
        if options["rate"] is not None:
            raise UserError("a rate and a trace", where="--rate", remedy="give only one of them")
        return arrivals.replay(options["trace"], options["time_scale"], options["requests"])
    lengths = arrivals.Lengths(options["input_tokens"], options["output_tokens"], options["spread"])
    count = options["requests"] or 100
    if options["rate"] is not None:
        return arrivals.poisson(count, options["rate"], lengths, options["seed"])
    return arrivals.closed(count, lengths, options["seed"])


def _url(target: str, registry: Registry) -> str:
    """The endpoint's base URL: as given, or where a configuration has it listen."""
    if "://" in target:
        return target.rstrip("/").removesuffix("/v1")
    from shuntserve_core.config.build import door_of
    from shuntserve_core.interfaces.frontdoor import Addressed

    if not Path(target).is_file():
        remedy = "expected a URL such as http://127.0.0.1:8000, or a configuration file"
        raise UserError("no such file", where=target, remedy=remedy)
    door = door_of(Path(target), registry)
    if isinstance(door, Addressed):
        return door.url
    remedy = "give its URL, such as http://127.0.0.1:8000"
    raise UserError("its front door does not say where it listens", where=target, remedy=remedy)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{report['succeeded']} of {report['requests']} requests in {report['seconds']:.2f} s: "
        f"{report['requests_per_second']:.2f} requests/s, "
        f"{report['output_tokens_per_second']:.0f} output tokens/s"
    )
    for error, count in report["errors"].items():
        console.print(f"{count} failed: {error}", markup=False)
    table = Table("", *next((list(report[n]) for n in ("latency", "ttft") if report[n]), []))
    for name in ("latency", "ttft", "tpot"):
        if report[name]:
            table.add_row(name, *(f"{1e3 * value:.2f} ms" for value in report[name].values()))
    if table.row_count:
        console.print(table)
