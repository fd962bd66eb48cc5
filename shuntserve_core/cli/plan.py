"""`shuntserve plan`: which instances, how many layers on each, and what that gives and costs."""

from __future__ import annotations

import json

import click

from shuntserve_core.cli.common import (
    Asked,
    config_argument,
    config_of,
    estimator_option,
    json_option,
    naming,
    output_file,
    print_json,
    search_options,
    suited,
    write_text,
)


@click.command()
@config_argument
@click.option("--optimizer", metavar="NAME", help="Search with this one instead of the file's.")
@estimator_option
@search_options
@click.option("--out", metavar="FILE", help="Write the placement to a file, as JSON.")
@json_option
@click.pass_context
def plan(
    ctx: click.Context,
    config_file: str,
    optimizer: str | None,
    estimator: str | None,
    asked: Asked,
    out: str | None,
    as_json: bool,
) -> None:
    """Choose pipelines for the model and the cluster in CONFIG, a TOML file."""
    from shuntserve_core.config import optimizer_from, problem_from
    from shuntserve_core.placement_json import placement_to_json

    config = config_of(ctx, config_file)
    output_file(out)
    with naming(config.file):
        problem = problem_from(config, estimator, **asked.changes(config))
        suited(config)
        placement = optimizer_from(config, optimizer).place(problem)
    result = placement_to_json(placement, config.workload)
    if out:
        write_text(out, json.dumps(result, indent=2, allow_nan=False) + "\n")
    if as_json:
        print_json(result)
        return
    from shuntserve_core.cli.render import show_placement

    show_placement(placement, config)
    if out:
        click.echo(f"\nWritten to {out}")
