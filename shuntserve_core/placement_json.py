"""The one JSON form of a placement: written by `plan`, read by whatever carries it out.

Reading gives back an equal `Placement`.  Keys that follow from others (`cost_per_million_tokens`,
`first_layer`...) are there for people and programs that only look; they are not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from attrs.validators import ge

from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.structure import make_converter
from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json
from shuntserve_core.types import (
    Estimate,
    Pipeline,
    Placement,
    Stage,
    StageEstimate,
    Workload,
)

FORMAT = "shuntserve placement 1"
"""Names the format and its version; the first thing in the file."""

_DERIVED = ("throughput_rps", "kv_blocks", "cost_per_million_tokens")


def cost_per_million_tokens(placement: Placement, workload: Workload) -> float | None:
    """$ for a million tokens, prompt and answer together; None where nothing is served."""
    tokens_per_hour = (
        placement.throughput_rps * 3600 * (workload.input_tokens + workload.output_tokens)
    )
    return placement.cost_per_hour / tokens_per_hour * 1e6 if tokens_per_hour else None


def placement_to_json(placement: Placement, workload: Workload) -> dict[str, Any]:
    """A placement as JSON; infinite seconds are null."""
    cost = cost_per_million_tokens(placement, workload)
    return {
        "format": FORMAT,
        "model": placement.model,
        "estimator": placement.estimator,
        "optimizer": placement.optimizer,
        "throughput_rps": float(placement.throughput_rps),
        "kv_blocks": int(placement.kv_blocks),
        "cost_per_hour": float(placement.cost_per_hour),
        "cost_per_million_tokens": None if cost is None else float(cost),
        "optimal": bool(placement.optimal),
        "bound_rps": _finite(placement.bound_rps),
        "seconds": float(placement.seconds),
        "pipelines": [pipeline_to_json(pipeline) for pipeline in placement.pipelines],
        "unused": {name: int(count) for name, count in placement.unused.items()},
    }


def pipeline_to_json(pipeline: Pipeline) -> dict[str, Any]:
    """One pipeline with its estimate, stage by stage."""
    estimate = pipeline.estimate
    predicted = estimate.stages or (None,) * len(pipeline.stages)
    return {
        "throughput_rps": float(estimate.throughput_rps),
        "batch": int(estimate.batch),
        "kv_blocks": int(estimate.kv_blocks),
        "ttft": _finite(estimate.ttft),
        "tpot": _finite(estimate.tpot),
        "latency": _finite(estimate.latency),
        "reason": estimate.reason,
        "stages": [
            {
                "instance": stage.instance,
                "tensor_parallel": int(stage.tensor_parallel),
                "layers": int(stage.layers),
                "first_layer": layers.start,
                "node": stage.node,
                "gpus": list(stage.gpus),
                "estimate": None if part is None else _stage_estimate_to_json(part),
            }
            for stage, layers, part in zip(
                pipeline.stages, pipeline.layer_ranges, predicted, strict=True
            )
        ],
    }


def _stage_estimate_to_json(part: StageEstimate) -> dict[str, Any]:
    return {
        "bound": part.bound,
        "batch_limit": int(part.batch_limit),
        "prefill_seconds": _finite(part.prefill_seconds),
        "decode_seconds": _finite(part.decode_seconds),
        "memory_bytes": float(part.memory_bytes),
        "kv_room_bytes": float(part.kv_room_bytes),
        "working_bytes": float(part.working_bytes),
        "breakdown": {name: _finite(seconds) for name, seconds in part.breakdown.items()},
    }


def read_placement(file: Path | str) -> Placement:
    """Read what `plan --out` or `plan --json` wrote.  Raises `UserError`."""
    file = Path(file)
    remedy = "write it with: shuntserve plan CONFIG --out FILE"
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise UserError(f"cannot read it: {reason}", where=str(file), remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=str(file), remedy=remedy) from error
    return placement_from_json(data, str(file))


def placement_from_json(data: object, name: str = "placement") -> Placement:
    """The placement of its JSON form; `name` is what errors call it.  Raises `UserError`."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise UserError(
            f"not a placement: its format is not {FORMAT!r}",
            where=name,
            remedy="write it with: shuntserve plan CONFIG --out FILE",
        )
    facts = {key: value for key, value in data.items() if key not in _DERIVED}
    mistakes = Mistakes(name)
    read = None
    try:
        read = make_converter(lambda *_: None).structure(facts, _PlacementEntry)
    except Exception as error:  # cattrs' own groups
        mistakes.add_structure_error(error, "")
    mistakes.raise_if_any()
    assert read is not None
    return read.placement()


