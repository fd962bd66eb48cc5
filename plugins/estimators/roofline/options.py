"""The options of the `roofline` estimator: how the engine that will run the model is set up."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from attrs.validators import ge, gt, le, optional

from shuntserve_core.types import InstanceType, ModelSpec, Workload
from shuntserve_plugins.estimators.roofline.memory import Runtime
from shuntserve_plugins.estimators.roofline.model import EngineSetup, RooflineModel


@frozen
class Roofline:
    """A roofline of every operator, over the steps that a continuously batching engine makes."""

    chunked_prefill: bool = True
    """Whether steps mix decodes with chunks of prompts (vLLM's default since V1).  Without it,
    whole prompts are computed in steps of their own."""
    max_num_batched_tokens: int = field(default=2048, validator=ge(1))
    """Most tokens of a step: vLLM's `max_num_batched_tokens`, 2,048 by default for a server on GPUs
    under 70 GiB."""
    max_num_seqs: int = field(default=256, validator=ge(1))
    """Most requests in flight in a pipeline: vLLM's `max_num_seqs`, 256 by default on the same."""
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
    eager: bool = False
    """Whether kernels are launched one by one (`enforce_eager`) and not as CUDA graphs."""
    eager_layer_seconds: float = field(default=0.25e-3, validator=ge(0))
    """Least seconds a layer and step when `eager`: about 15 launches from Python at 10 to 20
    microseconds each; assumed."""

    def bind(
        self, model: ModelSpec, workload: Workload, catalog: Mapping[str, InstanceType]
    ) -> RooflineModel:
        """Fix model, workload and instance types."""
        setup = EngineSetup(
            chunked_prefill=self.chunked_prefill,
            step_tokens=self.max_num_batched_tokens,
            sequences=self.max_num_seqs,
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
