"""A bound on bytes held at a time."""

from __future__ import annotations

import threading


class ByteBudget:
    """Lets callers hold up to `limit` bytes together, or a single larger piece alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until there is room for `size` bytes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self._limit)
            self._held += size

    def give_back(self, size: int) -> None:
        """Return what was taken."""
        with self._changed:
            self._held -= size
            self._changed.notify_all()
