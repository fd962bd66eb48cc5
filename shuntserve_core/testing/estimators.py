"""The contract of estimators, for authors of plugins to run against their own.

    from shuntserve_core.testing.estimators import EstimatorContract

    class TestMine(EstimatorContract):
        def make_estimator(self):
            return MyEstimator()

Optimizers search faster than one pipeline at a time because of what is checked here: work is affine
in layers, batches only shrink with layers, and nothing gets faster when a stage gets slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from shuntserve_core.interfaces.estimator import (
    BoundEstimator,
    EngineAware,
    Estimator,
    Ints,
    Position,
)
from shuntserve_core.types import (
    Efficiency,
    EngineFacts,
    GpuSpec,
    InstanceType,
    Link,
    ModelSpec,
    StageKind,
    Workload,
)

BOUNDS = frozenset({"compute", "memory bandwidth", "communication", "overhead"})
_CLOSE = 1e-9


def example_model() -> ModelSpec:
    """A 1-billion-parameter model with grouped-query attention."""
    return ModelSpec("example", 24, 2048, 16, 4, 128, 5632, 32_000)


def example_catalog() -> dict[str, InstanceType]:
    """A fast type with one GPU, a slow one with four, and one that is too small for anything."""
    fast = GpuSpec("Fast", 8_000_000_000, {"float16": 100e12}, 800e9, Efficiency(0.9, 0.5))
    slow = GpuSpec("Slow", 4_000_000_000, {"float16": 30e12}, 200e9, Efficiency(0.9, 0.5))
    tiny = GpuSpec("Tiny", 100_000_000, {"float16": 1e12}, 20e9)
    network = Link(5e9, 1e-3)
    types = (
        InstanceType("fast-1", fast, 1, Link(5e9, 1e-4), network, 2.0),
        InstanceType("slow-4", slow, 4, Link(2e9, 1e-4), network, 1.0),
        InstanceType("tiny-1", tiny, 1, Link(2e9, 1e-4), network, 0.1),
    )
    return {instance.name: instance for instance in types}


class EstimatorContract:
    """Subclass, and say which estimator; override the rest to try it on your own hardware."""

    def make_estimator(self) -> Estimator:
        """The estimator, with options as you like."""
        raise NotImplementedError

    def make_model(self) -> ModelSpec:
        """The model to predict."""
        return example_model()

    def make_workload(self) -> Workload:
        """The requests."""
        return Workload(500, 100, 2048)

    def make_catalog(self) -> dict[str, InstanceType]:
        """The instance types."""
        return example_catalog()

    def test_an_engine_that_says_nothing_changes_nothing(self) -> None:
        """One that asks for the engine's facts predicts the same where there are none, and keeps to
        options of its own where nobody has chosen an engine."""
        estimator = self.make_estimator()
        if not isinstance(estimator, EngineAware):
            return
        assert estimator.for_engine(EngineFacts()) == estimator
        facts = EngineFacts(step_tokens=512, sequences=8, eager=True, chunked_prefill=True)
        model, workload, catalog = self.make_model(), self.make_workload(), self.make_catalog()
        bound = estimator.for_engine(facts, firmly=False).bind(model, workload, catalog)
        kind = StageKind(next(iter(catalog)), 1)
        assert bound.estimate([(kind, model.layers)]).batch <= 8

    def _bound(self) -> BoundEstimator:
        return self.make_estimator().bind(
            self.make_model(), self.make_workload(), self.make_catalog()
        )

    def _kinds(self) -> list[StageKind]:
        return [
            StageKind(name, degree)
            for name, instance in self.make_catalog().items()
            for degree in instance.tensor_parallel_degrees
        ]

    def _stages(self) -> Iterator[tuple[StageKind, Position]]:
        flags = (False, True)
        for kind, first, last in product(self._kinds(), flags, flags):
            yield kind, Position(first, last)

    def test_batch_limit_only_shrinks_with_layers(self) -> None:
        """One entry for each number of layers, none negative, entry 0 as entry 1."""
        bound = self._bound()
        for kind, position in self._stages():
            limit = bound.batch_limit(kind, position)
            assert limit.shape == (bound.model.layers + 1,)
            assert np.issubdtype(limit.dtype, np.integer)
            assert limit[0] == limit[1]
            assert (limit >= 0).all()
            assert (np.diff(limit) <= 0).all(), (kind, position)

    def test_refused_degrees_hold_nothing(self) -> None:
        """A tensor-parallel degree that the model refuses has no room for any request."""
        bound = self._bound()
        name = next(iter(bound.catalog))
        refused = next(t for t in range(2, 99) if bound.model.refuse_tensor_parallel(t))
        assert not bound.batch_limit(StageKind(name, refused), Position(True, True)).any()

    def test_work_is_positive_and_has_the_shape_of_the_batches(self) -> None:
        """`stage_work` answers for every batch that it is asked about."""
        bound = self._bound()
        batch = np.array([1, 2, 3, 17, 100, 1000])
        for kind, position in self._stages():
            work = bound.stage_work(kind, position, 3, batch)
            for part in work:
                assert part.shape == batch.shape
                assert np.isfinite(part).all()
                assert (part >= 0).all(), (kind, position)
            assert (work.prefill_layer + work.decode_layer > 0).all()

    def test_nothing_gets_faster_when_a_stage_gets_slower(self) -> None:
        """`period` and `latencies` do not shrink as either kind of work grows."""
        bound = self._bound()
        batch = np.array([1, 2, 3, 17, 100, 1000])[:, None, None]
        seconds = np.array([0.0, 1e-3, 1.0, 1.5, 30.0])
        for depth in (1, 2, 5, 13):
            arguments = (batch, depth, seconds[:, None], seconds)
            results = (bound.period(*arguments), *bound.latencies(*arguments))
            for result in results:
                for axis in (1, 2):
                    least = -_CLOSE * np.abs(result).max()
                    assert (np.diff(result, axis=axis) >= least).all()
            assert (results[0][:, 1:, 1:] > 0).all()

    def test_scores_follow_from_the_parts(self) -> None:
        """Throughput, batch and latencies of pipelines are what limits, work and period say."""
        bound = self._bound()
        kinds = self._kinds()
        generator = np.random.default_rng(7)
        for depth in (1, 2, 4):
            choice = generator.integers(0, len(kinds), (40, depth))
            layers = _random_splits(generator, bound.model.layers, depth, 40)
            scores = bound.scores(kinds, choice, layers)
            for row in range(len(choice)):
                stages = [(kinds[k], int(n)) for k, n in zip(choice[row], layers[row], strict=True)]
                expected = _from_parts(bound, stages)
                found = [float(column[row]) for column in scores]
                np.testing.assert_allclose(found, expected, rtol=_CLOSE, err_msg=str(stages))

    def test_estimate_agrees_with_scores(self) -> None:
        """A pipeline's estimate has the figures of `scores`, and its breakdown adds up."""
        bound = self._bound()
        kinds = [kind for kind in self._kinds() if bound.batch_limit(kind, Position(True, True))[1]]
        layers = bound.model.layers
        for kind in kinds:
            stages = [(kind, layers // 2), (kind, layers - layers // 2)]
            estimate = bound.estimate(stages)
            counts = np.array([[n for _, n in stages]])
            scores = bound.scores([kind], np.zeros((1, 2), dtype=np.int64), counts)
            assert estimate.throughput_rps == scores.throughput_rps[0]
            assert estimate.batch == scores.batch[0]
            assert (estimate.ttft, estimate.tpot) == (scores.ttft[0], scores.tpot[0])
            assert estimate.latency == scores.latency[0]
            assert bool(estimate.reason) != estimate.feasible
            for stage in estimate.stages:
                assert stage.bound in BOUNDS
                spent = stage.prefill_seconds + stage.decode_seconds
                np.testing.assert_allclose(sum(stage.breakdown.values()), spent, rtol=1e-6)

    def test_what_does_not_fit_is_infeasible_and_says_why(self) -> None:
        """A stage without room makes throughput 0, latencies infinite, and gives a reason."""
        bound = self._bound()
        short = [k for k in self._kinds() if not bound.batch_limit(k, Position(True, True))[-1]]
        assert short, "give the catalog an instance type that is too small for the model"
        estimate = bound.estimate([(short[0], bound.model.layers)])
        assert not estimate.feasible
        assert estimate.throughput_rps == 0
        assert estimate.latency == estimate.ttft == estimate.tpot == float("inf")
        assert estimate.reason


def _random_splits(generator: np.random.Generator, layers: int, depth: int, count: int) -> Ints:
    """`count` ways to cut `layers` into `depth` positive parts: (count, depth)."""
    cuts = [
        np.sort(generator.choice(np.arange(1, layers), depth - 1, replace=False))
        for _ in range(count)
    ]
    return np.array([np.diff([0, *cut, layers]) for cut in cuts])


def _from_parts(bound: BoundEstimator, stages: Sequence[tuple[StageKind, int]]) -> list[float]:
    """What `scores` must say of one pipeline: the protocol's definition, taken literally."""
    depth = len(stages)
    positions = [Position(index == 0, index == depth - 1) for index in range(depth)]
    placed = [(*stage, position) for stage, position in zip(stages, positions, strict=True)]
    batch = min(int(bound.batch_limit(kind, where)[n]) for kind, n, where in placed)
    if not batch:
        return [0.0, 0.0, np.inf, np.inf, np.inf]
    group = np.array([batch])
    busy, latency = [], 0.0
    for kind, n, where in placed:
        work = bound.stage_work(kind, where, depth, group)
        busy.append(
            (
                work.prefill_layer * n + work.prefill_fixed,
                work.decode_layer * n + work.decode_fixed,
            )
        )
        layer, fixed = bound.alone(kind, where, depth)
        latency += layer * n + fixed
    prefill, decode = (np.max([b[phase] for b in busy], axis=0) for phase in (0, 1))
    throughput = batch / float(bound.period(group, depth, prefill, decode)[0])
    ttft, tpot = (float(each[0]) for each in bound.latencies(group, depth, prefill, decode))
    return [throughput, float(batch), latency, ttft, tpot]
