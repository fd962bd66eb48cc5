"""What nodes import once for all ranks; see `shuntserve_core.interfaces.engine.Template`."""

from __future__ import annotations

from shuntserve_plugins.engines.vllm.symbols import refuse_installed

refuse_installed()  # what an unknown version fails with when it is imported says less

from vllm.model_executor.models import llama, qwen2, qwen3  # noqa: E402

from shuntserve_plugins.engines.vllm import driver, stage_worker  # noqa: E402
from shuntserve_plugins.engines.vllm.worker import main  # noqa: E402

__all__ = ["driver", "llama", "main", "qwen2", "qwen3", "stage_worker"]
