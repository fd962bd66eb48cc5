"""What a run gave: times of every request, and their summary."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen

from shuntserve_core.interfaces.estimator import Floats
from shuntserve_core.traces.workload import Requests

PERCENTILES = (50, 90, 95, 99)


class Record:
    """Times of every request, in seconds after the start; negative where it did not happen."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        nothing = array("d", [-1.0]) * len(requests)
        self.sent, self.first, self.end = nothing, nothing[:], nothing[:]
        self.pipeline = array("i", [-1]) * len(requests)
        """Where it went last, by index into `names`."""
        self.names: list[str] = []
        self._indices: dict[str, int] = {}

    def index_of(self, pipeline: str) -> int:
        """The number of a pipeline's name."""
        index = self._indices.get(pipeline)
        if index is None:
            index = self._indices[pipeline] = len(self.names)
            self.names.append(pipeline)
        return index


@frozen
class Note:
    """Something that happened to the cluster."""

    at: float
    what: str
    facts: Mapping[str, Any] = field(factory=dict)


@frozen(eq=False)
class Result:
    """A finished run."""

    record: Record
    seconds: float
    """Virtual seconds from the start to the last end, or to the limit."""
    cost: float
    """$ of all nodes over that time."""
    pipelines: tuple[Mapping[str, Any], ...]
    """Each pipeline that ran: name, when, how busy its stages were."""
    notes: tuple[Note, ...]
    counters: Mapping[str, int]
    wall_seconds: float = 0.0
    """What the simulation took."""

    @property
    def finished(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which requests ended."""
        return np.frombuffer(self.record.end) >= 0

    def times(self) -> tuple[Floats, Floats, Floats]:
        """(latency, TTFT, TPOT) of finished requests, seconds; the first two from arrival."""
        done = self.finished
        requests = self.record.requests
        arrival, answers = requests.arrival[done], requests.answer[done]
        first, end = np.frombuffer(self.record.first)[done], np.frombuffer(self.record.end)[done]
        several = answers > 1
        tpot = (end - first)[several] / (answers[several] - 1)
        return end - arrival, first - arrival, tpot

    def ttft_after_queue(self) -> Floats:
        """TTFT counted from when a pipeline took the request."""
        done, record = self.finished, self.record
        waited: Floats = np.frombuffer(record.first)[done] - np.frombuffer(record.sent)[done]
        return waited

    def summary(self) -> dict[str, Any]:
        """Counts, rates, costs, and percentiles in seconds; null where there is nothing."""
        done = self.finished
        requests = self.record.requests
        tokens_in, tokens_out = int(requests.prompt[done].sum()), int(requests.answer[done].sum())
        latency, ttft, tpot = self.times()
        count, span = int(done.sum()), self.seconds
        return {
            "requests": len(requests),
            "finished": count,
            "seconds": span,
            "requests_per_second": count / span if span else 0.0,
            "input_tokens_per_second": tokens_in / span if span else 0.0,
            "output_tokens_per_second": tokens_out / span if span else 0.0,
            "cost": self.cost,
            "cost_per_hour": self.cost / span * 3600 if span else 0.0,
            "cost_per_million_tokens": (
                self.cost / (tokens_in + tokens_out) * 1e6 if tokens_in + tokens_out else None
            ),
            "requests_per_dollar": count / self.cost if self.cost else None,
            "latency": spread(latency),
            "ttft": spread(ttft),
            "ttft_after_queue": spread(self.ttft_after_queue()),
            "tpot": spread(tpot),
            **self.counters,
            "wall_seconds": self.wall_seconds,
        }

    def timeline(self, bin_seconds: float) -> dict[str, list[float]]:
        """Requests and answer tokens of requests that ended, a second, by time."""
        done = self.finished
        ends = np.frombuffer(self.record.end)[done]
        bins = max(int(np.ceil(self.seconds / bin_seconds)), 1)
        where = np.minimum((ends / bin_seconds).astype(int), bins - 1)
        answers = self.record.requests.answer[done]
        return {
            "at": [float(i * bin_seconds) for i in range(bins)],
            "requests_per_second": (np.bincount(where, minlength=bins) / bin_seconds).tolist(),
            "output_tokens_per_second": (
                np.bincount(where, weights=answers, minlength=bins) / bin_seconds
            ).tolist(),
        }


def spread(values: Sequence[float] | Floats) -> dict[str, float] | None:
    """Mean and percentiles."""
    if not len(values):
        return None
    cuts = np.percentile(values, PERCENTILES)
    named = {f"p{p}": float(cut) for p, cut in zip(PERCENTILES, cuts, strict=True)}
    return {"mean": float(np.mean(values)), **named, "max": float(np.max(values))}
