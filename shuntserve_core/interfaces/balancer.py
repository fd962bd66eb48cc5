"""What chooses the pipeline for a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen


@frozen
class Candidate:
    """A pipeline that can take one more request now."""

    name: str
    """Stable for as long as the pipeline lives; survives membership changes of others."""
    throughput: float
    """Estimated requests per second."""
    capacity: int
    """Requests that it runs at once."""
    in_flight: int
    """Requests that it has now."""
    tokens: int
    """Tokens that its requests may still need: prompts not yet prefilled and outputs to come."""


class Balancer(Protocol):
    """Called for every request, so it must be quick; keeps its own state between calls."""

    def pick(self, candidates: Sequence[Candidate]) -> str:
        """Name of the chosen one; `candidates` is never empty."""
        ...

    def forget(self, name: str) -> None:
        """A pipeline is gone for good."""
        ...