def pipeline_from_json(data: object, name: str = "pipeline") -> Pipeline:
    """One pipeline of its JSON form; `name` is what errors call it.  Raises `UserError`."""
    mistakes = Mistakes(name)
    read = None
    try:
        read = make_converter(lambda *_: None).structure(data, _PipelineEntry)
    except Exception as error:  # cattrs' own groups
        mistakes.add_structure_error(error, "")
    mistakes.raise_if_any()
    assert read is not None
    return read.pipeline()


@frozen
class _StageEstimateEntry:
    bound: str
    batch_limit: int
    prefill_seconds: float | None
    decode_seconds: float | None
    memory_bytes: float
    breakdown: Mapping[str, float | None]
    kv_room_bytes: float = 0.0
    working_bytes: float = 0.0

    def estimate(self) -> StageEstimate:
        return StageEstimate(
            batch_limit=self.batch_limit,
            prefill_seconds=_seconds(self.prefill_seconds),
            decode_seconds=_seconds(self.decode_seconds),
            memory_bytes=self.memory_bytes,
            bound=self.bound,
            breakdown={name: _seconds(value) for name, value in self.breakdown.items()},
            kv_room_bytes=self.kv_room_bytes,
            working_bytes=self.working_bytes,
        )


@frozen
class _StageEntry:
    instance: str
    tensor_parallel: int = field(validator=ge(1))
    layers: int = field(validator=ge(1))
    node: str = ""
    gpus: tuple[int, ...] = ()
    first_layer: int | None = None
    estimate: _StageEstimateEntry | None = None


@frozen
class _PipelineEntry:
    throughput_rps: float
    batch: int
    kv_blocks: int
    stages: tuple[_StageEntry, ...]
    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None
    reason: str = ""

    def pipeline(self) -> Pipeline:
        stages = tuple(
            Stage(entry.instance, entry.tensor_parallel, entry.layers, entry.node, entry.gpus)
            for entry in self.stages
        )
        estimate = Estimate(
            throughput_rps=self.throughput_rps,
            batch=self.batch,
            kv_blocks=self.kv_blocks,
            ttft=_seconds(self.ttft),
            tpot=_seconds(self.tpot),
            latency=_seconds(self.latency),
            stages=tuple(entry.estimate.estimate() for entry in self.stages if entry.estimate),
            reason=self.reason,
        )
        return Pipeline(stages, estimate)


@frozen
class _PlacementEntry:
    format: str
    pipelines: tuple[_PipelineEntry, ...]
    unused: Mapping[str, int]
    cost_per_hour: float
    optimizer: str = ""
    estimator: str = ""
    model: str = ""
    optimal: bool = False
    bound_rps: float | None = None
    seconds: float = 0.0

    def placement(self) -> Placement:
        return Placement(
            pipelines=tuple(entry.pipeline() for entry in self.pipelines),
            unused=dict(self.unused),
            cost_per_hour=self.cost_per_hour,
            optimizer=self.optimizer,
            estimator=self.estimator,
            model=self.model,
            optimal=self.optimal,
            bound_rps=self.bound_rps,
            seconds=self.seconds,
        )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _seconds(value: float | None) -> float:
    return math.inf if value is None else value
