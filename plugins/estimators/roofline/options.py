"""The options of the `roofline` estimator: how the engine that will run the model is set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen
from attrs.validators import ge, gt, le, optional

from shuntserve_core.errors import UserError
from shuntserve_core.types import EngineFacts, InstanceType, ModelSpec, Workload
from shuntserve_plugins.estimators.roofline.memory import Runtime
from shuntserve_plugins.estimators.roofline.model import EngineSetup, RooflineModel

STEP_TOKENS = 2048
SEQUENCES = 256
"""What is assumed of an engine that does not say: vLLM's defaults."""


@frozen
class Roofline:
    """A roofline of every operator, over the steps that a continuously batching engine makes."""

    chunked_prefill: bool | None = None
    """Whether steps mix decodes with chunks of prompts (vLLM's default since V1).  Without it,
    whole prompts are computed in steps of their own.  By default what the engine says, or true."""
    max_num_batched_tokens: int | None = field(default=None, validator=optional(ge(1)))
    """Most tokens of a step.  By default what the engine's options say, or 2,048: vLLM's default
    for a server on GPUs under 70 GiB."""
    max_num_seqs: int | None = field(default=None, validator=optional(ge(1)))
    """Most requests in flight in a pipeline, where `serve.max_batch` and the engine do not say
    less.  By default what they say, or 256: vLLM's default on the same."""
    gpu_memory_utilization: float = field(default=0.9, validator=[gt(0), le(1)])
    """Share of a GPU's memory that the engine may take: vLLM's option and default."""
    engines_per_gpu: int = field(default=2, validator=ge(1))
    """Engines that must fit on a GPU at the same time: one that serves, and its successor that
    stands by.  1 for a cluster that ends an engine before it starts another."""
    context_bytes: float = field(default=0.39e9, validator=ge(0))
    """Bytes of a CUDA context with the kernels that are loaded: one for each engine and one for the
    tensor store.  Assumed, so that with a communicator and 0.07 GB of workspace it makes the 0.52
    GiB that an engine without weights and cache takes (arXiv 2606.18600)."""
    communicator_bytes: float = field(default=0.1e9, validator=ge(0))
    """Bytes on a GPU of each NCCL communicator of each engine: one for tensor parallelism, one for
    each neighbour in the pipeline.  Assumed: some 10 channels with 10 MB of buffers."""
    workspace_bytes: float = field(default=0.1e9, validator=ge(0))
    """Bytes of each engine's libraries and of what its allocator cannot use.  cuBLAS alone takes
    32 MiB on Hopper and 8 MiB before it (PyTorch's default), tables and tiles of noise take 34 MB;
    the rest is assumed."""
    runtime_bytes: float | None = field(default=None, validator=optional(ge(0)))
    """Bytes on each GPU for all of these together, and for the intermediate results of every engine
    but one: takes the place of the formula."""
    weight_copies: float = field(default=0.0, validator=ge(0))
    """Copies of the weights, in `model.dtype`, that each engine holds beside the tensor store's: 1
    for vLLM on a CPU."""
    step_overhead: float = field(default=1e-3, validator=ge(0))
    """Seconds of host work in every step that no GPU work hides: scheduling, preparing inputs,
    starting the sampler.  Vidur's profile of vLLM on A100 has 1.2 ms for an empty step."""
    sequence_overhead: float = field(default=10e-6, validator=ge(0))
    """The same for each request in a step.  The same profile has 0.1 ms, most of it in processing
    outputs; engines since vLLM V1 do that in another process, so a tenth is assumed here."""
    eager: bool | None = None
    """Whether kernels are launched one by one and not as CUDA graphs.  By default what the engine's
    options say (`enforce_eager`), or false."""
    eager_layer_seconds: float = field(default=0.25e-3, validator=ge(0))
    """Least seconds a layer and step when `eager`: about 15 launches from Python at 10 to 20
    microseconds each; assumed."""

    def for_engine(self, facts: EngineFacts, *, firmly: bool = True) -> Roofline:
        """These options for the engine that the configuration names; see `EngineAware`."""
        said = {
            "chunked_prefill": facts.chunked_prefill,
            "max_num_batched_tokens": facts.step_tokens,
            "eager": facts.eager,
        }
        found: dict[str, Any] = {}
        for name, fact in said.items():
            own = getattr(self, name)
            if firmly and None not in (own, fact) and own != fact:
                raise UserError(
                    f"{_written(own)} contradicts [engine], whose options make it {_written(fact)}",
                    where=f"estimator.{name}",
                    remedy="leave it out: it is read from the engine",
                )
            found[name] = fact if own is None else own
        limits = [limit for limit in (self.max_num_seqs, facts.sequences) if limit is not None]
        return evolve(self, **found, max_num_seqs=min(limits, default=None))

    def bind(
        self, model: ModelSpec, workload: Workload, catalog: Mapping[str, InstanceType]
    ) -> RooflineModel:
        """Fix model, workload and instance types."""
        setup = EngineSetup(
            chunked_prefill=self.chunked_prefill is not False,
            step_tokens=self.max_num_batched_tokens or STEP_TOKENS,
            sequences=self.max_num_seqs or SEQUENCES,
            memory_utilisation=self.gpu_memory_utilization,
            runtime=Runtime(
                engines=self.engines_per_gpu,
                context=self.context_bytes,
                communicator=self.communicator_bytes,
                workspace=self.workspace_bytes,
                by_hand=self.runtime_bytes,
            ),
            weight_copies=self.weight_copies,
            step_overhead=self.step_overhead,
            sequence_overhead=self.sequence_overhead,
            eager_layer_seconds=self.eager_layer_seconds if self.eager else 0.0,
        )
        return RooflineModel(model, workload, catalog, setup)


def _written(value: object) -> str:
    """As TOML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
