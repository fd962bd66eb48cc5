"""Requests by arrival and lengths: what a workload trace comes down to."""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from shuntserve_core.interfaces.estimator import Floats, Ints


def _floats(values: Any) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float64)


def _ints(values: Any) -> Ints:
    return np.ascontiguousarray(values, dtype=np.int64)


@frozen(eq=False)
class Requests:
    """Columns of equal length, by arrival."""

    arrival: Floats = field(converter=_floats)
    """Seconds after the first one."""
    prompt: Ints = field(converter=_ints)
    """Tokens, at least 1."""
    answer: Ints = field(converter=_ints)
    """Tokens, at least 1."""

    def __len__(self) -> int:
        return len(self.arrival)

    @classmethod
    def of(cls, arrival: Any, prompt: Any, answer: Any) -> Requests:
        """Sorted by arrival, counted from the first; lengths below 1 become 1."""
        at = _floats(arrival)
        order = np.argsort(at, kind="stable")
        at = at[order]
        lengths = (np.maximum(_ints(column)[order], 1) for column in (prompt, answer))
        return cls(at - at[0] if len(at) else at, *lengths)

    def columns(self) -> tuple[list[float], list[int], list[int]]:
        """As lists of plain numbers, which loops are faster with."""
        return self.arrival.tolist(), self.prompt.tolist(), self.answer.tolist()

    def scaled(self, factor: float) -> Requests:
        """Arrivals so many times further apart; 0 has all come at once."""
        return evolve(self, arrival=self.arrival * factor)

    def at_most(self, tokens: int) -> Requests:
        """Without requests whose prompt or whose answer is longer."""
        return self._only((self.prompt <= tokens) & (self.answer <= tokens))

    def fitting(self, tokens: int) -> Requests:
        """Without requests whose prompt and answer together are longer."""
        return self._only(self.prompt + self.answer <= tokens)

    def between(self, begin: float, end: float) -> Requests:
        """Those that arrive from `begin` on and before `end`, seconds; `begin` becomes 0."""
        part = self._only((self.arrival >= begin) & (self.arrival < end))
        return evolve(part, arrival=part.arrival - begin)

    def first(self, count: int) -> Requests:
        """The first so many."""
        return self._only(np.arange(len(self)) < count)

    def repeated(self, count: int) -> Requests:
        """So many requests: the whole again and again, each time after the last."""
        times = -(-count // max(len(self), 1))
        gap = self.arrival[-1] / max(len(self) - 1, 1) if len(self) else 0.0
        length = (self.arrival[-1] if len(self) else 0.0) + gap
        shift = np.repeat(np.arange(times) * length, len(self))
        return Requests(
            np.tile(self.arrival, times) + shift,
            np.tile(self.prompt, times),
            np.tile(self.answer, times),
        ).first(count)

    def _only(self, chosen: Any) -> Requests:
        return Requests(self.arrival[chosen], self.prompt[chosen], self.answer[chosen])

    @property
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """(prompt, answer) of each, as `Workload.lengths`."""
        return tuple(zip(self.prompt.tolist(), self.answer.tolist(), strict=True))
