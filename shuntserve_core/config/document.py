"""The whole file: one field a table.

To add a table, write its attrs class in a file of its own in this folder, every field with a
docstring, and add a field here.  Messages, the JSON schema and the reference follow by themselves.
"""

from __future__ import annotations

from attrs import field, frozen

from shuntserve_core.config.hardware import ClusterTable, GpuTable, InstanceTypeTable
from shuntserve_core.config.model import ModelTable
from shuntserve_core.config.plugins import PluginsTable
from shuntserve_core.config.search import EstimatorTable, OptimizerTable
from shuntserve_core.config.serving import (
    BalancerTable,
    EngineTable,
    FrontDoorTable,
    LauncherTable,
    ServeTable,
    SpotTable,
    WeightsTable,
)
from shuntserve_core.config.workload import WorkloadTable
from shuntserve_core.types import Objective


@frozen
class Document:
    """A configuration file."""

    model: ModelTable
    """Which model is served."""
    workload: WorkloadTable
    """The requests that are expected."""
    cluster: tuple[ClusterTable, ...]
    """What may be used: one table for each instance type."""
    objective: Objective = field(factory=Objective)
    """What is wanted of a placement."""
    estimator: EstimatorTable = field(factory=EstimatorTable)
    """What predicts throughput and latency."""
    optimizer: OptimizerTable = field(factory=OptimizerTable)
    """What chooses the pipelines."""
    gpu: tuple[GpuTable, ...] = ()
    """GPUs that no plugin provides."""
    instance_type: tuple[InstanceTypeTable, ...] = ()
    """Instance types that no plugin provides."""
    serve: ServeTable = field(factory=ServeTable)
    """How the cluster is run, and how it answers interruptions."""
    weights: WeightsTable | None = None
    """Where the pre-cut weights are."""
    engine: EngineTable = field(factory=EngineTable)
    """What runs the pipelines."""
    frontdoor: FrontDoorTable = field(factory=FrontDoorTable)
    """What clients talk to."""
    balancer: BalancerTable = field(factory=BalancerTable)
    """What chooses the pipeline for a request."""
    launcher: LauncherTable = field(factory=LauncherTable)
    """How node agents come to be."""
    spot: tuple[SpotTable, ...] = ()
    """Where interruptions are heard of."""
    plugins: PluginsTable = field(factory=PluginsTable)
    """Which plugins to leave out, and which must work."""
