"""How an engine makes steps: one profile an engine, every constant with its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, lt, optional

from shuntserve_core.errors import UserError, did_you_mean


@frozen
class MeasuredSteps:
    """Seconds of a step on a whole pipeline, fitted to measured steps; replaces the estimator."""

    step: float = field(validator=ge(0))
    """Of every step."""
    sequence: float = field(default=0.0, validator=ge(0))
    """For each request that decodes."""
    prompt_token: float = field(default=0.0, validator=ge(0))
    """For each prompt token that is computed."""
    prompt: float = field(default=0.0, validator=ge(0))
    """For each prompt that ends."""
    context_token: float = field(default=0.0, validator=ge(0))
    """For each cached token that decodes read."""
    prompt_step: float = field(default=0.0, validator=ge(0))
    """Of a step with prompt tokens, on top."""


@frozen
class EngineProfile:
    """What decides how requests become steps."""

    name: str
    chunked: bool
    """Whether steps mix decodes with parts of prompts.  Otherwise whole prompts have steps of their
    own, and go first."""
    step_tokens: int = field(validator=ge(1))
    """Most tokens of a step."""
    sequences: int = field(validator=ge(1))
    """Most requests of a scheduler."""
    shared_queue: bool
    """Whether all micro-batches have one scheduler and one KV cache.  Otherwise each has its own,
    with its share, and requests are dealt to the one that has the fewest."""
    micro_batches: int | None = field(default=None, validator=optional(ge(1)))
    """Steps under way at once in a pipeline; None: one a stage."""
    decodes_take_room: bool = True
    """Whether decodes count towards `step_tokens`."""
    watermark: float = field(default=0.0, validator=[ge(0), lt(1)])
    """Share of the KV blocks that is kept free when requests are admitted."""
    estimator_options: Mapping[str, Any] = field(factory=dict)
    """Options of the estimator that describe this engine; those that it lacks are left out."""
    measured: Mapping[str, MeasuredSteps] = field(factory=dict)
    """Measured steps by pipeline name; `*` is any other.  Pipelines without use the estimator."""
    source: str = ""
    """Where it is from."""


VLLM_0_8_1 = EngineProfile(
    name="vllm-0.8.1",
    chunked=False,
    step_tokens=8192,
    sequences=512,
    shared_queue=False,
    watermark=0.01,
    estimator_options={
        "chunked_prefill": False,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 512,
        "gpu_memory_utilization": 0.85,
        "eager": True,
        "sequence_overhead": 1e-4,
    },
    source="settings of the published system (artifact of arXiv 2606.18600): 8,192 tokens, 512 "
    "sequences, 0.85 of the memory, eager, no chunked prefill.  vLLM's V0 engine: as many virtual "
    "engines as stages, each with its scheduler and its share of the blocks, prompts first, 1 % of "
    "the blocks kept free.  Host work of 0.1 ms a sequence and step: Vidur's profile of vLLM on "
    "A100 (arXiv 2405.05465)",
)
VLLM = EngineProfile(
    name="vllm",
    chunked=True,
    step_tokens=2048,
    sequences=256,
    shared_queue=True,
    estimator_options={
        "chunked_prefill": True,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 256,
    },
    source="vLLM's V1 engine, defaults of a server on GPUs under 70 GiB: one scheduler, as many "
    "batches in flight as stages, running requests first",
)
EMBEDDED = EngineProfile(
    name="embedded",
    chunked=True,
    step_tokens=64,
    sequences=16,
    shared_queue=True,
    micro_batches=1,
    decodes_take_room=False,
    estimator_options={"chunked_prefill": True, "max_num_batched_tokens": 64, "max_num_seqs": 16},
    source="the bundled engine's scheduler: one step at a time through all stages; its defaults",
)
PROFILES = {profile.name: profile for profile in (VLLM_0_8_1, VLLM, EMBEDDED)}


def profile_named(name: str) -> EngineProfile:
    """A profile by name.  Raises `UserError`."""
    if name not in PROFILES:
        raise UserError(f'unknown engine profile "{name}"', remedy=did_you_mean(name, PROFILES))
    return PROFILES[name]
