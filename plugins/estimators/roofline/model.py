"""The `roofline` estimator, bound to a model, a workload and instance types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from attrs import define, frozen

from shuntserve_core.interfaces.estimator import Floats, Ints, Position, Scores, StageWork
from shuntserve_core.interfaces.layer import EngineStep, LayerTime
from shuntserve_core.types import (
    Estimate,
    InstanceType,
    ModelSpec,
    StageEstimate,
    StageKind,
    Workload,
)
from shuntserve_plugins.estimators.base import Stages, combine, estimate_pipeline, position_of
from shuntserve_plugins.estimators.roofline.hardware import Rates, rates_of
from shuntserve_plugins.estimators.roofline.lengths import Lengths
from shuntserve_plugins.estimators.roofline.memory import Memory, Runtime
from shuntserve_plugins.estimators.roofline.operators import Operators
from shuntserve_plugins.estimators.roofline.parts import (
    Parts,
    bound_of,
    merged,
    scaled,
    total,
    waiting,
)
from shuntserve_plugins.estimators.roofline.steps import Steps, mixed, separate, stalled

KV_BLOCK = 16
"""Tokens of one block of the KV cache."""


@frozen
class EngineSetup:
    """`Roofline`'s options in the model's words; see there for units and sources."""

    chunked_prefill: bool
    step_tokens: int
    sequences: int
    memory_utilisation: float
    runtime: Runtime
    weight_copies: float
    step_overhead: float
    sequence_overhead: float
    eager_layer_seconds: float


class Phase(NamedTuple):
    """Operators of a phase: of one layer, and around the layers."""

    layer: Parts
    fixed: Parts


class Work(NamedTuple):
    """Both phases; with chunked prefill the first holds everything."""

    prefill: Phase
    decode: Phase


@define(frozen=True, slots=False)
class RooflineModel:
    """A `BoundEstimator`, a `LayerPredictor` and a `StepPredictor`."""

    model: ModelSpec
    workload: Workload
    catalog: Mapping[str, InstanceType]
    setup: EngineSetup

    @cached_property
    def _lengths(self) -> Lengths:
        return Lengths.of(self.workload, self._prompt_chunk)

    @cached_property
    def _prompt_chunk(self) -> int:
        """Most tokens of a prompt that a step computes; whole prompts without chunking."""
        if self.setup.chunked_prefill:
            return self.setup.step_tokens
        return max(self.setup.step_tokens, self.workload.max_length)

    @cached_property
    def _operators(self) -> Operators:
        return Operators(self.model, self.setup.eager_layer_seconds)

    @cached_property
    def _memory(self) -> Memory:
        setup = self.setup
        return Memory(
            self.model,
            setup.memory_utilisation,
            setup.runtime,
            self._prompt_chunk,
            setup.sequences,
            setup.weight_copies * setup.runtime.engines,
        )

    def _rates(self, kinds: Sequence[StageKind]) -> Rates:
        stages = [(self.catalog[kind.instance], kind.tensor_parallel) for kind in kinds]
        return rates_of(self.model, stages)

    # How much fits.

    def batch_limit(self, kind: StageKind, position: Position) -> Ints:
        """Requests whose KV cache fits at the same time, by number of layers.

        Blocks are taken as tokens come, so what counts is what a request holds on average over its
        stay; one of the greatest length must fit too, or the engine does not start.
        """
        model, t = self.model, kind.tensor_parallel
        layers = np.arange(model.layers + 1)
        if model.refuse_tensor_parallel(t):
            return np.zeros(model.layers + 1, dtype=np.int64)
        free = self._memory.for_cache(self.catalog[kind.instance].gpu, t, position, layers)
        token = self._memory.token_bytes(t, np.maximum(layers, 1))
        extra = self._memory.request_bytes(position)
        requests = np.floor(free / (token * self._held_tokens + extra))
        limit = np.minimum(requests, self.setup.sequences).astype(np.int64)
        longest = token * self.workload.max_length + extra
        limit = np.where(free >= longest, np.maximum(limit, 1), 0)
        limit[0] = limit[1]
        return limit

    @cached_property
    def _held_tokens(self) -> float:
        """Tokens of cache a request takes on average: its last block is half empty."""
        return self._lengths.occupancy + KV_BLOCK / 2

    def _limits(self, kinds: Sequence[StageKind]) -> Ints:
        """`batch_limit` of every kind: shape (kinds, first, last, layers + 1)."""
        flags = (False, True)
        return np.array(
            [
                [
                    [self.batch_limit(kind, Position(first, last)) for last in flags]
                    for first in flags
                ]
                for kind in kinds
            ]
        )

    # How long a stage is busy.

    def _steps(self, depth: int, batch: Any) -> tuple[Any, Steps]:
        """Micro-batches in flight, and the steps of each in a turnover."""
        groups = np.minimum(batch, depth)
        cut = mixed if self.setup.chunked_prefill else separate
        return groups, cut(self._lengths, batch / groups, self._prompt_chunk)

    def _step(self, rates: Rates, tokens: Any, rows: Any, first: Any, last: Any) -> Phase:
        """One step without its attention."""
        host = self.setup.step_overhead + self.setup.sequence_overhead * rows
        around = self._operators.around(rates, tokens, rows, first, last)
        return Phase(self._operators.linear(rates, tokens), {**around, "host": waiting(host)})

    def _attention(self, rates: Rates) -> tuple[Parts, Parts]:
        """Attention of one request in one layer: its prompt, and all its decode steps."""
        lengths = self._lengths
        prompt = self._operators.prefill_attention(
            rates, lengths.prompt_pairs, lengths.chunk_context
        )
        decode = self._operators.decode_attention(rates, lengths.decode_context)
        return {"prefill attention": prompt}, {"decode attention": decode}

    def _work(self, rates: Rates, first: Any, last: Any, depth: int, batch: Any) -> Work:
        """A stage's turnover: every slot of every micro-batch serves one request."""
        groups, steps = self._steps(depth, batch)
        prompt, decode = self._attention(rates)
        heavy = self._step(rates, steps.prefill_tokens, steps.prefill_rows, first, last)
        light = self._step(rates, steps.decode_tokens, steps.decode_tokens, first, last)
        prefill = _repeated(heavy, groups * steps.prefill, scaled(prompt, batch * 1.0))
        decoding = _repeated(light, groups * steps.decode, scaled(decode, batch * 1.0))
        share = batch / (groups * steps.prefill)  # of all requests, in one prefill step
        wait = groups * stalled(steps, groups)
        bubble = Phase(
            _bubble(wait, total(heavy.layer) + total(prompt) * share - total(light.layer)),
            _bubble(wait, total(heavy.fixed) - total(light.fixed)),
        )
        decoding = _joined(decoding, bubble)
        if self.setup.chunked_prefill:
            return Work(_joined(prefill, decoding), Phase({}, {}))
        return Work(prefill, decoding)

    def stage_work(self, kind: StageKind, position: Position, depth: int, batch: Ints) -> StageWork:
        """Busy seconds for each pipeline batch in `batch`."""
        batch = np.asarray(batch)
        work = self._work(self._rates([kind]), position.first, position.last, depth, batch)
        return StageWork(*(np.broadcast_to(part, batch.shape) for part in _seconds(work)))

    # How stages work together.

    def period(self, batch: Ints, depth: int, prefill: Floats, decode: Floats) -> Floats:
        """Seconds of a turnover: the slowest stage is always busy, if there are enough batches."""
        groups = np.minimum(batch, depth)
        seconds: Floats = (prefill + decode) * (depth / groups)
        return seconds

    def latencies(
        self, batch: Ints, depth: int, prefill: Floats, decode: Floats
    ) -> tuple[Floats, Floats]:
        """TTFT and TPOT from Little's law: a request stays as long as a turnover takes.

        TTFT counts from admission into the batch, not from arrival.
        """
        groups, steps = self._steps(depth, batch)
        period = self.period(batch, depth, prefill, decode)
        decodes = self._lengths.decode_steps
        if self.setup.chunked_prefill:
            tpot = period / steps.length
            return period - decodes * tpot, tpot
        ttft: Floats = prefill * depth / groups / steps.prefill
        return ttft, (period - ttft) / max(decodes, 1.0)

    def _alone(self, rates: Rates, first: Any, last: Any) -> tuple[Any, Any]:
        """Seconds of a request that is alone: a layer, and around the layers."""
        lengths = self._lengths
        prompt, decode = self._attention(rates)
        layer = total(prompt) + total(decode)
        fixed: Any = 0.0
        for count, tokens in (
            (lengths.chunks, lengths.prompt / lengths.chunks),
            (lengths.decode_steps, 1.0),
        ):
            layer = layer + count * total(self._operators.linear(rates, tokens))
            fixed = fixed + count * (
                total(self._operators.around(rates, tokens, 1.0, first, last))
                + np.where(last, self.setup.step_overhead + self.setup.sequence_overhead, 0.0)
            )
        return layer, fixed

    def alone(self, kind: StageKind, position: Position, depth: int) -> tuple[float, float]:
        """Seconds that a stage adds to the latency of one request: a layer, and fixed."""
        layer, fixed = self._alone(self._rates([kind]), position.first, position.last)
        return float(np.ravel(layer)[0]), float(np.ravel(fixed)[0])

    def scores(self, kinds: Sequence[StageKind], choice: Ints, layers: Ints) -> Scores:
        """Score pipelines (n, P) at once."""
        depth = choice.shape[1]
        first, last = np.arange(depth) == 0, np.arange(depth) == depth - 1
        limits = self._limits(kinds)[choice, first.astype(int), last.astype(int), layers]
        batch = limits.min(axis=1)
        every = self._rates(kinds)
        rates = every.pick(choice)
        work = _seconds(self._work(rates, first, last, depth, np.maximum(batch, 1)[:, None]))
        layer, fixed = self._alone(rates, first, last)
        return combine(
            self,
            batch,
            work.prefill_layer * layers + work.prefill_fixed,
            np.broadcast_to(work.decode_layer * layers + work.decode_fixed, layers.shape),
            (layer * layers + fixed).sum(axis=1),
        )

    # One pipeline, in full.

    def estimate(self, stages: Stages) -> Estimate:
        """One pipeline with its breakdown by stage and operator."""
        return estimate_pipeline(self, stages)

    def kv_blocks(self, batch: int) -> int:
        """Blocks of KV cache that so many requests take on average."""
        return int(batch * self._held_tokens / KV_BLOCK)

    def stage_estimate(self, stages: Stages, index: int, batch: int) -> StageEstimate:
        """One stage of a pipeline with so many requests in flight."""
        kind, layers = stages[index]
        position = position_of(index, len(stages))
        rates = self._rates([kind]).pick(0)
        work = self._work(rates, position.first, position.last, len(stages), batch)
        busy = [
            merged(scaled(phase.layer, layers), phase.fixed)
            for phase in (work.prefill, work.decode)
        ]
        parts = merged(*busy)
        memory, t, count = self._memory, kind.tensor_parallel, np.array([layers])
        weights = memory.weights(t, position, count)
        room = memory.for_cache(self.catalog[kind.instance].gpu, t, position, count)
        room = room - batch * memory.request_bytes(position)
        return StageEstimate(
            batch_limit=int(self.batch_limit(kind, position)[layers]),
            prefill_seconds=float(total(busy[0])),
            decode_seconds=float(total(busy[1])),
            memory_bytes=float(weights[0]) * t,
            bound=bound_of(parts),
            breakdown={name: float(part.seconds) for name, part in parts.items()},
            kv_room_bytes=max(float(room[0]), 0.0),
            working_bytes=memory.working(t, position, batch),
        )

    def missing_bytes(self, kind: StageKind, position: Position, layers: int) -> float:
        """What a stage that holds no request lacks, over all its GPUs."""
        t, count = kind.tensor_parallel, np.array([layers])
        gpu = self.catalog[kind.instance].gpu
        free = self._memory.for_cache(gpu, t, position, count)[0]
        need = self._memory.token_bytes(t, count)[0] * self.workload.max_length
        need += self._memory.request_bytes(position)
        return float((need - free) * t)

    # One step, one layer.

    def step_seconds(
        self, kind: StageKind, position: Position, layers: int, step: EngineStep
    ) -> float:
        """Seconds that a stage is busy with one step."""
        rates = self._rates([kind]).pick(0)
        tokens = step.prompt_tokens + step.decodes
        rows = step.prompts_ended + step.decodes
        one = self._step(rates, tokens, rows, position.first, position.last)
        prompt = self._operators.prefill_attention(rates, step.prompt_pairs, step.prompt_context)
        decode = self._operators.decode_attention(rates, step.decode_context)
        layer = total(one.layer) + prompt.seconds + decode.seconds
        return float(layer * layers + total(one.fixed))

    def prefill_layer(self, kind: StageKind, tokens: int) -> LayerTime:
        """One layer over a prompt of `tokens`, in one go."""
        rates = self._rates([kind]).pick(0)
        pairs = tokens * (tokens + 1) / 2
        attention = self._operators.prefill_attention(rates, pairs, tokens)
        parts = {**self._operators.linear(rates, tokens), "prefill attention": attention}
        return _layer_time(parts)

    def decode_layer(self, kind: StageKind, batch: int, context: int) -> LayerTime:
        """One layer of a decode step for `batch` requests with `context` cached tokens each."""
        rates = self._rates([kind]).pick(0)
        attention = self._operators.decode_attention(rates, batch * (context + 1))
        parts = {**self._operators.linear(rates, batch), "decode attention": attention}
        return _layer_time(parts)


def _repeated(step: Phase, count: Any, attention: Parts) -> Phase:
    return Phase({**scaled(step.layer, count), **attention}, scaled(step.fixed, count))


def _bubble(steps: Any, seconds: Any) -> Parts:
    """Waiting in so many steps for one that takes so much longer."""
    return {"bubble": waiting(steps * np.maximum(seconds, 0.0))}


def _joined(first: Phase, second: Phase) -> Phase:
    return Phase(merged(first.layer, second.layer), merged(first.fixed, second.fixed))


def _seconds(work: Work) -> StageWork:
    return StageWork(*(total(parts) for phase in work for parts in phase))


def _layer_time(parts: Parts) -> LayerTime:
    seconds = {name: float(part.seconds) for name, part in parts.items()}
    return LayerTime(sum(seconds.values()), bound_of(parts), seconds)
