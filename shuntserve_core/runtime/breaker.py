"""Circuit breaker: a pipeline that fails again and again is left alone for a while."""

from __future__ import annotations

from attrs import define, field


@define
class Breaker:
    """Counts failures in a row.  Open, it lets one request through in each `cooldown` seconds."""

    threshold: int = 3
    """Failures in a row that open it."""
    cooldown: float = 5.0
    """Seconds between trials while it is open."""
    failures: int = field(default=0, init=False)
    next_trial: float | None = field(default=None, init=False)
    """Time of the next trial while it is open, else None."""

    def admits(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self.next_trial is None or now >= self.next_trial

    def sent(self, now: float) -> None:
        """A request was sent; while open it is the trial, and the only one for a while."""
        if self.next_trial is not None:
            self.next_trial = now + self.cooldown

    def succeeded(self) -> bool:
        """A request got its first tokens; returns whether that closes the breaker."""
        was_open = self.next_trial is not None
        self.failures, self.next_trial = 0, None
        return was_open

    def failed(self, now: float) -> bool:
        """The engine failed a request; returns whether that opens the breaker."""
        self.failures += 1
        was_open = self.next_trial is not None
        if self.failures >= self.threshold:
            self.next_trial = now + self.cooldown
        return self.next_trial is not None and not was_open
