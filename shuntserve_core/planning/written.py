"""Pipelines of one's own making, written as text, and what an estimator says of them."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from shuntserve_core.config import Config, problem_from
from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.planning.building import build_placement
from shuntserve_core.types import Cluster, Offer, Placement, StageKind

SYNTAX = "write INSTANCE:LAYERS or INSTANCE/TP:LAYERS, separated by commas"


def parse_pipeline(
    text: str, config: Config, where: str = "pipeline"
) -> list[tuple[StageKind, int]]:
    """Stages from the form `g6.12xlarge:40,g5.12xlarge/2:40`.

    Raises `UserError` for what is no such form, for unknown instance types, degrees that the
    model cannot use, and another number of layers than the model's; `where` is what it names.
    """
    stages = [_parse_stage(part.strip(), config, where) for part in text.split(",")]
    placed = sum(layers for _, layers in stages)
    if placed != config.model.layers:
        raise UserError(
            f"the stages hold {placed} layers and {config.model.name} has {config.model.layers}",
            where=where,
            remedy=f"{'add' if placed < config.model.layers else 'take off'} "
            f"{abs(config.model.layers - placed)}",
        )
    return stages


def _parse_stage(text: str, config: Config, where: str) -> tuple[StageKind, int]:
    hardware, colon, layers = text.rpartition(":")
    name, slash, degree = hardware.partition("/")
    if not colon or not _is_count(layers) or (slash and not _is_count(degree)):
        raise UserError(f'"{text}" is not a stage', where=where, remedy=SYNTAX)
    instance = config.instance_types.get(name)
    if instance is None:
        raise UserError(
            f'unknown instance type "{name}"',
            where=where,
            remedy=did_you_mean(name, config.instance_types),
        )
    tensor_parallel = int(degree) if slash else instance.gpu_count
    if tensor_parallel > instance.gpu_count:
        raise UserError(
            f"{name} has {instance.gpu_count} GPUs, not {tensor_parallel}",
            where=where,
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
            where=where,
            remedy=f"usable after the slash: {', '.join(usable)}",
        )
    return StageKind(name, tensor_parallel), int(layers)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < len(text) < 7 and int(text) > 0


def estimate_pipelines(
    config: Config, chosen: Sequence[Sequence[tuple[StageKind, int]]], estimator: str | None = None
) -> Placement:
    """The pipelines as a placement, on as many instances as they need, be they offered or not.

    Raises `UserError` where the estimator cannot predict them.
    """
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
