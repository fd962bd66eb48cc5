"""One simulation, from a configuration to its result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs
from attrs import evolve, field, frozen

from shuntserve_core.config.build import engine_facts, plugin_from
from shuntserve_core.config.loader import Config
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.estimator import Estimator
from shuntserve_core.interfaces.layer import StepPredictor
from shuntserve_core.simulator.cluster import SimulatedCluster, SimulatedRun
from shuntserve_core.simulator.engine import Engine
from shuntserve_core.simulator.pipeline import SimulatedPipeline
from shuntserve_core.simulator.profile import PROFILES, VLLM, EngineProfile, MeasuredSteps
from shuntserve_core.simulator.recovery import Recovery
from shuntserve_core.simulator.result import Result
from shuntserve_core.simulator.tables import MeasuredTable, PredictedSteps, StepTable
from shuntserve_core.traces.events import TraceEvent
from shuntserve_core.traces.workload import Requests
from shuntserve_core.types import Pipeline, Placement

STEPS = "roofline"
"""The estimator that is asked for steps where the configured one predicts none."""


@frozen
class Setting:
    """What is simulated beside the configuration, the placement and the requests."""

    profile: EngineProfile = VLLM
    recovery: Recovery = field(factory=Recovery)
    events: tuple[TraceEvent, ...] = ()
    spares: tuple[str, ...] = ()
    """Nodes that are there beside the placement's."""
    duration: float = math.inf
    """Virtual seconds after which it ends, whatever is unfinished."""


def simulate(
    config: Config, placement: Placement, requests: Requests, setting: Setting | None = None
) -> Result:
    """Replay requests and events.  Raises `UserError` for what cannot be simulated."""
    setting = setting or Setting()
    began = time.perf_counter()
    fitting = requests.fitting(config.workload.max_length)
    engine = Engine(fitting, plugin_from(config, "balancer", config.document.balancer))
    builder = _Builder(config, of_engine(config, setting.profile))
    cluster = SimulatedCluster(config, setting.recovery, engine, builder.build)
    cluster.start(placement.pipelines, setting.spares)
    _check(placement, cluster.runs, fitting)
    cluster.follow(setting.events)
    engine.run(setting.duration)
    dispatch = engine.dispatch
    preemptions = engine.preemptions + sum(p.preemptions for p in dispatch.pipelines.values())
    return Result(
        record=engine.record,
        seconds=engine.now,
        cost=cluster.cost(engine.now),
        pipelines=tuple(_describe(run, engine.now) for run in cluster.runs),
        notes=tuple(cluster.notes),
        counters={
            "migrations": dispatch.migrations,
            "recomputed_tokens": dispatch.recomputed_tokens,
            "preemptions": preemptions,
            "too_long": len(requests) - len(fitting),
        },
        wall_seconds=time.perf_counter() - began,
    )


def step_predictor(config: Config, profile: EngineProfile) -> StepPredictor:
    """The configured estimator as this engine would be described to it, or the default one."""
    table = config.document.estimator
    for name, options in ((table.name, table.options), (STEPS, {})):
        estimator = plugin_from(config, "estimator", evolve(table, name=name, options=options))
        described = _described(estimator, profile)
        bound = described.bind(config.model, config.workload, config.cluster.catalog)
        if isinstance(bound, StepPredictor):
            return bound
    raise UserError(
        f"neither {table.name} nor {STEPS} predicts steps",
        where=f"{config.file}: estimator.name",
        remedy="use an estimator that has step_seconds",
    )


def _described(estimator: Estimator, profile: EngineProfile) -> Estimator:
    """With those of the profile's options that the estimator has."""
    kind = type(estimator)
    if not attrs.has(kind):
        return estimator
    known = {attribute.name for attribute in attrs.fields(kind) if attribute.init}
    options = {k: v for k, v in profile.estimator_options.items() if k in known}
    described: Estimator = evolve(cast(Any, estimator), **options)
    return described


def of_engine(config: Config, profile: EngineProfile) -> EngineProfile:
    """A profile of the engine that the file names, with the options that the file gives it."""
    if not config.engine_said or profile != PROFILES.get(config.document.engine.name):
        return profile
    facts = engine_facts(config)
    tokens = facts.step_tokens or profile.step_tokens
    sequences = facts.sequences or profile.sequences
    options = {"max_num_batched_tokens": tokens, "max_num_seqs": sequences, "eager": facts.eager}
    options = {**profile.estimator_options, **options}
    return evolve(profile, step_tokens=tokens, sequences=sequences, estimator_options=options)


def shape_name(plan: Pipeline) -> str:
    """Stages as `shuntserve estimate --pipeline` takes them."""
    return ",".join(f"{s.instance}/{s.tensor_parallel}:{s.layers}" for s in plan.stages)


class _Builder:
    """Makes simulated pipelines; those of the same shape share their tables."""

    def __init__(self, config: Config, profile: EngineProfile) -> None:
        self._config = config
        self._profile = profile
        self._tables: dict[tuple[Any, ...], StepTable] = {}
        self._predictor: StepPredictor | None = None

    def build(self, name: str, plan: Pipeline) -> SimulatedPipeline:
        """An engine without requests."""
        estimate, most = plan.estimate, self._config.document.serve.max_batch
        return SimulatedPipeline(
            name,
            self._table(plan),
            len(plan.stages),
            self._profile,
            estimate.kv_blocks,
            estimate.throughput_rps,
            min(estimate.batch, most or estimate.batch),
        )

    def _table(self, plan: Pipeline) -> StepTable:
        measured = self._measured(plan)
        if measured is not None:
            return MeasuredTable(measured)
        stages = tuple((stage.kind, stage.layers) for stage in plan.stages)
        if stages not in self._tables:
            self._predictor = self._predictor or step_predictor(self._config, self._profile)
            self._tables[stages] = PredictedSteps(self._predictor, stages)
        return self._tables[stages]

    def _measured(self, plan: Pipeline) -> MeasuredSteps | None:
        measured = self._profile.measured
        return measured.get(shape_name(plan)) or measured.get("*")


def _check(placement: Placement, runs: Sequence[SimulatedRun], requests: Requests) -> None:
    if not placement.pipelines:
        raise UserError("the placement has no pipelines", remedy="see: shuntserve plan CONFIG")
    if not len(requests):
        raise UserError("the workload has no requests", remedy="give a trace that has some")
    longest = int((requests.prompt + requests.answer).max())
    room = max(run.engine.longest for run in runs)
    if longest > room:
        raise UserError(
            f"a request of {longest} tokens fits no pipeline: a scheduler has cache for {room}",
            where="workload",
            remedy="lower workload.max_length, or place fewer layers a stage",
        )


def _describe(run: SimulatedRun, end: float) -> Mapping[str, Any]:
    since = run.serving_since
    stop = end if run.ended is None else run.ended
    served = 0.0 if since is None else max(stop - since, 0.0)
    return {
        "name": run.name,
        "stages": shape_name(run.plan),
        "nodes": sorted(run.nodes),
        "from": since,
        "to": None if since is None else stop,
        "busy": [s / served if served else 0.0 for s in run.engine.busy_seconds],
    }
