"""The template of vLLM's ranks, in which they are watched from before anything of vLLM is there."""

from __future__ import annotations

from tests.plugins.engines.vllm.watching import watch

watch()

from shuntserve_plugins.engines.vllm.template import main  # noqa: E402

__all__ = ["main"]
