"""A pipeline: stages that its micro-batches go round, one behind the other.

Each micro-batch has one step under way.  A step goes through the stages in order; a stage works on
one step at a time, in the order in which they came (as vLLM's do: none overtakes).  So uneven
stages, and steps with prompts among steps without, leave bubbles by themselves.
"""

from __future__ import annotations

from collections import deque

from shuntserve_core.simulator.job import BLOCK, Job
from shuntserve_core.simulator.microbatch import MicroBatch, Pool
from shuntserve_core.simulator.profile import EngineProfile
from shuntserve_core.simulator.tables import StepTable


class SimulatedPipeline:
    """One engine."""

    def __init__(
        self,
        name: str,
        table: StepTable,
        stages: int,
        profile: EngineProfile,
        blocks: int,
        throughput: float,
        capacity: int,
    ) -> None:
        self.name = name
        self.throughput = throughput
        """What balancers are told: requests per second."""
        self.capacity = capacity
        """Requests that are sent here at once."""
        self.open = True
        """Whether new requests may come."""
        self.jobs: dict[int, Job] = {}
        """Requests that are here, by number."""
        self.tokens = 0
        """Tokens that they may still need."""
        self.busy_seconds = [0.0] * len(table.decode(1)[0])
        """Of every stage."""
        count = profile.micro_batches or stages
        pools = (
            [Pool(blocks)] * count
            if profile.shared_queue
            else [Pool(blocks // count) for _ in range(count)]
        )
        queue: deque[Job] = deque()
        self.batches = [
            MicroBatch(profile, pool, queue if profile.shared_queue else deque()) for pool in pools
        ]
        self._shared = profile.shared_queue
        self._largest = pools[0].capacity
        self._table = table
        self._free = [0.0] * len(self.busy_seconds)
        self._loads = [0] * count
        self._place: dict[int, int] = {}

    @property
    def in_flight(self) -> int:
        """Requests that are here."""
        return len(self.jobs)

    @property
    def preemptions(self) -> int:
        """How often a request had to begin anew for want of cache."""
        return sum(batch.preemptions for batch in self.batches)

    def fits(self, job: Job) -> bool:
        """Whether its whole context fits the cache."""
        return job.prompt + job.answer <= self.longest

    @property
    def longest(self) -> int:
        """Tokens of the longest request that fits the cache of a scheduler."""
        return self._largest * BLOCK - 1

    def submit(self, job: Job) -> MicroBatch | None:
        """Take a request; returns a micro-batch that is idle and may now begin a step."""
        job.unread = job.length
        self.tokens += job.unread + job.answer - job.done
        self.jobs[job.number] = job
        if self._shared:
            self.batches[0].waiting.append(job)
            return next((batch for batch in self.batches if not batch.busy), None)
        index = self._loads.index(min(self._loads))
        self._loads[index] += 1
        self._place[job.number] = index
        batch = self.batches[index]
        batch.waiting.append(job)
        return None if batch.busy else batch

    def begin(self, batch: MicroBatch, now: float) -> float | None:
        """Start a micro-batch's next step; when it ends, or None if there is none."""
        if not batch.plan():
            return None
        prefill, context = batch.prefill, batch.context
        if prefill is None:
            fixed, slope = self._table.decode(batch.decoding)
            costs = [a + b * context for a, b in zip(fixed, slope, strict=True)]
        elif batch.decodes:
            costs = self._table.mixed(prefill, batch.decoding, context)
        else:
            costs = self._table.mixed(prefill, 0, 0)
        free, busy = self._free, self.busy_seconds
        for stage, cost in enumerate(costs):
            now = max(now, free[stage]) + cost
            free[stage] = now
            busy[stage] += cost
        return now

    def complete(self, batch: MicroBatch) -> tuple[list[Job], list[Job]]:
        """End a step: requests with a first token since they came, and those that finished."""
        self.tokens -= batch.decoding if batch.decodes else 0
        first, finished = batch.complete()
        for job in first:
            # The token that was made, and what was read if that is the first word of the engine.
            self.tokens -= 1 + job.unread
            job.unread = 0
        for job in finished:
            self._forget(job)
        return first, finished

    def evict(self) -> list[Job]:
        """End: all requests with the tokens that they have, oldest first."""
        self.open = False
        for batch in self.batches:
            batch.evict()
            batch.waiting.clear()
        jobs = list(self.jobs.values())
        self.jobs.clear()
        self.tokens = 0
        return jobs

    def _forget(self, job: Job) -> None:
        del self.jobs[job.number]
        if not self._shared:
            self._loads[self._place.pop(job.number)] -= 1

    @property
    def cache_used(self) -> float:
        """Share of KV blocks in use."""
        pools = {id(batch.pool): batch.pool for batch in self.batches}.values()
        return sum(pool.used for pool in pools) / max(sum(pool.capacity for pool in pools), 1)
