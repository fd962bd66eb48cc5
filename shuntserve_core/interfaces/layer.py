"""Predicting one layer alone, to be compared with a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen

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


class LayerPredictor(Protocol):
    """What a `BoundEstimator` may offer beside its protocol; `shuntserve layer` asks for it."""

    def prefill_layer(self, kind: StageKind, tokens: int) -> LayerTime:
        """One layer over a prompt of `tokens`, computed in one go."""
        ...

    def decode_layer(self, kind: StageKind, batch: int, context: int) -> LayerTime:
        """One layer of a decode step for `batch` requests with `context` cached tokens each."""
        ...
