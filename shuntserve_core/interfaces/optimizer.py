"""What chooses the pipelines."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

from shuntserve_core.interfaces.estimator import BoundEstimator
from shuntserve_core.types import Cluster, Objective, Placement


@frozen
class Problem:
    """Everything that an optimizer may look at."""

    cluster: Cluster
    objective: Objective
    estimator: BoundEstimator
    estimator_name: str = ""
    whole_instances: bool = False
    """Forbid stages on part of an instance."""
    time_limit: float = 60.0
    """Seconds after which the best placement found so far is due."""
    seed: int = 0
    """For optimizers that draw random numbers."""


class Optimizer(Protocol):
    """A search; its attrs fields are the options of the `[optimizer]` table."""

    def place(self, problem: Problem) -> Placement:
        """Choose pipelines.

        Raises `UserError` where the model fits nowhere, saying by how much.
        """
        ...
