"""What nodes import once for all ranks; see `shuntserve_core.interfaces.engine.Template`."""

from __future__ import annotations

from shuntserve_plugins.engines.embedded import process
from shuntserve_plugins.engines.embedded.worker import main

__all__ = ["main", "process"]
