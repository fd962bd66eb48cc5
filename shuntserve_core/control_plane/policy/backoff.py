"""How long to wait before what has failed is tried again."""

from __future__ import annotations

from attrs import frozen

FIRST_SECONDS = 2.0
"""Wait before a start that failed is tried again; doubled each time, up to `MOST_SECONDS`."""
MOST_SECONDS = 60.0


@frozen
class Backoff:
    """Failures in a row, and when the next try may be."""

    failures: int = 0
    not_before: float = 0.0
    """On the view's clock."""

    def after_failure(self, now: float) -> Backoff:
        """One more."""
        pause = min(FIRST_SECONDS * 2.0**self.failures, MOST_SECONDS)
        return Backoff(self.failures + 1, now + pause)

    def is_over(self, now: float) -> bool:
        """Whether the next try may be made."""
        return self.not_before <= now


def longest(*backoffs: Backoff) -> Backoff:
    """The one with most failures; none where nothing has failed."""
    return max(backoffs, key=lambda backoff: backoff.failures, default=Backoff())
