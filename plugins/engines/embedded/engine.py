"""What node agents are to start for this engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import cattrs
from attrs import field, frozen
from attrs.validators import ge

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import EngineLaunch, Template, WorkerCommand
from shuntserve_core.peculiar import PLAIN
from shuntserve_core.types import EngineFacts, ModelSpec
from shuntserve_core.types.features import Feature
from shuntserve_plugins.engines.embedded.geometry import Geometry, geometry_from, read_geometry
from shuntserve_plugins.engines.embedded.plan import BLOCK

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
        Feature.RESUME,
    }
)


@frozen
class WorkerSpec:
    """What a worker reads from its standard input, as one line of JSON."""

    launch: EngineLaunch
    rank: int
    """Global rank."""
    threads: int
    max_chunk: int


@frozen
class Embedded:
    """PyTorch, small, exact, and the same whatever the placement; where its nodes' memory is."""

    threads: int = field(default=1, validator=ge(1))
    """Threads of each rank.  Engines that must agree to the last bit need the same number."""
    max_chunk: int = field(default=64, validator=ge(1))
    """Prompt tokens in one step: more is faster for long prompts, and delays everybody else."""

    needs_weights: bool = field(default=True, init=False)
    features: frozenset[str] = field(default=FEATURES, init=False)

    @property
    def template(self) -> Template:
        """Importing torch takes longer, and more memory, than all else in a rank's start."""
        return Template(
            "shuntserve_plugins.engines.embedded.template", arithmetic_environment(self.threads)
        )

    def facts(self) -> EngineFacts:
        """Steps of decodes and one chunk of prompts."""
        return EngineFacts(step_tokens=self.max_chunk, eager=True, chunked_prefill=True)

    def refuse(self, model: ModelSpec, config: Mapping[str, Any]) -> None:
        """Raise `UserError` for what this engine would compute wrongly, or not at all."""
        if config:
            geometry_from(config, where=f"embedded engine, {model.name}")
        elif model.quantization:
            reason = f"its weights are quantised ({model.quantization})"
            where = f"embedded engine, {model.name}"
            raise UserError(f"it cannot run this model: {reason}", where=where, remedy=PLAIN)

    def workers(self, launch: EngineLaunch) -> Sequence[WorkerCommand]:
        """One process a rank.

        Raises `UserError` for a model or a degree that this engine cannot run, and for KV memory
        too small for anything.
        """
        check(launch, read_geometry(launch.model_dir))
        return [self._command(launch, rank) for rank in range(len(launch.ranks))]

    def _command(self, launch: EngineLaunch, rank: int) -> WorkerCommand:
        spec = WorkerSpec(launch, rank, self.threads, self.max_chunk)
        return WorkerCommand(
            node=launch.ranks[rank].node,
            argv=(sys.executable, "-m", "shuntserve_plugins.engines.embedded.worker"),
            environment=arithmetic_environment(self.threads),
            stdin=json.dumps(cattrs.unstructure(spec)) + "\n",
            ranks=(rank,),
            template=self.template,
        )


def arithmetic_environment(threads: int) -> dict[str, str]:
    """Makes the libraries take the same path on every x86 machine, and each time on a GPU.

    Read when torch is imported.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Without STRICT, products depend on where matrices lie in memory, on Intel's processors.
        "MKL_CBWR": "AVX2,STRICT",
        "ATEN_CPU_CAPABILITY": "avx2",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def check(launch: EngineLaunch, geometry: Geometry) -> None:
    """Raise `UserError` for what cannot run."""
    for degree in launch.tensor_parallel:
        reason = geometry.refuse(degree)
        if reason:
            raise UserError(reason, where=f"embedded engine, {launch.model.name}")
    if kv_blocks(launch, geometry) < 2:
        raise UserError(
            f"{launch.kv_bytes} bytes of KV memory hold less than {2 * BLOCK} tokens",
            where=f"embedded engine, {launch.model.name}",
            remedy="keys and values take 4 bytes a number here; give the ranks more KV memory",
        )


def kv_blocks(launch: EngineLaunch, geometry: Geometry) -> int:
    """Blocks of KV memory that every rank has room for."""
    return min(
        launch.kv_bytes // block_bytes(geometry, stop - start, degree)
        for (start, stop), degree in zip(launch.layers, launch.tensor_parallel, strict=True)
    )


def block_bytes(geometry: Geometry, layers: int, degree: int) -> int:
    """Bytes that a block takes on each rank of a stage: float32 keys and values."""
    return layers * 2 * (geometry.kv_heads // degree) * BLOCK * geometry.head_dim * 4


def longest(launch: EngineLaunch, geometry: Geometry) -> int:
    """Tokens of the longest sequence: as asked for, unless KV memory holds fewer."""
    return min(launch.max_length, kv_blocks(launch, geometry) * BLOCK)
