"""The values that everything else speaks in.  All are frozen; every field's unit is documented."""

from shuntserve_core.types.cluster import Cluster, Offer
from shuntserve_core.types.dtypes import DTYPE_BYTES, dtype_bytes
from shuntserve_core.types.engine import EngineFacts
from shuntserve_core.types.estimate import Estimate, StageEstimate
from shuntserve_core.types.hardware import Efficiency, GpuSpec, InstanceType, Link
from shuntserve_core.types.model import ModelSpec
from shuntserve_core.types.placement import Pipeline, Placement, Stage, StageKind
from shuntserve_core.types.workload import Objective, Slo, Workload

__all__ = [
    "DTYPE_BYTES",
    "Cluster",
    "Efficiency",
    "EngineFacts",
    "Estimate",
    "GpuSpec",
    "InstanceType",
    "Link",
    "ModelSpec",
    "Objective",
    "Offer",
    "Pipeline",
    "Placement",
    "Slo",
    "Stage",
    "StageEstimate",
    "StageKind",
    "Workload",
    "dtype_bytes",
]
