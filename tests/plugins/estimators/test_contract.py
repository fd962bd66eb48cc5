"""The bundled estimators keep the contract that optimizers rely on."""

from __future__ import annotations

from shuntserve_core.interfaces.estimator import Estimator
from shuntserve_core.testing.estimators import EstimatorContract
from shuntserve_core.types import Workload
from shuntserve_plugins.estimators.paper import Paper
from shuntserve_plugins.estimators.roofline import Roofline


class TestPaper(EstimatorContract):
    def make_estimator(self) -> Estimator:
        return Paper()


class TestRoofline(EstimatorContract):
    def make_estimator(self) -> Estimator:
        return Roofline()


class TestRooflineWithoutChunks(EstimatorContract):
    def make_estimator(self) -> Estimator:
        return Roofline(chunked_prefill=False, eager=True)


class TestRooflineOnSampledLengths(EstimatorContract):
    def make_estimator(self) -> Estimator:
        return Roofline(max_num_batched_tokens=64)

    def make_workload(self) -> Workload:
        return Workload(300, 50, 2048, lengths=((100, 1), (300, 80), (900, 20), (33, 400)))


class TestRooflineOnAnswersOfOneToken(EstimatorContract):
    def make_estimator(self) -> Estimator:
        return Roofline()

    def make_workload(self) -> Workload:
        return Workload(500, 1, 2048)
