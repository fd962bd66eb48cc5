"""The journal of a request: enough to go on with it on any engine.

It holds token ids only.  Text (detokenization, stop strings, what was sent) is derived from it by
the front door, which sees an unbroken row of tokens whatever happens to engines.
"""

from __future__ import annotations

from attrs import define, field

from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput, TokenLogprob


@define
class Journal:
    """One sequence: what was asked, and every token generated so far."""

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    output: list[int] = field(factory=list)
    logprobs: list[TokenLogprob] = field(factory=list)
    """One for each token of `output` where asked for, else empty."""
    finish: str | None = None
    error: str = ""
    attempts: int = 0
    """Engines that it was sent to."""

    def record(self, step: StepOutput) -> None:
        """Add what an engine step produced."""
        self.output.extend(step.tokens)
        self.logprobs.extend(step.logprobs)
        if step.finish is not None:
            self.finish, self.error = step.finish, step.error

    def request(self) -> EngineRequest:
        """The request as the next engine must see it: generated tokens as output tokens."""
        return EngineRequest(
            id=f"{self.id}.{self.attempts}" if self.attempts else self.id,
            prompt=self.prompt,
            sampling=self.sampling,
            output=tuple(self.output),
        )

    @property
    def finished_by_length(self) -> bool:
        """Whether no token may follow, so that there is nothing left to resume."""
        return len(self.output) >= self.sampling.max_tokens
