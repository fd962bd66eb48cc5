"""The journal of a request: enough to go on with it on any engine.

It holds token ids only.  Text (detokenization, stop strings, what was sent) is derived from it by
the front door, which sees an unbroken row of tokens whatever happens to engines.
"""

from __future__ import annotations

from attrs import define, evolve, field

from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput, TokenLogprob


@define
class Journal:
    """One sequence: what was asked, and every token generated so far."""

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    tenant: str = ""
    """Who it is for: tenants share the cluster fairly."""
    weight: float = 1.0
    """The tenant's share, beside others'."""
    cache_salt: str = ""
    """As in `EngineRequest`."""
    group: str = ""
    """What the client asked for in one go has one name here; empty: it is alone."""
    output: list[int] = field(factory=list)
    logprobs: list[TokenLogprob] = field(factory=list)
    """One for each token of `output` where asked for, else empty."""
    prompt_logprobs: list[TokenLogprob] = field(factory=list)
    """Where asked for, one for each token of the prompt but the first, as far as they came."""
    finish: str | None = None
    error: str = ""
    attempts: int = 0
    """Engines that it was sent to."""
    waited: float | None = None
    """Seconds from submission until it was sent to the first of them; None before."""
    status: int = 200
    """With `error`, whose fault it is, as an HTTP status: 400 the request's, 500 the engine's, 503
    nobody had room."""
    code: str = ""
    """With `error`, a word for what happened, where there is one: `kills_engines`."""
    retry_after: float | None = None
    """With `error`, seconds after which it may work; None if it may not."""

    def record(self, step: StepOutput) -> None:
        """Add what an engine step produced."""
        self.output.extend(step.tokens)
        if step.logprobs:
            self.logprobs.extend(step.logprobs)
        if step.prompt_logprobs:
            self.prompt_logprobs.extend(step.prompt_logprobs)
        if step.finish is not None:
            self.finish, self.error = step.finish, step.error

    def request(self) -> EngineRequest:
        """The request as the next engine must see it: generated tokens as output tokens.

        Logprobs of the prompt come before the first token, so after it nobody asks again.
        """
        sampling = self.sampling
        if self.output and sampling.prompt_logprobs is not None:
            sampling = evolve(sampling, prompt_logprobs=None)
        return EngineRequest(
            id=f"{self.id}.{self.attempts}" if self.attempts else self.id,
            prompt=self.prompt,
            sampling=sampling,
            output=tuple(self.output),
            cache_salt=self.cache_salt,
        )

    def ended(self, max_length: int) -> str | None:
        """Why the output is complete although no engine said so, or None if it is not.

        An engine can be lost between a last token and its `finish`.
        """
        if self.output and self.output[-1] in self.sampling.stop_token_ids:
            return "stop"
        full = len(self.prompt) + len(self.output) >= max_length
        return "length" if full or self.finished_by_length else None

    @property
    def finished_by_length(self) -> bool:
        """Whether no token may follow, so that there is nothing left to resume."""
        return len(self.output) >= self.sampling.max_tokens
