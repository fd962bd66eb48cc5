"""What is asked of a placement: requests, limits on latency, and the objective."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, gt, in_, optional


@frozen
class Workload:
    """Requests by their lengths."""

    input_tokens: int = field(validator=ge(1))
    """Mean prompt length."""
    output_tokens: int = field(validator=ge(1))
    """Mean answer length."""
    max_length: int = field(default=8192, validator=ge(1))
    """Longest prompt and answer together that an engine must accept, in tokens."""
    lengths: tuple[tuple[int, int], ...] = ()
    """A sample of (prompt, answer) lengths, if known; empty means that all are the mean."""


@frozen
class Slo:
    """Limits on latency; None is no limit."""

    ttft: float | None = field(default=None, validator=optional(gt(0)))
    """Seconds to the first token."""
    tpot: float | None = field(default=None, validator=optional(gt(0)))
    """Seconds for each further token."""
    latency: float | None = field(default=None, validator=optional(gt(0)))
    """Seconds for a whole request that is alone in the pipeline."""
    mode: str = field(default="soft", validator=in_(("soft", "hard")))
    """`soft` lowers a pipeline's score by its overrun; `hard` refuses the pipeline."""

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in (self.ttft, self.tpot, self.latency))


@frozen
class Objective:
    """What an optimizer maximises or minimises."""

    kind: str = field(
        default="throughput", validator=in_(("throughput", "throughput-per-dollar", "cost"))
    )
    """`throughput`: requests per second of all pipelines; `throughput-per-dollar`: the same per
    $/h of the instances used; `cost`: least $/h that reaches `rate`."""
    rate: float | None = field(default=None, validator=optional(gt(0)))
    """Requests per second demanded, for `cost`."""
    budget: float | None = field(default=None, validator=optional(gt(0)))
    """Most that may be spent, $ per hour."""
    slo: Slo = field(factory=Slo)
    """Limits on latency."""
