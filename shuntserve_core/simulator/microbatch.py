"""One micro-batch: what goes into its next step, and what comes out.

All decoding requests of a micro-batch gain one token in each of its decode steps.  So nothing is
done for each of them in a step: their number, the sum of their contexts and the blocks that they
take are kept up to date as sums, and a request is looked at when it joins, ends or is preempted.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from shuntserve_core.simulator.job import BLOCK, Job, blocks_of
from shuntserve_core.simulator.profile import EngineProfile


class Pool:
    """Blocks of KV cache, of one micro-batch or shared by several."""

    __slots__ = ("capacity", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0


class Prefill(NamedTuple):
    """The part of a step that computes prompts; as in `EngineStep`."""

    tokens: int
    pairs: float
    context: int
    ended: int


class MicroBatch:
    """Requests that make their steps together."""

    def __init__(self, profile: EngineProfile, pool: Pool, waiting: deque[Job]) -> None:
        self.profile = profile
        self.pool = pool
        self.waiting = waiting
        """Requests to admit, in order; may be shared with other micro-batches."""
        self.running: dict[int, Job] = {}
        """Admitted requests by number, oldest first."""
        self.decoding = 0
        """Requests that gain a token in each decode step."""
        self.context = 0
        """Tokens of all decoding requests."""
        self.steps = 0
        """Decode steps so far."""
        self.preemptions = 0
        self.busy = False
        """Whether a step is under way."""
        self.prefill: Prefill | None = None
        """Prompts in the step under way."""
        self.decodes = False
        """Whether the step under way decodes."""
        self._ending: dict[int, list[Job]] = {}
        self._phases = [0] * BLOCK
        """Decoding requests by (tokens − steps) mod 16: those of one phase fill a block at once."""
        self._chunks: list[tuple[Job, int]] = []
        self._partial: list[Job] = []

    def plan(self) -> bool:
        """Decide on the next step; False where there is nothing to do."""
        preempted = self._make_room()
        self.prefill = None if preempted and self.profile.chunked else self._prompts()
        self.decodes = self.decoding > 0 and (self.profile.chunked or self.prefill is None)
        self.busy = self.decodes or self.prefill is not None
        return self.busy

    def complete(self) -> tuple[list[Job], list[Job]]:
        """End the step: requests that got their first token since admission, and finished ones."""
        self.busy = False
        finished = self._decode() if self.decodes else []
        if self.prefill is None:
            return [], finished
        return self._end_prompts(finished), finished

    def evict(self) -> list[Job]:
        """Give up everything admitted, with the tokens that it has; the pool is forgotten."""
        for job in self.running.values():
            if job.joined >= 0:
                job.done = job.base + self.steps - job.joined
            job.joined = job.ends = -1
            job.computed = 0
        jobs = list(self.running.values())
        self.running.clear()
        return jobs

    # Decoding

    def _decode(self) -> list[Job]:
        self.steps += 1
        steps = self.steps
        self.context += self.decoding
        # A request of t tokens has t // 16 + 1 blocks, so one more when t becomes a multiple of 16.
        self.pool.used += self._phases[-steps % BLOCK]
        finished = self._ending.pop(steps, None)
        if finished is None:
            return []
        for job in finished:
            self._leave(job)
            job.done = job.answer
        return finished

    def _join(self, job: Job) -> None:
        """Begin to decode, with one answer token from the prefill."""
        tokens = job.length
        job.base, job.joined = job.done, self.steps
        job.ends = self.steps + job.answer - job.done
        self._ending.setdefault(job.ends, []).append(job)
        self.decoding += 1
        self.context += tokens
        self._phases[(tokens - self.steps) % BLOCK] += 1

    def _leave(self, job: Job) -> None:
        """Stop decoding, and give the blocks back."""
        tokens = job.prompt + job.base + self.steps - job.joined
        self._phases[(tokens - self.steps) % BLOCK] -= 1
        self.pool.used -= blocks_of(tokens)
        self.decoding -= 1
        self.context -= tokens
        del self.running[job.number]

    def _make_room(self) -> bool:
        """Preempt the newest requests while there are not enough blocks; they begin anew."""
        pool, before = self.pool, self.preemptions
        while pool.used > pool.capacity and self.running:
            job = self.running[next(reversed(self.running))]
            if job.joined >= 0:
                self._ending[job.ends].remove(job)
                done = job.base + self.steps - job.joined
                self._leave(job)
                job.done = done
            else:
                self._partial.remove(job)
                pool.used -= blocks_of(job.length)
                del self.running[job.number]
            job.joined = job.ends = -1
            job.computed = 0
            self.waiting.appendleft(job)
            self.preemptions += 1
        return self.preemptions > before

    # Prompts

    def _prompts(self) -> Prefill | None:
        """Choose prompts, or parts of them, for the step."""
        profile = self.profile
        room = profile.step_tokens - (self.decoding if profile.decodes_take_room else 0)
        chunks = self._chunks
        if self._partial:
            for job in self._partial:
                part = min(room, job.length - job.computed)
                if part <= 0:
                    break
                chunks.append((job, part))
                room -= part
        while room > 0 and self.waiting and self._admits(self.waiting[0], room):
            job = self.waiting.popleft()
            self.running[job.number] = job
            self.pool.used += blocks_of(job.length)
            part = min(room, job.length)
            chunks.append((job, part))
            room -= part
        if not chunks:
            return None
        tokens = context = ended = 0
        pairs = 0.0
        for job, part in chunks:
            tokens += part
            pairs += part * (job.computed + (part + 1) / 2)
            job.computed += part
            context += job.computed
            ended += job.computed == job.length
        # Those without room in this step stay behind those that had some.
        unfinished = [job for job, _ in chunks] + self._partial
        self._partial = [j for j in dict.fromkeys(unfinished) if j.computed < j.length]
        return Prefill(tokens, pairs, context, ended)

    def _admits(self, job: Job, room: int) -> bool:
        profile, pool = self.profile, self.pool
        if len(self.running) >= profile.sequences:
            return False
        if not profile.chunked and job.length > room and self._chunks:
            return False
        used = pool.used + blocks_of(job.length)
        return used <= pool.capacity * (1 - profile.watermark) or (
            pool.used == 0 and used <= pool.capacity
        )

    def _end_prompts(self, finished: list[Job]) -> list[Job]:
        first = []
        for job, _ in self._chunks:
            if job.computed < job.length:
                continue
            blocks = blocks_of(job.length)
            job.done += 1
            job.computed = 0
            first.append(job)
            if job.done >= job.answer:
                self.pool.used -= blocks
                del self.running[job.number]
                finished.append(job)
            else:
                self.pool.used += blocks_of(job.length) - blocks
                self._join(job)
        self._chunks.clear()
        return first
