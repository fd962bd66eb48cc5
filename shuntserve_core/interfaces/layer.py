"""Predicting one layer, to be compared with a measurement, or one step, to be simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from attrs import field, frozen

from shuntserve_core.interfaces.estimator import Position
from shuntserve_core.types import StageKind


@frozen
class LayerTime:
    """One layer of one step on one stage."""

    seconds: float
    bound: str
    """The term that most of the time goes to: `compute`, `memory bandwidth`, `communication`,
    `overhead`; empty for a measurement."""
    breakdown: Mapping[str, float] = field(factory=dict)
    """Seconds by operator."""


@runtime_checkable
class LayerPredictor(Protocol):
    """What a `BoundEstimator` may offer beside its protocol; `shuntserve layer` asks for it."""

    def prefill_layer(self, kind: StageKind, tokens: int) -> LayerTime:
        """One layer over a prompt of `tokens`, computed in one go."""
        ...

    def decode_layer(self, kind: StageKind, batch: int, context: int) -> LayerTime:
        """One layer of a decode step for `batch` requests with `context` cached tokens each."""
        ...


@frozen
class EngineStep:
    """The work of one engine step."""

    prompt_tokens: int = 0
    """Prompt tokens that are computed, all requests together."""
    prompt_pairs: float = 0.0
    """(query, key) pairs of their causal attention."""
    prompt_context: float = 0.0
    """Cached tokens that their attention reads, the prompt's own included."""
    prompts_ended: int = 0
    """Prompts of which the last token is computed, so that logits are needed."""
    decodes: int = 0
    """Requests that decode one token."""
    decode_context: float = 0.0
    """Cached tokens that they read, all requests together."""


@runtime_checkable
class StepPredictor(Protocol):
    """What a `BoundEstimator` may offer beside its protocol, for simulations step by step."""

    def step_seconds(
        self, kind: StageKind, position: Position, layers: int, step: EngineStep
    ) -> float:
        """Seconds that a stage is busy with one step."""
        ...
