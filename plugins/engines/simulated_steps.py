"""The simulated engine's scheduler: continuous batching on a clock that the caller holds."""

from __future__ import annotations

import zlib
from array import array
from collections import deque

from attrs import define, field

from shuntserve_core.types.request import (
    EngineLoad,
    EngineRequest,
    SamplingParams,
    StepOutput,
    TokenLogprob,
)
from shuntserve_plugins.engines.made_up import drawn, logprob, mixed
from shuntserve_plugins.engines.simulated import SimulatedSpec


def made_up_output(prompt: tuple[int, ...], sampling: SamplingParams, vocab: int) -> list[int]:
    """What the engine answers to a prompt if it is never interrupted: for tests to compare."""
    sequence = Sequence(EngineRequest("", prompt, sampling), vocab)
    output: list[int] = []
    finish = None
    while finish is None:
        tokens, finish = sequence.advance(1, limit=len(prompt) + sampling.max_tokens)
        output += tokens
    return output


@define
class Sequence:
    """One request under way."""

    request: EngineRequest
    vocab: int
    base: int = 0
    generated: int = 0
    due: float = 0.0
    """When its next token is ready, in seconds."""
    decoding: bool = False
    """Whether it has had its first token from this engine."""
    logprobs: list[TokenLogprob] = field(factory=list)
    """Of tokens since they were last taken."""
    _stop: frozenset[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.base = zlib.crc32(array("I", self.request.prompt).tobytes())
        self.generated = len(self.request.output)
        self._stop = frozenset(self.request.sampling.stop_token_ids)

    def advance(self, count: int, limit: int) -> tuple[list[int], str | None]:
        """Up to `count` further tokens, and why the output ends with them if it does."""
        sampling = self.request.sampling
        tokens: list[int] = []
        last = min(sampling.max_tokens, limit - len(self.request.prompt))
        for _ in range(count):
            if self.generated >= last:
                return tokens, "length"
            first = mixed(self.base, self.generated) % self.vocab
            place = drawn(sampling, self.base, self.generated, self.vocab)
            if self.generated < sampling.min_tokens:
                others = range(place, place + self.vocab)
                place = next(
                    (p for p in others if (first + p) % self.vocab not in self._stop), place
                )
            token = (first + place) % self.vocab
            if sampling.logprobs is not None:
                self.logprobs.append(logprob(first, place, sampling.logprobs, self.vocab))
            tokens.append(token)
            self.generated += 1
            if token in self._stop:
                return tokens, "stop"
        return tokens, "length" if self.generated >= last else None


class Simulation:
    """Requests in, steps out.  `now` is any clock in seconds that does not go back."""

    def __init__(self, spec: SimulatedSpec) -> None:
        self.spec = spec
        self.waiting: deque[Sequence] = deque()
        self.running: dict[str, Sequence] = {}
        self.tokens = 0
        self._tick = 0.0
        self._next_start = 0.0

    def submit(self, request: EngineRequest) -> None:
        """Queue a request."""
        self.waiting.append(Sequence(request, self.spec.vocab))

    def abort(self, request_id: str) -> None:
        """Drop a request; unknown ids are ignored."""
        if self.running.pop(request_id, None) is None:
            kept = [s for s in self.waiting if s.request.id != request_id]
            self.waiting = deque(kept)

    @property
    def load(self) -> EngineLoad:
        """How busy it is."""
        share = len(self.running) / self.spec.max_batch
        return EngineLoad(len(self.running), len(self.waiting), share, self.tokens)

    def step(self, now: float) -> tuple[list[StepOutput], float | None]:
        """What is ready at `now`, and when to come again; None is when a request comes."""
        self._admit(now)
        ticks = now >= self._tick
        outputs = [
            self._advance(sequence, now)
            for sequence in tuple(self.running.values())
            if now >= sequence.due and (ticks or not sequence.decoding)
        ]
        if ticks:
            late = now - self._tick > self.spec.tpot
            self._tick = (now if late else self._tick) + self.spec.tpot
        return outputs, self._next()

    def _admit(self, now: float) -> None:
        spec = self.spec
        while self.waiting and len(self.running) < spec.max_batch and now >= self._next_start:
            sequence = self.waiting.popleft()
            sequence.due = now + spec.ttft
            self.running[sequence.request.id] = sequence
            if spec.throughput:
                self._next_start = max(self._next_start, now - 1 / spec.throughput)
                self._next_start += 1 / spec.throughput

    def _advance(self, sequence: Sequence, now: float) -> StepOutput:
        request = sequence.request
        tokens, finish = sequence.advance(self.spec.step_tokens, self.spec.max_length)
        # Half a tick on average until the steps that all take part in come round.
        sequence.due = now if sequence.decoding else now + self.spec.tpot / 2
        sequence.decoding = True
        self.tokens += len(tokens)
        if finish is not None:
            del self.running[request.id]
        logprobs, sequence.logprobs = sequence.logprobs, []
        return StepOutput(request.id, tokens, logprobs, finish)

    def _next(self) -> float | None:
        times = [s.due for s in self.running.values() if not s.decoding]
        if any(s.decoding for s in self.running.values()):
            times.append(self._tick)
        if self.waiting and len(self.running) < self.spec.max_batch:
            times.append(self._next_start)
        return min(times, default=None)
