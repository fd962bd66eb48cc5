"""`shuntserve estimate`: what pipelines of your own making would do."""

from __future__ import annotations

import click

from shuntserve_core.cli.common import (
    config_argument,
    config_of,
    estimator_option,
    json_option,
    naming,
    print_json,
    suited,
)


@click.command()
@config_argument
@click.option(
    "--pipeline",
    "pipelines",
    multiple=True,
    required=True,
    metavar="STAGES",
    help='Stages in order: "g6.12xlarge:40,g5.12xlarge/2:40" (repeatable; /2 uses 2 GPUs).',
)
@estimator_option
@json_option
@click.pass_context
def estimate(
    ctx: click.Context,
    config_file: str,
    pipelines: tuple[str, ...],
    estimator: str | None,
    as_json: bool,
) -> None:
    """Predict what given pipelines do with the model and the workload in CONFIG.

    The instances need not be in the file's cluster.
    """
    from shuntserve_core.placement_json import placement_to_json
    from shuntserve_core.planning.written import estimate_pipelines, parse_pipeline

    config = config_of(ctx, config_file)
    chosen = [parse_pipeline(text, config, where="--pipeline") for text in pipelines]
    with naming(config.file):
        suited(config)
        placement = estimate_pipelines(config, chosen, estimator)
    if as_json:
        print_json(placement_to_json(placement, config.workload))
        return
    from shuntserve_core.cli.render import show_placement

    show_placement(placement, config)
