"""What engines say of themselves, put together for all that there are and were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import define, field

from shuntserve_core.interfaces.link import EngineLink
from shuntserve_core.types.request import EngineLoad

COUNTED = ("preemptions", "prefix_queries", "prefix_hits")
"""Fields of an `EngineLoad` that count up from the engine's start."""


@define
class Loads:
    """Sums that never go down, whichever engines come and go."""

    _counted: dict[str, tuple[int, ...]] = field(factory=dict)
    """Of each engine that ever was, the last word; a few numbers a start of an engine."""

    def note(self, link: EngineLink) -> None:
        """Take what an engine last said; to be called once more when its link is let go."""
        counted = tuple(getattr(link.load, name) for name in COUNTED)
        if any(counted):
            self._counted[link.info.engine_id] = counted

    def as_json(self, links: Iterable[EngineLink]) -> dict[str, Any]:
        """Running and waiting sequences, mean use of KV memory, and counts since the start."""
        loads: list[EngineLoad] = []
        for link in links:
            self.note(link)
            if link.lost is None:
                loads.append(link.load)
        sums = map(sum, zip(*self._counted.values(), strict=True))
        return {
            "running": sum(load.running for load in loads),
            "waiting": sum(load.waiting for load in loads),
            "kv_used": sum(load.kv_used for load in loads) / max(len(loads), 1),
            **dict.fromkeys(COUNTED, 0),
            **dict(zip(COUNTED, sums, strict=False)),
        }
