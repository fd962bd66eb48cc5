"""Round-robin, whatever the pipelines are worth."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from shuntserve_core.interfaces.balancer import Candidate


@define
class RoundRobin:
    """The one that was picked longest ago; newcomers first."""

    _picked: dict[str, int] = field(factory=dict, init=False)
    _picks: int = field(default=0, init=False)

    def pick(self, candidates: Sequence[Candidate]) -> str:
        """The next in turn."""
        picked = self._picked
        name = min(candidates, key=lambda c: picked.get(c.name, 0)).name
        self._picks += 1
        picked[name] = self._picks
        return name

    def forget(self, name: str) -> None:
        """Its turn goes with it."""
        self._picked.pop(name, None)
