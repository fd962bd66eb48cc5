"""What nodes import once for all ranks; see `shuntserve_core.interfaces.engine.Template`."""

from __future__ import annotations

from vllm.model_executor.models import llama, qwen2, qwen3

from shuntserve_plugins.engines.vllm import driver, stage_worker
from shuntserve_plugins.engines.vllm.worker import main

__all__ = ["driver", "llama", "main", "qwen2", "qwen3", "stage_worker"]
