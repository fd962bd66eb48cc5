"""The published model of arXiv 2606.18600, with its slips: a baseline to reproduce and to beat.

The names are those of its formulas: H hidden, Hq and Hkv elements of all query and key heads,
ffn MLP width (I in the paper), V vocabulary, s and o prompt and answer tokens, t tensor-parallel
degree, B requests.
`//` stands where the published formulas round down.  docs/explanation/paper-model.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from attrs import define, field, frozen
from attrs.validators import gt, le

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.estimator import Floats, Ints, Position, Scores, StageWork
from shuntserve_core.types import (
    Estimate,
    InstanceType,
    ModelSpec,
    StageEstimate,
    StageKind,
    Workload,
    dtype_bytes,
)
from shuntserve_plugins.estimators.base import Stages, combine, estimate_pipeline, position_of

KV_BLOCK = 16
"""Tokens of one block of the KV cache."""


@frozen
class Paper:
    """The published model; see docs/explanation/paper-model.md."""

    memory_fraction: float = field(default=0.85, validator=[gt(0), le(1)])
    """Share of a GPU's memory that weights, activations and KV cache may take."""

    def bind(
        self, model: ModelSpec, workload: Workload, catalog: Mapping[str, InstanceType]
    ) -> PaperModel:
        """Fix model, workload and instance types.

        Raises `UserError` for a quantised model: the published formulas know one element size.
        """
        width = dtype_bytes(model.dtype)
        if {dtype_bytes(model.weight_dtype), dtype_bytes(model.kv_dtype)} != {width}:
            raise UserError(
                "the paper estimator knows one element size for weights, KV cache and activations",
                where="model",
                remedy='use the estimator "roofline" for a quantised model',
            )
        return PaperModel(model, workload, catalog, self.memory_fraction)


class Hardware(NamedTuple):
    """What the formulas need of a stage: scalars, or arrays that are broadcast."""

    t: Any
    flops: Any
    bandwidth: Any
    link: Any
    network: Any
    network_latency: Any


class Term(NamedTuple):
    """One operator: FLOPs and elements moved, a GPU."""

    flops: Any
    elements: Any


