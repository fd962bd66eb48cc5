"""When the tokens of answers came: what latencies are told from."""

from __future__ import annotations

from attrs import define, field

from shuntserve_plugins.frontdoors.openai.tallies import Tally, steps_1_2_5

# Buckets as vLLM 0.32 has them (vllm/v1/metrics/buckets.py), so that its dashboards stay true.
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
BETWEEN_TOKENS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
REASONS = ("stop", "length", "abort", "error", "repetition")
LONGEST = 1 << 20
"""Tokens, where nobody knows yet how long sequences may get."""


@define(eq=False)
class Pace:
    """One answer's; times are of `time.perf_counter`."""

    arrived: float
    """When its request came."""
    submitted: float
    """When it was handed to the cluster."""
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0


class Latencies:
    """Of all answers of one front door, in seconds and in tokens."""

    def __init__(self, max_length: int) -> None:
        lengths = tuple(steps_1_2_5(max_length or LONGEST))
        self.first_token = Tally(FIRST_TOKEN)
        self.between_tokens = Tally(BETWEEN_TOKENS)
        self.per_token = Tally(BETWEEN_TOKENS)
        self.request, self.queue = Tally(REQUEST), Tally(REQUEST)
        self.inference, self.prefill, self.decode = Tally(REQUEST), Tally(REQUEST), Tally(REQUEST)
        self.prompt, self.generation = Tally(lengths), Tally(lengths)
        self.max_tokens, self.choices = Tally(lengths), Tally(CHOICES)
        self.prompt_tokens = self.generation_tokens = 0
        self.ended = dict.fromkeys(REASONS, 0)
        """Answers by why they ended."""

    def began(self, pace: Pace, prompt: int, tokens: int, now: float) -> None:
        """The first tokens came of an answer to a prompt of so many tokens."""
        pace.first = pace.last = now
        pace.tokens = tokens
        self.first_token.add(now - pace.arrived)
        self.prompt_tokens += prompt
        self.generation_tokens += tokens

    def more(self, pace: Pace, tokens: int, now: float) -> None:
        """Further tokens came."""
        self.between_tokens.add(now - pace.last)
        pace.last = now
        pace.tokens += tokens
        self.generation_tokens += tokens

    def finish(self, pace: Pace, wanted: Wanted, reason: str, now: float) -> None:
        """An answer ended, well or not."""
        self.ended[reason] += 1
        self.request.add(now - pace.arrived)
        self.prompt.add(wanted.prompt)
        self.generation.add(pace.tokens)
        self.max_tokens.add(wanted.max_tokens)
        self.choices.add(wanted.choices)
        if wanted.waited is None:
            return
        self.queue.add(wanted.waited)
        if pace.tokens:
            begun = pace.submitted + wanted.waited
            self.prefill.add(pace.first - begun)
            self.decode.add(pace.last - pace.first)
            self.inference.add(pace.last - begun)
            if pace.tokens > 1:
                self.per_token.add((pace.last - pace.first) / (pace.tokens - 1))


@define(eq=False)
class Wanted:
    """What an answer's request was, and how long it waited."""

    prompt: int
    """Tokens."""
    max_tokens: int
    choices: int
    """`n`."""
    waited: float | None = field(default=None)
    """Seconds until an engine had it; None if none ever had."""
