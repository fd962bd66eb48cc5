"""A simple optimizer: one pipeline over all whole instances, layers in proportion to memory."""

from __future__ import annotations

from time import perf_counter

from attrs import field, frozen
from attrs.validators import ge

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.building import build_placement
from shuntserve_core.types import Placement, StageKind


@frozen
class ByMemory:
    """The fields are what users may write in the table `[optimizer]`."""

    max_stages: int = field(default=16, validator=ge(1))
    """Most stages of the pipeline."""

    def place(self, problem: Problem) -> Placement:
        """Cut the layers by memory.  Raises `UserError` where that does not fit."""
        start = perf_counter()
        if problem.objective.kind != "throughput":
            raise UserError(
                f"by-memory cannot follow the objective {problem.objective.kind!r}",
                where="objective.kind",
                remedy='use "throughput", or the optimizer exact',
            )
        stages = self._stages(problem)
        estimate = problem.estimator.estimate(stages)
        if not estimate.feasible:
            raise UserError(
                f"one pipeline over the whole cluster does not fit: {estimate.reason}",
                remedy="add instances, or use the optimizer exact",
            )
        seconds = perf_counter() - start
        return build_placement(problem, [stages], optimizer="by-memory", seconds=seconds)

    def _stages(self, problem: Problem) -> list[tuple[StageKind, int]]:
        model = problem.estimator.model
        usable = [
            offer.instance
            for offer in problem.cluster.offers
            for _ in range(offer.count)
            if not model.refuse_tensor_parallel(offer.instance.gpu_count)
        ]
        usable.sort(key=lambda kind: -kind.gpu_count * kind.gpu.memory_bytes)
        usable = usable[: min(self.max_stages, model.layers)]
        memory = [kind.gpu_count * kind.gpu.memory_bytes for kind in usable]
        ends = [
            round(model.layers * sum(memory[: i + 1]) / sum(memory)) for i in range(len(memory))
        ]
        layers = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        return [
            (StageKind(kind.name, kind.gpu_count), count)
            for kind, count in zip(usable, layers, strict=True)
            if count
        ]
