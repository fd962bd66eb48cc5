"""Requests over pipelines: what the runtime's dispatcher does, with the real balancers.

Each pipeline takes as many requests as it runs at once; the others wait in front, those that were
moved before new ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shuntserve_core.interfaces.balancer import Balancer, Candidate
from shuntserve_core.simulator.job import Job
from shuntserve_core.simulator.microbatch import MicroBatch
from shuntserve_core.simulator.pipeline import SimulatedPipeline

Begin = Callable[[SimulatedPipeline, MicroBatch], None]
"""Has an idle micro-batch begin a step."""


class Dispatch:
    """The queue, and who gets what."""

    def __init__(self, balancer: Balancer, begin: Begin, sent: Callable[[Job, str], None]) -> None:
        self.pipelines: dict[str, SimulatedPipeline] = {}
        self.new: deque[Job] = deque()
        self.moved: deque[Job] = deque()
        self.migrations = 0
        self.recomputed_tokens = 0
        """Tokens that had been computed and must be once more, elsewhere."""
        self._balancer = balancer
        self._begin = begin
        self._sent = sent

    def submit(self, job: Job) -> None:
        """Take a request."""
        self.new.append(job)
        self.pump()

    def add(self, pipeline: SimulatedPipeline) -> None:
        """Let requests go to a pipeline."""
        self.pipelines[pipeline.name] = pipeline
        self.pump()

    def remove(self, name: str, *, keep_tokens: bool) -> None:
        """Carry what a pipeline has to others, with its tokens or without, and forget it."""
        pipeline = self.pipelines.pop(name, None)
        if pipeline is None:
            return
        self._balancer.forget(name)
        for job in pipeline.evict():
            self.migrations += 1
            self.recomputed_tokens += job.length if job.done else 0
            if not keep_tokens:
                job.done = 0
            self.moved.append(job)
        self.pump()

    def pump(self) -> None:
        """Place what waits, first come first served, as far as there is room."""
        while self.moved or self.new:
            queue = self.moved or self.new
            job = queue[0]
            candidates = [
                Candidate(p.name, p.throughput, p.capacity, len(p.jobs), p.tokens)
                for p in self.pipelines.values()
                if len(p.jobs) < p.capacity and p.open and p.fits(job)
            ]
            if not candidates:
                return
            queue.popleft()
            pipeline = self.pipelines[self._balancer.pick(candidates)]
            self._sent(job, pipeline.name)
            idle = pipeline.submit(job)
            if idle is not None:
                self._begin(pipeline, idle)
