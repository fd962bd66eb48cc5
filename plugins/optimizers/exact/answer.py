"""What a search hands back."""

from __future__ import annotations

from attrs import frozen

from shuntserve_core.types import StageKind


@frozen
class Answer:
    """Pipelines, and what is proved of them."""

    pipelines: tuple[tuple[tuple[StageKind, int], ...], ...]
    """(kind, layers) in order, for each pipeline; empty where nothing was found."""
    value: float
    """Of the objective: requests/s, requests/s per $/h, or $/h."""
    bound: float
    """No placement is better than this, in the same unit."""
    reachable: float | None = None
    """Requests per second that no placement exceeds, where the demanded rate is out of reach."""