@define(frozen=True, slots=False)
class PaperModel:
    """`Paper` for one model, workload and set of instance types: a `BoundEstimator`."""

    model: ModelSpec
    workload: Workload
    catalog: Mapping[str, InstanceType]
    memory_fraction: float = 0.85

    @cached_property
    def _width(self) -> float:
        return dtype_bytes(self.model.dtype)

    @cached_property
    def _micro_batch(self) -> int:
        """Requests whose prompts fill one prefill micro-batch."""
        return max(1, self.workload.max_length // self.workload.input_tokens)

    def _hardware(self, kinds: Sequence[StageKind]) -> Hardware:
        """One array entry a kind."""
        types = [self.catalog[kind.instance] for kind in kinds]
        return Hardware(
            np.array([kind.tensor_parallel for kind in kinds]),
            np.array([i.gpu.flops_for(self.model.dtype) for i in types]),
            np.array([i.gpu.memory_bandwidth for i in types]),
            np.array([i.link.bandwidth for i in types]),
            np.array([i.network.bandwidth for i in types]),
            np.array([i.network.latency for i in types]),
        )

    # Operators of one layer, for a batch of B requests.

    def _prefill_terms(self, t: Any, B: Any) -> dict[str, Term]:
        H, Hq, Hkv, ffn = _sizes(self.model)
        s = self.workload.input_tokens
        return {
            "qkv": Term(
                (2 * s * H * Hq + 4 * s * H * Hkv) // t * 1.0 * B,
                B * s * H + (H * Hq + 2 * H * Hkv) // t,
            ),
            "attention": Term(
                2 * (2 * s * s * Hq + s * Hq * Hq) // t * 1.0 * B,
                (B * s * H + 2 * s * Hkv + Hq * Hq) // t,
            ),
            "ffn": Term(
                6 * s * H * ffn // t * 1.0 * B,
                B * s * H
                + 2 * H * ffn // t
                + 2 * B * s * ffn // t
                + B * s * ffn // t
                + ffn * H // t,
            ),
        }

    def _decode_terms(self, t: Any, B: Any) -> dict[str, Term]:
        """All answer tokens of a request together."""
        H, Hq, Hkv, ffn = _sizes(self.model)
        s, o = self.workload.input_tokens, self.workload.output_tokens
        return {
            "qkv": Term(
                2 * (H * Hq + 2 * H * Hkv) // t * 1.0 * B * o,
                (B * H + (H * Hq + 2 * H * Hkv) // t) * o,
            ),
            "attention": Term(
                (4 * s * o * Hq + 2 * Hq * o * (o + 1) + 2 * Hq * Hq * o) // t * 1.0 * B,
                (B * H * o + 2 * B * s * Hkv * o + B * Hkv * o * (o + 1) + Hq * Hq * o) // t,
            ),
            "ffn": Term(
                6 * H * ffn // t * 1.0 * B * o,
                (B * H + 2 * H * ffn // t + 2 * B * ffn // t + B * ffn // t + ffn * H // t) * o,
            ),
        }

    def _logits_term(self, t: Any, B: Any, n: int) -> Term:
        H, V = self.model.hidden, self.model.vocab
        return Term(2 * B * n * H * V // t * 1.0, n * (B * H + V * H / t))

    # Messages, for a batch of B requests.

    def _all_reduce(self, hw: Hardware, B: Any, n: int) -> Any:
        """Seconds a layer."""
        return 4 * (hw.t - 1) * B * n * self.model.hidden * self._width / (hw.t * hw.link)

    def _all_gather(self, hw: Hardware, B: Any, n: int) -> Any:
        """Seconds for the logits.  The published model charges the whole prompt in prefill."""
        return 2 * (hw.t - 1) * B * n * self.model.vocab * self._width / (hw.t * hw.link)

    def _hand_off(self, hw: Hardware, B: Any, n: int) -> Any:
        return B * n * self.model.hidden * self._width / hw.network + hw.network_latency

    def _broadcast(self, hw: Hardware, n: int) -> Any:
        """Seconds until all GPUs of a stage have what one of them received, B = 1."""
        return (hw.t - 1) * n * self.model.hidden * self._width / hw.link

    # One micro-batch of B requests on a stage, by operator: seconds a layer, and on top of them.

    def _seconds(self, hw: Hardware, term: Term) -> Any:
        return np.maximum(term.flops / hw.flops, term.elements * self._width / hw.bandwidth)

    def _prefill(self, hw: Hardware, last: Any, B: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        s = self.workload.input_tokens
        layer = {k: self._seconds(hw, v) for k, v in self._prefill_terms(hw.t, B).items()}
        layer["all-reduce"] = self._all_reduce(hw, B, s)
        fixed = {
            "logits": np.where(last, self._seconds(hw, self._logits_term(hw.t, B, 1)), 0.0),
            "all-gather": np.where(last, self._all_gather(hw, B, s), 0.0),
            "hand-off": np.where(last, 0.0, self._hand_off(hw, B, s)),
        }
        return layer, fixed

    def _decode(self, hw: Hardware, last: Any, B: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        o = self.workload.output_tokens
        layer = {k: self._seconds(hw, v) for k, v in self._decode_terms(hw.t, B).items()}
        layer["all-reduce"] = self._all_reduce(hw, B, 1) * o
        fixed = {
            "logits": np.where(last, self._seconds(hw, self._logits_term(hw.t, B, o)), 0.0),
            "all-gather": np.where(last, self._all_gather(hw, B, 1) * o, 0.0),
            "hand-off": np.where(last, 0.0, self._hand_off(hw, B, 1) * o),
        }
        return layer, fixed

    # A pipeline batch G is cut into micro-batches: (how many, of what size).

    def _prefill_cut(self, depth: int, G: Any) -> list[tuple[Any, Any]]:
        m = self._micro_batch
        rounds = G // (m * depth)
        rest = G - rounds * m * depth
        return [(rounds * depth, m + 0 * G), *_even_cut(depth, rest)]

    def _work(self, hw: Hardware, last: Any, depth: int, batch: Any) -> StageWork:
        """Busy seconds of a stage; everything is broadcast."""
        sums: list[Any] = []
        for phase, cut in (
            (self._prefill, self._prefill_cut(depth, batch)),
            (self._decode, _even_cut(depth, batch)),
        ):
            sizes = np.stack([size for _, size in cut])
            counts = np.where(sizes > 0, np.stack([count for count, _ in cut]), 0)
            of_layer, on_top = phase(hw, last, sizes)
            sums += [(counts * sum(part.values())).sum(axis=0) for part in (of_layer, on_top)]
        return StageWork(*sums)

    def _available(self, kind: StageKind, position: Position) -> Floats:
        """Bytes for the KV cache, by number of layers (0 to all)."""
        model, instance = self.model, self.catalog[kind.instance]
        layers = np.arange(model.layers + 1)
        tables = int(position.first) + int(position.last)
        weights = (layers * model.layer_parameters + tables * model.vocab * model.hidden) * 1.0
        activations = 2 * self.workload.max_length * model.intermediate
        memory = instance.gpu.memory_bytes * kind.tensor_parallel * self.memory_fraction
        return np.asarray(memory - (weights + activations) * self._width, dtype=np.float64)

    def batch_limit(self, kind: StageKind, position: Position) -> Ints:
        """Requests whose KV cache fits, by number of layers."""
        model, workload = self.model, self.workload
        if model.refuse_tensor_parallel(kind.tensor_parallel):
            return np.zeros(model.layers + 1, dtype=np.int64)
        available = self._available(kind, position)
        token = 2 * model.kv_size * self._width * np.maximum(np.arange(model.layers + 1), 1)
        requests = available // (token * (workload.input_tokens + workload.output_tokens))
        limit = np.where(available > token * workload.max_length, requests, 0).astype(np.int64)
        limit[0] = limit[1]
        return limit

    def stage_work(self, kind: StageKind, position: Position, depth: int, batch: Ints) -> StageWork:
        """Busy seconds for each pipeline batch in `batch`."""
        hw = Hardware(*(figures[0] for figures in self._hardware([kind])))
        work = self._work(hw, position.last, depth, np.asarray(batch))
        return StageWork(*(np.broadcast_to(part, np.shape(batch)) for part in work))

    def _in_flight(self, batch: Ints, depth: int) -> Ints:
        """Micro-batches that are under way at the same time."""
        return np.minimum(batch, depth)

    def _turns(self, batch: Ints, depth: int, A: Floats, D: Floats) -> tuple[Floats, Floats]:
        """Seconds of one prefill micro-batch and of one decode step on the slowest stage."""
        K = self._in_flight(batch, depth)
        prefill: Floats = A / np.maximum(batch // self._micro_batch, K)
        return prefill, D / (K * self.workload.output_tokens)

    def period(self, batch: Ints, depth: int, prefill: Floats, decode: Floats) -> Floats:
        """Seconds for one pipeline batch, with the time to fill the pipeline."""
        K = self._in_flight(batch, depth)
        fill = (K - 1) * np.maximum(*self._turns(batch, depth, prefill, decode))
        seconds: Floats = (prefill + decode) * (depth // K) + fill
        return seconds

    def latencies(
        self, batch: Ints, depth: int, prefill: Floats, decode: Floats
    ) -> tuple[Floats, Floats]:
        """TTFT and TPOT: a micro-batch goes through `depth` stages, each as slow as the slowest."""
        ttft, tpot = self._turns(batch, depth, prefill, decode)
        return depth * ttft, depth * tpot

    def _alone(self, hw: Hardware, first: Any, last: Any) -> tuple[Any, Any]:
        """Seconds of a request that is alone: a layer, and on top."""
        one = np.int64(1)
        layer: Any = 0.0
        fixed: Any = 0.0
        for of_layer, on_top in (self._prefill(hw, last, one), self._decode(hw, last, one)):
            layer = layer + sum(of_layer.values())
            fixed = fixed + sum(on_top.values())
        tokens = self.workload.input_tokens + self.workload.output_tokens
        return layer, fixed + np.where(first, 0.0, self._broadcast(hw, tokens))

    def alone(self, kind: StageKind, position: Position, depth: int) -> tuple[float, float]:
        """Seconds that a stage adds to the latency of one request: a layer, and fixed."""
        layer, fixed = self._alone(self._hardware([kind]), position.first, position.last)
        return float(layer[0]), float(fixed[0])

    @cached_property
    def _known_limits(self) -> dict[StageKind, Ints]:
        return {}

    def _limits(self, kinds: Sequence[StageKind]) -> Ints:
        """`batch_limit` of every kind: shape (kinds, first, last, layers + 1)."""
        for kind in set(kinds) - set(self._known_limits):
            self._known_limits[kind] = np.array(
                [
                    [self.batch_limit(kind, Position(first, last)) for last in (False, True)]
                    for first in (False, True)
                ]
            )
        return np.array([self._known_limits[kind] for kind in kinds])

    def scores(self, kinds: Sequence[StageKind], choice: Ints, layers: Ints) -> Scores:
        """Score pipelines (n, P) at once."""
        depth = choice.shape[1]
        first = np.arange(depth) == 0
        last = np.arange(depth) == depth - 1
        limits = self._limits(kinds)[choice, first.astype(int), last.astype(int), layers]
        batch = limits.min(axis=1)
        hw = Hardware(*(figures[choice] for figures in self._hardware(kinds)))
        work = self._work(hw, last, depth, np.maximum(batch, 1)[:, None])
        layer, fixed = self._alone(hw, first, last)
        return combine(
            self,
            batch,
            work.prefill_layer * layers + work.prefill_fixed,
            work.decode_layer * layers + work.decode_fixed,
            (layer * layers + fixed).sum(axis=1),
        )

    def estimate(self, stages: Stages) -> Estimate:
        """One pipeline with its breakdown by stage and operator."""
        return estimate_pipeline(self, stages)

    def kv_blocks(self, batch: int) -> int:
        """Blocks of KV cache that so many requests take."""
        tokens = self.workload.input_tokens + self.workload.output_tokens
        return batch * tokens // KV_BLOCK

    def stage_estimate(self, stages: Stages, index: int, batch: int) -> StageEstimate:
        """One stage of a pipeline with so many requests in flight."""
        kind, layers = stages[index]
        position = position_of(index, len(stages))
        seconds, limits = self._breakdown(kind, position, len(stages), layers, batch)
        work = self.stage_work(kind, position, len(stages), np.array([batch]))
        tables = int(position.first) + int(position.last)
        model = self.model
        weights = layers * model.layer_parameters + tables * model.vocab * model.hidden
        return StageEstimate(
            batch_limit=int(self.batch_limit(kind, position)[layers]),
            prefill_seconds=float(work.prefill_layer[0] * layers + work.prefill_fixed[0]),
            decode_seconds=float(work.decode_layer[0] * layers + work.decode_fixed[0]),
            memory_bytes=weights * self._width,
            bound=max(limits, key=lambda name: limits[name]),
            breakdown=seconds,
        )

    def _breakdown(
        self, kind: StageKind, position: Position, depth: int, layers: int, batch: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds by operator, and by what limits the operators."""
        hw = Hardware(*(figures[0] for figures in self._hardware([kind])))
        o, last = self.workload.output_tokens, position.last
        seconds: dict[str, float] = {}
        limits = {"compute": 0.0, "memory bandwidth": 0.0, "communication": 0.0}
        for phase, terms_of, cut, n in (
            (self._prefill, self._prefill_terms, self._prefill_cut(depth, batch), 1),
            (self._decode, self._decode_terms, _even_cut(depth, batch), o),
        ):
            for count, size in cut:
                if not count or not size:
                    continue
                layer, fixed = phase(hw, last, size)
                terms = {**terms_of(hw.t, size), "logits": self._logits_term(hw.t, size, n)}
                for name, each in (*layer.items(), *fixed.items()):
                    spent = float(count * each * (layers if name in layer else 1))
                    seconds[name] = seconds.get(name, 0.0) + spent
                    limits[_limit(hw, terms.get(name), self._width)] += spent
        return seconds, limits

    def missing_bytes(self, kind: StageKind, position: Position, layers: int) -> float:
        """What a stage that holds no request lacks, over all its GPUs."""
        need = 2 * self.model.kv_size * self._width * layers * self.workload.max_length
        return float(need - self._available(kind, position)[layers])


def _sizes(model: ModelSpec) -> tuple[int, int, int, int]:
    return model.hidden, model.q_size, model.kv_size, model.intermediate


def _even_cut(depth: int, G: Any) -> list[tuple[Any, Any]]:
    """Cut G requests into `depth` micro-batches that differ by one at most."""
    return [(depth - G % depth, G // depth), (G % depth, G // depth + 1)]


def _limit(hw: Hardware, term: Term | None, width: float) -> str:
    """What limits an operator; one without FLOPs is a message."""
    if term is None:
        return "communication"
    computing = term.flops / hw.flops >= term.elements * width / hw.bandwidth
    return "compute" if computing else "memory bandwidth"
