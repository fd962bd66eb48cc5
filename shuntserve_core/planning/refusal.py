"""Why no pipeline could be made: the one error that every optimizer raises then."""

from __future__ import annotations

from math import ceil

import numpy as np
from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.estimator import Position
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.types import InstanceType, StageKind


def explain_no_pipeline(problem: Problem) -> UserError:
    """Say what stands in the way of any pipeline, by how much, and the least that would help.

    Memory is looked at first: the layers that all instances can hold, each with its KV cache for
    one request of the longest length; then budget and latency limits.
    """
    offers = [offer for offer in problem.cluster.offers if offer.count]
    if not offers:
        return UserError(
            "there is no instance to use", where="cluster", remedy="give an instance type a count"
        )
    rooms = [_room(problem, offer.instance) for offer in offers]
    if not any(room.middle for room in rooms):
        return _no_room_at_all(problem)
    layers = problem.estimator.model.layers
    held = sum(room.middle * offer.count for room, offer in zip(rooms, offers, strict=True))
    held -= min(room.first_loss for room in rooms if room.middle)
    held -= min(room.last_loss for room in rooms if room.middle)
    if held < layers and not any(room.only >= layers for room in rooms):
        return _too_little_memory(problem, rooms, layers - max(held, 0))
    return _limited(problem)


@frozen
class _Room:
    """Layers that fit on one instance."""

    instance: InstanceType
    middle: int
    first_loss: int
    """How many fewer where the embedding is held as well."""
    last_loss: int
    """How many fewer where the logits are computed as well."""
    only: int
    """Layers where both are."""


def _room(problem: Problem, instance: InstanceType) -> _Room:
    degrees = instance.tensor_parallel_degrees
    best = _Room(instance, 0, 0, 0, 0)
    for degree in degrees[-1:] if problem.whole_instances else degrees:
        kind = StageKind(instance.name, degree)
        first, last, middle, only = (
            int(np.count_nonzero(problem.estimator.batch_limit(kind, place)[1:]))
            for place in (
                Position(first=True, last=False),
                Position(first=False, last=True),
                Position(first=False, last=False),
                Position(first=True, last=True),
            )
        )
        total = middle * (instance.gpu_count // degree)
        if total > best.middle:
            best = _Room(instance, total, middle - first, middle - last, only)
    return best


def _no_room_at_all(problem: Problem) -> UserError:
    """Not one layer fits on any instance: too small, or a refused tensor-parallel degree."""
    model = problem.estimator.model
    instances = [offer.instance for offer in problem.cluster.offers if offer.count]
    refusals = []
    for instance in instances:
        degrees = instance.tensor_parallel_degrees
        allowed = degrees[-1:] if problem.whole_instances else degrees
        refusals.append([model.refuse_tensor_parallel(degree) for degree in allowed])
    if all(all(reasons) for reasons in refusals):
        return UserError(
            f"{model.name} cannot be cut over the {instances[0].gpu_count} GPUs of "
            f"{instances[0].name}: {refusals[0][-1]}",
            where="cluster",
            remedy="allow part of an instance, or offer one with fewer GPUs",
        )
    largest = max(
        instances,
        key=lambda instance: instance.gpu.memory_bytes * instance.gpu_count,
    )
    memory = largest.gpu.memory_bytes * largest.gpu_count
    return UserError(
        f"{model.name} fits nowhere: not one layer ({_layer_bytes(problem):,.0f} bytes with its "
        f"KV cache) fits beside the activations on {largest.name} ({memory:,} bytes)",
        where="cluster",
        remedy="offer GPUs with more memory, or lower workload.max_length",
    )


def _too_little_memory(problem: Problem, rooms: list[_Room], missing: int) -> UserError:
    model = problem.estimator.model
    prices = problem.cluster.prices
    options = [(room.instance, ceil(missing / room.middle)) for room in rooms if room.middle]
    instance, count = min(options, key=lambda option: prices[option[0].name] * option[1])
    return UserError(
        f"{model.name} fits nowhere: {missing} of its {model.layers} layers find no room, "
        f"{missing * _layer_bytes(problem):,.0f} bytes with the KV cache of one request of "
        f"{problem.estimator.workload.max_length} tokens",
        where="cluster",
        remedy=f"the least to add is {count} more {instance.name}",
    )


def _layer_bytes(problem: Problem) -> float:
    model = problem.estimator.model
    return model.layer_bytes + model.kv_bytes_per_token * problem.estimator.workload.max_length


def _limited(problem: Problem) -> UserError:
    """The model fits, so a limit of the user forbids every pipeline."""
    objective, name = problem.objective, problem.estimator.model.name
    if objective.slo.limited:
        return UserError(
            f"no pipeline of {name} was found within the latency limits",
            where="objective.slo",
            remedy="raise the limits, or offer faster instances",
        )
    if objective.budget is not None:
        return UserError(
            f"no pipeline of {name} was found for {objective.budget:g} $/h",
            where="objective.budget",
            remedy="raise the budget, or offer cheaper instances",
        )
    return UserError(
        f"no pipeline of {name} was found, though its layers would fit",
        where="optimizer",
        remedy='use the optimizer "exact", or allow more stages',
    )
