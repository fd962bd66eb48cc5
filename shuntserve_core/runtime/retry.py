"""Patience with what has failed."""

from __future__ import annotations

from attrs import frozen

RETRY_SECONDS = 2.0
"""Wait before a start that failed is tried again; doubled each time, up to `RETRY_MOST`."""
RETRY_MOST = 60.0


@frozen
class Retry:
    """How patient to be with a place where starts have failed."""

    failures: int = 0
    """In a row."""
    not_before: float = 0.0
    """Monotonic time of the next try."""

    def after_failure(self, now: float) -> Retry:
        """One more."""
        pause = min(RETRY_SECONDS * 2.0**self.failures, RETRY_MOST)
        return Retry(self.failures + 1, now + pause)
