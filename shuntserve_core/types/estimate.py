"""What an estimator predicts of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen


@frozen
class StageEstimate:
    """One stage's share of a pipeline's estimate."""

    batch_limit: int
    """Requests whose KV cache fits."""
    prefill_seconds: float
    """Time that the stage is busy with the prefill of one full pipeline batch."""
    decode_seconds: float
    """Time that the stage is busy with all decode steps of one full pipeline batch."""
    memory_bytes: float
    """Bytes taken by weights on all GPUs of the stage."""
    bound: str
    """The term that limits the stage: `compute`, `memory bandwidth`, `communication`,
    `overhead`."""
    breakdown: Mapping[str, float] = field(factory=dict)
    """Seconds by operator, prefill and decode together."""
    kv_room_bytes: float = 0.0
    """Bytes on each GPU that the plan leaves for keys and values, beside this stage's weights and
    what engines need for themselves; 0 where the estimator does not say."""
    working_bytes: float = 0.0
    """Bytes on each GPU that the plan leaves for what one engine takes while it computes, beside
    weights, keys and values; 0 where the estimator does not say."""


@frozen
class Estimate:
    """A pipeline's predicted behaviour under a workload."""

    throughput_rps: float
    """Requests finished per second, in steady state with a full batch."""
    batch: int
    """Requests in flight: the least of the stages' limits."""
    kv_blocks: int
    """KV-cache blocks of 16 tokens that the batch needs."""
    ttft: float
    """Seconds from admission to the first token, at the steady batch."""
    tpot: float
    """Seconds for each further token, at the steady batch."""
    latency: float
    """Seconds for one request that is alone in the pipeline."""
    stages: tuple[StageEstimate, ...]
    reason: str = ""
    """Why the throughput is 0, if it is."""

    @property
    def feasible(self) -> bool:
        """Whether the model and at least one request fit."""
        return self.batch > 0
