"""The states of nodes and pipelines; `shuntserve_core.runtime.states` has the ways between them."""

from __future__ import annotations

from enum import StrEnum


class NodeState(StrEnum):
    """Of a node."""

    JOINING = "joining"
    UP = "up"
    NOTICED = "noticed"
    LOST = "lost"


class PipelineState(StrEnum):
    """Of an engine."""

    LOADING = "loading"
    STARTING = "starting"
    STANDBY = "standby"
    ACTIVATING = "activating"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"


_P = PipelineState
LIVE = frozenset(_P) - {_P.FAILED, _P.STOPPED}
"""States in which an engine has processes that are wanted."""
PREPARING = frozenset({_P.LOADING, _P.STARTING})
"""States on the way to standing by."""
COMING = PREPARING | {_P.STANDBY, _P.ACTIVATING}
"""States on the way to serving."""
