"""`shuntserve estimate`: what pipelines of your own making would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shuntserve_core.cli.common import (
    config_argument,
    config_of,
    estimator_option,
    json_option,
    naming,
    print_json,
)
from shuntserve_core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from shuntserve_core.config import Config
    from shuntserve_core.types import Placement, StageKind

SYNTAX = "write INSTANCE:LAYERS or INSTANCE/TP:LAYERS, separated by commas"
_FLAG = "--pipeline"


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

    config = config_of(ctx, config_file)
    chosen = [parse_pipeline(text, config) for text in pipelines]
    with naming(config.file):
        placement = estimated(config, estimator, chosen)
    if as_json:
        print_json(placement_to_json(placement, config.workload))
        return
    from shuntserve_core.cli.render import show_placement

    show_placement(placement, config)


def parse_pipeline(text: str, config: Config) -> list[tuple[StageKind, int]]:
    """Stages from the form `g6.12xlarge:40,g5.12xlarge/2:40`.  Raises `UserError`."""
    stages = [_parse_stage(part.strip(), config) for part in text.split(",")]
    placed = sum(layers for _, layers in stages)
    if placed != config.model.layers:
        raise UserError(
            f"the stages hold {placed} layers and {config.model.name} has {config.model.layers}",
            where=_FLAG,
            remedy=f"{'add' if placed < config.model.layers else 'take off'} "
            f"{abs(config.model.layers - placed)}",
        )
    return stages


def _parse_stage(text: str, config: Config) -> tuple[StageKind, int]:
    from shuntserve_core.types import StageKind

    hardware, colon, layers = text.rpartition(":")
    name, slash, degree = hardware.partition("/")
    if not colon or not _is_count(layers) or (slash and not _is_count(degree)):
        raise UserError(f'"{text}" is not a stage', where=_FLAG, remedy=SYNTAX)
    instance = config.instance_types.get(name)
    if instance is None:
        raise UserError(
            f'unknown instance type "{name}"',
            where=_FLAG,
            remedy=did_you_mean(name, config.instance_types),
        )
    tensor_parallel = int(degree) if slash else instance.gpu_count
    if tensor_parallel > instance.gpu_count:
        raise UserError(
            f"{name} has {instance.gpu_count} GPUs, not {tensor_parallel}",
            where=_FLAG,
            remedy=f"use /1 to /{instance.gpu_count}",
        )
    if reason := config.model.refuse_tensor_parallel(tensor_parallel):
        usable = [
            str(degree)
            for degree in range(1, instance.gpu_count + 1)
            if not config.model.refuse_tensor_parallel(degree)
        ]
        raise UserError(
            f"{config.model.name} cannot use {tensor_parallel} GPUs a stage: {reason}",
            where=_FLAG,
            remedy=f"usable after the slash: {', '.join(usable)}",
        )
    return StageKind(name, tensor_parallel), int(layers)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < len(text) < 7 and int(text) > 0


def estimated(
    config: Config, estimator: str | None, chosen: list[list[tuple[StageKind, int]]]
) -> Placement:
    """The pipelines as a placement, on as many instances as they need."""
    from attrs import evolve

    from shuntserve_core.config import problem_from
    from shuntserve_core.placing import build_placement
    from shuntserve_core.types import Cluster, Offer

    offered = {offer.instance.name: offer for offer in config.cluster.offers}
    wanted = [kind.instance for pipeline in chosen for kind, _ in pipeline]
    for name in wanted:
        instance = config.instance_types[name]
        offer = offered.get(name) or Offer(instance, 0, instance.price, "on-demand")
        offered[name] = evolve(offer, count=max(offer.count, wanted.count(name)))
    cluster = Cluster(tuple(offered.values()))
    problem = problem_from(evolve(config, cluster=cluster), estimator)
    placement = build_placement(problem, chosen, optimizer="", seconds=0.0)
    counts = config.cluster.counts
    used = {name: cluster.counts[name] - unused for name, unused in placement.unused.items()}
    left = {name: max(count - used.get(name, 0), 0) for name, count in counts.items()}
    return evolve(placement, unused=left)
