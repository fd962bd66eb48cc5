"""Which tokens of which sequences go into the next step.

Continuous batching: a step has one token of every sequence that generates, and then prompt
tokens, of the oldest sequences first, up to `max_chunk`.  When KV memory runs out, the youngest
sequence gives its blocks back and is computed anew later: its tokens are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from attrs import define, field, frozen

from shuntserve_core.types.request import EngineLoad, EngineRequest, StepOutput
from shuntserve_plugins.engines.embedded.plan import BLOCK, Choice, Newcomer, Part, Plan, Scores


@frozen
class Limits:
    """How much there is."""

    blocks: int
    """Blocks of KV memory."""
    max_batch: int
    """Sequences that run at once."""
    max_length: int
    """Longest prompt and output together, in tokens."""
    max_chunk: int
    """Prompt tokens in a step."""


@define(eq=False)
class _Sequence:
    number: int
    request: EngineRequest
    tokens: list[int]
    computed: int = 0
    """Tokens whose keys and values are in KV memory."""
    blocks: list[int] = field(factory=list)
    scored: int = 0
    """Logprobs of the prompt that were told."""

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    def to_score(self, stop: int) -> tuple[int, ...]:
        """The prompt's tokens behind those from `computed` to `stop`, where they are wanted."""
        prompt = self.request.prompt
        if self.request.sampling.prompt_logprobs is None or self.scored + 1 >= len(prompt):
            return ()
        return prompt[self.computed + 1 : stop + 1]

    def finish(self, max_length: int) -> str | None:
        """Why no token may follow, or None."""
        sampling = self.request.sampling
        last_is_stop = self.generated > 0 and self.tokens[-1] in sampling.stop_token_ids
        if last_is_stop and self.generated >= sampling.min_tokens:
            return "stop"
        if self.generated >= sampling.max_tokens or len(self.tokens) >= max_length:
            return "length"
        return None


class Scheduler:
    """The sequences of an engine.  One step is `plan`, its computation elsewhere, `apply`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._free = list(range(limits.blocks))
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._by_id: dict[str, _Sequence] = {}
        self._newcomers: list[Newcomer] = []
        self._dropped: list[int] = []
        self._outputs: list[StepOutput] = []
        self._numbers = 0
        self._generated = 0
        self._preemptions = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute or to say."""
        return bool(self._waiting or self._running or self._outputs)

    @property
    def load(self) -> EngineLoad:
        """How busy it is."""
        used = 1 - len(self._free) / self.limits.blocks
        running, waiting = len(self._running), len(self._waiting)
        return EngineLoad(running, waiting, used, self._generated, self._preemptions)

    def submit(self, request: EngineRequest) -> None:
        """Take a request; one that is complete already is finished in the next step."""
        self._numbers += 1
        sequence = _Sequence(self._numbers, request, [*request.prompt, *request.output])
        reason = sequence.finish(self.limits.max_length)
        if reason:
            self._outputs.append(StepOutput(request.id, finish=reason))
            return
        self._by_id[request.id] = sequence
        self._newcomers.append(
            Newcomer(sequence.number, request.prompt, request.output, request.sampling)
        )
        self._waiting.append(sequence)

    def abort(self, request_id: str) -> None:
        """Forget a request; nothing more is said of it."""
        sequence = self._by_id.pop(request_id, None)
        if sequence is not None:
            self._remove(sequence)

    def plan(self) -> Plan:
        """The next step; it may have nothing to compute."""
        parts: list[Part] = []
        budget = self.limits.max_chunk
        decoding = [s for s in self._running if s.pending == 1]
        prefilling = [s for s in self._running if s.pending > 1]
        for sequence in decoding:
            self._schedule(sequence, 1, parts)
        for sequence in prefilling:
            budget -= self._schedule(sequence, budget, parts)
        while budget > 0 and (newcomer := self._admit()):
            budget -= self._schedule(newcomer, budget, parts)
        newcomers, self._newcomers = self._newcomers, []
        dropped, self._dropped = self._dropped, []
        return Plan(tuple(parts), tuple(newcomers), tuple(dropped))

    def apply(self, plan: Plan, results: Iterable[Choice | Scores]) -> Sequence[StepOutput]:
        """Take the results of a step; returns what to tell."""
        by_number = {sequence.number: sequence for sequence in self._running}
        for part in plan.parts:
            by_number[part.number].computed += len(part.tokens)
        starts = {part.number: part.start for part in plan.parts}
        for result in results:
            sequence = by_number[result.number]
            if isinstance(result, Scores):
                self._tell_scores(sequence, result, starts[result.number])
            else:
                self._append(sequence, result)
        outputs, self._outputs = self._outputs, []
        return outputs

    def _tell_scores(self, sequence: _Sequence, scores: Scores, start: int) -> None:
        """A sequence that was preempted scores the beginning of its prompt again."""
        fresh = scores.logprobs[max(sequence.scored - start, 0) :]
        sequence.scored += len(fresh)
        self._outputs.append(StepOutput(sequence.request.id, prompt_logprobs=fresh))

    def _append(self, sequence: _Sequence, choice: Choice) -> None:
        sequence.tokens.append(choice.token)
        self._generated += 1
        finish = sequence.finish(self.limits.max_length)
        logprobs = () if choice.logprob is None else (choice.logprob,)
        request_id = sequence.request.id
        self._outputs.append(StepOutput(request_id, (choice.token,), logprobs, finish))
        if finish:
            del self._by_id[request_id]
            self._remove(sequence)

    def _admit(self) -> _Sequence | None:
        """Start the oldest that waits, if there is room for all its tokens and one more."""
        if not self._waiting or len(self._running) >= self.limits.max_batch:
            return None
        if _blocks_for(len(self._waiting[0].tokens) + 1) > len(self._free):
            return None
        sequence = self._waiting.popleft()
        self._running.append(sequence)
        return sequence

    def _schedule(self, sequence: _Sequence, budget: int, parts: list[Part]) -> int:
        """Add the sequence's next tokens to the step, at most `budget`; returns how many."""
        count = min(sequence.pending, budget)
        if count <= 0 or sequence not in self._running:
            return 0
        stop = sequence.computed + count
        if not self._provide(sequence, _blocks_for(stop), parts):
            return 0
        parts.append(
            Part(
                number=sequence.number,
                tokens=tuple(sequence.tokens[sequence.computed : stop]),
                start=sequence.computed,
                blocks=tuple(sequence.blocks),
                sample=stop == len(sequence.tokens),
                score=sequence.to_score(stop),
            )
        )
        return count

    def _provide(self, sequence: _Sequence, blocks: int, parts: list[Part]) -> bool:
        """Make the sequence have so many blocks, at the cost of younger ones or of itself."""
        while blocks > len(sequence.blocks) + len(self._free):
            youngest = max(self._running, key=lambda s: s.number)
            self._preempt(youngest)
            parts[:] = [part for part in parts if part.number != youngest.number]
            if youngest is sequence:
                return False
        while len(sequence.blocks) < blocks:
            sequence.blocks.append(self._free.pop())
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self._preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        self._waiting.appendleft(sequence)

    def _remove(self, sequence: _Sequence) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release(sequence)
        self._dropped.append(sequence.number)

    def _release(self, sequence: _Sequence) -> None:
        self._free.extend(sequence.blocks)
        sequence.blocks.clear()
        sequence.computed = 0


def _blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK)
