"""What a cluster that serves nobody waits for, and when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shuntserve_core.runtime.cluster import RunningCluster

SAY_SECONDS = 2.0
"""How long nobody is served before it is said: a switch takes less."""


class Announcer:
    """Tells when the last pipeline that served is gone, and when one serves again.

    `say` gets what is waited for, or an empty string once a pipeline serves.
    """

    def __init__(self, cluster: RunningCluster, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._say = say
        self._waits = bool(cluster.waits_for)
        """What was said last."""
        self._pending: asyncio.TimerHandle | None = None
        cluster.on_note = self.look

    def look(self) -> None:
        """Something has happened: say so if it made the difference."""
        if self._cluster.closing:
            return
        if not self._cluster.serving():
            if not self._waits and self._pending is None:
                loop = asyncio.get_running_loop()
                self._pending = loop.call_later(SAY_SECONDS, self._still)
        else:
            self._forget()
            if self._waits:
                self._waits = False
                self._say("")

    def _still(self) -> None:
        self._pending = None
        if not (self._cluster.closing or self._cluster.serving()):
            self._waits = True
            self._say(self._cluster.waits_for)

    def _forget(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
