"""The event loop: arrivals, ends of steps, and whatever else is to happen at some time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any

from shuntserve_core.interfaces.balancer import Balancer
from shuntserve_core.simulator.dispatch import Dispatch
from shuntserve_core.simulator.job import Job
from shuntserve_core.simulator.microbatch import MicroBatch
from shuntserve_core.simulator.pipeline import SimulatedPipeline
from shuntserve_core.simulator.result import Record
from shuntserve_core.traces.workload import Requests

Event = tuple[float, int, SimulatedPipeline | None, Any, tuple[Any, ...]]
"""Time, number (ties are first come first served), and the end of a step, or a call."""


class Engine:
    """Virtual time, requests and pipelines."""

    def __init__(self, requests: Requests, balancer: Balancer) -> None:
        self.now = 0.0
        self.record = Record(requests)
        self.dispatch = Dispatch(balancer, self._begin, self._sent)
        self.preemptions = 0
        """Of pipelines that have ended."""
        self._requests = requests
        self._events: list[Event] = []
        self._numbers = count()
        self._left = len(requests)

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Have something called at a time."""
        heapq.heappush(self._events, (time, next(self._numbers), None, call, arguments))

    def add(self, pipeline: SimulatedPipeline) -> None:
        """Let requests go to a pipeline."""
        self.dispatch.add(pipeline)

    def remove(self, name: str, *, keep_tokens: bool) -> None:
        """End a pipeline; its requests go elsewhere."""
        pipeline = self.dispatch.pipelines.get(name)
        if pipeline is not None:
            self.preemptions += pipeline.preemptions
            self.dispatch.remove(name, keep_tokens=keep_tokens)

    def run(self, until: float = math.inf) -> None:
        """Go on until every request is finished, nothing is left to happen, or the time is up."""
        arrivals, prompts, answers = self._requests.columns()
        number, total = 0, len(arrivals)
        events, pop = self._events, heapq.heappop
        while self._left:
            following = events[0][0] if events else math.inf
            if number < total and arrivals[number] <= following:
                if arrivals[number] > until:
                    break
                self.now = arrivals[number]
                self.dispatch.submit(Job(number, prompts[number], answers[number]))
                number += 1
                continue
            if following > until or not events:
                break
            self.now, _, pipeline, what, arguments = pop(events)
            if pipeline is None:
                what(*arguments)
            elif pipeline.open:
                self._end_step(pipeline, what)
        self.now = until if math.isfinite(until) and self._left else self.now

    def _end_step(self, pipeline: SimulatedPipeline, batch: MicroBatch) -> None:
        first, finished = pipeline.complete(batch)
        now, record = self.now, self.record
        for job in first:
            if record.first[job.number] < 0:
                record.first[job.number] = now
        if finished:
            for job in finished:
                record.end[job.number] = now
            self._left -= len(finished)
            batch.busy = True  # it takes part in what the queue brings, and begins then
            self.dispatch.pump()
        self._begin(pipeline, batch)

    def _begin(self, pipeline: SimulatedPipeline, batch: MicroBatch) -> None:
        end = pipeline.begin(batch, self.now)
        if end is not None:
            heapq.heappush(self._events, (end, next(self._numbers), pipeline, batch, ()))

    def _sent(self, job: Job, pipeline: str) -> None:
        record, number = self.record, job.number
        if record.sent[number] < 0:
            record.sent[number] = self.now
        record.pipeline[number] = record.index_of(pipeline)
