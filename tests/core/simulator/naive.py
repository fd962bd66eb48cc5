"""The same engine, token by token and without sums: what the simulator must equal."""

from __future__ import annotations

from collections import deque

from attrs import define, field

from shuntserve_core.simulator.job import BLOCK
from shuntserve_core.simulator.profile import EngineProfile


@define(eq=False)
class Request:
    prompt: int
    answer: int
    done: int = 0
    computed: int = 0
    ended: float = -1.0
    first: float = -1.0
    decoding: bool = False

    @property
    def held(self) -> int:
        return self.prompt + self.done

    @property
    def blocks(self) -> int:
        return self.held // BLOCK + 1


@define
class Batch:
    """A scheduler with its own cache."""

    blocks: int
    profile: EngineProfile
    waiting: deque[Request] = field(factory=deque)
    running: list[Request] = field(factory=list)
    preemptions: int = 0

    @property
    def used(self) -> int:
        return sum(request.blocks for request in self.running)

    def step(self) -> tuple[tuple[int, int, int, int], list[Request]]:
        """(prompt tokens, prompts that end, decodes, their context), and who gets a token."""
        before = self.preemptions
        while self.used > self.blocks and self.running:
            dropped = self.running.pop()
            dropped.computed, dropped.decoding = 0, False
            self.waiting.appendleft(dropped)
            self.preemptions += 1
        profile = self.profile
        decoding = [r for r in self.running if r.decoding]
        chunks: list[tuple[Request, int]] = []
        if not (profile.chunked and self.preemptions > before):
            chunks = self._chunks(decoding)
        if chunks and not profile.chunked:
            decoding = []
        context = sum(r.held for r in decoding)
        for request, part in chunks:
            request.computed += part
        ended = [r for r, _ in chunks if r.computed == r.held]
        tokens = sum(part for _, part in chunks)
        return (tokens, len(ended), len(decoding), context), decoding + ended

    def _chunks(self, decoding: list[Request]) -> list[tuple[Request, int]]:
        profile = self.profile
        room = profile.step_tokens - (len(decoding) if profile.decodes_take_room else 0)
        chunks = []
        for request in [r for r in self.running if not r.decoding]:
            if room > 0:
                part = min(room, request.held - request.computed)
                chunks.append((request, part))
                room -= part
        while room > 0 and self.waiting:
            request = self.waiting[0]
            used = self.used + request.blocks
            fits = used <= self.blocks * (1 - profile.watermark)
            fits = fits or (not self.running and used <= self.blocks)
            whole = profile.chunked or request.held <= room or not chunks
            if not (fits and whole and len(self.running) < profile.sequences):
                break
            self.running.append(self.waiting.popleft())
            part = min(room, request.held)
            chunks.append((request, part))
            room -= part
        return chunks

    def finish(self, stepped: list[Request], now: float) -> None:
        for request in stepped:
            request.done += 1
            request.decoding, request.computed = True, 0
            if request.first < 0:
                request.first = now
            if request.done >= request.answer:
                request.ended = now
        self.running = [r for r in self.running if r.ended < 0]


def cost(tokens: int, ended: int, decodes: int, context: int) -> float:
    """Seconds of a step; the simulator is given the same."""
    seconds = 0.01 + tokens * 1e-4 + ended * 2e-3 + decodes * 1e-3 + context * 1e-6
    return seconds + (5e-3 if tokens else 0.0)


def run(batches: list[Batch], stages: int) -> float:
    """Have all batches go round the stages until nothing is left; the time of the end."""
    ready, free, now = [0.0] * len(batches), [0.0] * stages, 0.0
    pending: list[list[Request] | None] = [None] * len(batches)
    while True:
        active = [i for i, b in enumerate(batches) if pending[i] or b.waiting or b.running]
        if not active:
            return now
        index = min(active, key=lambda i: (ready[i], i))
        now = ready[index]
        if pending[index]:
            batches[index].finish(pending[index] or [], now)
            pending[index] = None
            if not (batches[index].waiting or batches[index].running):
                continue
        step, stepped = batches[index].step()
        time = now
        for stage in range(stages):
            time = free[stage] = max(time, free[stage]) + cost(*step)
        ready[index], pending[index] = time, stepped
