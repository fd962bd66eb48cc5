"""`[estimator]` and `[optimizer]`: what predicts and what chooses, with their options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from attrs import field, frozen
from attrs.validators import ge, gt, le

from shuntserve_core.config.fields import Name


@frozen
class EstimatorTable:
    """What predicts throughput and latency."""

    name: Annotated[str, Name("estimator")] = "roofline"
    """Which one, of those that `shuntserve plugins` shows."""
    options: Mapping[str, Any] = field(factory=dict)
    """Every other key is an option of that estimator."""


@frozen
class OptimizerTable:
    """What chooses the pipelines."""

    name: Annotated[str, Name("optimizer")] = "exact"
    """Which one, of those that `shuntserve plugins` shows."""
    whole_instances: bool = False
    """Forbid stages on part of an instance's GPUs."""
    time_limit: float = field(default=60.0, validator=[gt(0.0), le(1e6)])
    """Seconds after which the best placement found so far is taken."""
    seed: int = field(default=0, validator=[ge(0), le(2**32 - 1)])
    """For optimizers that draw random numbers."""
    options: Mapping[str, Any] = field(factory=dict)
    """Every other key is an option of that optimizer."""
