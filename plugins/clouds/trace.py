"""Interruptions from a file, at the times that it gives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from attrs import field, frozen
from attrs.validators import gt

from shuntserve_core.traces.events import read_events
from shuntserve_core.types.spot import SpotEvent


@frozen
class TraceReplay:
    """Replays a trace; nodes are ended at their deadlines, as a cloud would."""

    file: Path
    """CSV or JSON file of events."""
    time_scale: float = field(default=1.0, validator=gt(0.0))
    """How many times faster than recorded; notices are shortened as well."""

    on_node = False

    async def events(self, nodes: Sequence[str]) -> AsyncIterator[SpotEvent]:
        """Every event of the file, when its time has come.  Raises `UserError`."""
        start = time.time()
        for event in read_events(self.file):
            due = start + event.at / self.time_scale
            await asyncio.sleep(max(0.0, due - time.time()))
            deadline = None if event.notice is None else due + event.notice / self.time_scale
            yield SpotEvent(event.node, event.kind, deadline, source="trace", enforced=True)
