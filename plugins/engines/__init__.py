"""What runs a pipeline, bundled."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl


@hookimpl
def shuntserve_register_engines() -> Iterable[Provider]:
    """Engines for any machine."""
    here = "shuntserve_plugins.engines"
    yield Provider(
        "simulated", f"{here}.simulated:Simulated", "The estimate's timing and made-up tokens"
    )
    yield Provider(
        "embedded", f"{here}.embedded.engine:Embedded", "Small PyTorch engine for the CPU"
    )
    yield Provider("vllm", f"{here}.vllm.engine:Vllm", "vLLM on GPUs, with a degree for each stage")


@hookimpl
def shuntserve_register_checks() -> Iterable[Provider]:
    """Whether engines would run."""
    here = "shuntserve_plugins.engines"
    yield Provider("gpu", f"{here}.vllm.doctor:Gpus", "Driver, CUDA, memory of each GPU")
    yield Provider("vllm", f"{here}.vllm.doctor:VllmInstalled", "vLLM's version and its insides")
