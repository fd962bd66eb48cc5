"""An engine that only pretends: right timing, right protocol, made-up tokens.

For load tests of everything else.  Token k of an output is a function of the prompt, k and, unless
it is greedy, the sampling parameters, so that a resumed request can be checked to go on exactly
where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import attrs
from attrs import field, frozen
from attrs.validators import ge, optional

from shuntserve_core.interfaces.engine import EngineLaunch, WorkerCommand
from shuntserve_core.types.features import Feature

FEATURES: frozenset[str] = frozenset(
    {
        Feature.SAMPLING,
        Feature.TOP_P,
        Feature.TOP_K,
        Feature.MIN_P,
        Feature.MIN_TOKENS,
        Feature.LOGPROBS,
        Feature.RESUME,
    }
)
"""What made-up probabilities allow.  Penalties and biases would find nothing to change: tokens
seldom come twice."""


@frozen
class SimulatedSpec:
    """What the worker process is told."""

    engine_id: str
    model: str
    vocab: int
    max_batch: int
    max_length: int
    link_token: str
    host: str
    ttft: float
    tpot: float
    throughput: float
    step_tokens: int
    start: float


@frozen
class Simulated:
    """Answers with the estimate's timing."""

    ttft: float | None = field(default=None, validator=optional(ge(0)))
    """Seconds from the start of a request to its first token, instead of the estimate's."""
    tpot: float | None = field(default=None, validator=optional(ge(0)))
    """Seconds between tokens of a request, instead of the estimate's."""
    throughput: float | None = field(default=None, validator=optional(ge(0)))
    """Requests that may start per second, instead of the estimate's; 0 is no limit."""
    scale: float = field(default=1.0, validator=ge(0))
    """Factor on every duration; 0 is as fast as the process can."""
    step_tokens: int = field(default=1, validator=ge(1))
    """Tokens of a request in each step, as with speculative decoding."""
    start: float = field(default=0.0, validator=ge(0))
    """Seconds that it pretends to read weights; not scaled."""
    vocab: int = field(default=0, validator=ge(0))
    """Made-up tokens are below this; 0 is the model's vocabulary."""

    needs_weights: bool = field(default=False, init=False)
    features: frozenset[str] = field(default=FEATURES, init=False)

    def workers(self, launch: EngineLaunch) -> Sequence[WorkerCommand]:
        """One process, on the first rank's node, that pretends to be all ranks."""
        spec = json.dumps(attrs.asdict(self.spec(launch)))
        return [
            WorkerCommand(
                node=launch.ranks[0].node,
                argv=(sys.executable, "-m", "shuntserve_plugins.engines.simulated_worker"),
                stdin=spec + "\n",
                ranks=tuple(range(len(launch.ranks))),
            )
        ]

    def spec(self, launch: EngineLaunch) -> SimulatedSpec:
        """The durations to use, scaled."""
        estimate = launch.stage_seconds
        throughput = _first(self.throughput, estimate.get("throughput_rps"))
        return SimulatedSpec(
            engine_id=launch.engine_id,
            model=launch.model.name,
            vocab=self.vocab or launch.model.vocab,
            max_batch=launch.max_batch,
            max_length=launch.max_length,
            link_token=launch.link_token,
            host=launch.ranks[0].host,
            ttft=_first(self.ttft, estimate.get("ttft")) * self.scale,
            tpot=_first(self.tpot, estimate.get("tpot")) * self.scale,
            throughput=throughput / self.scale if self.scale else 0.0,
            step_tokens=self.step_tokens,
            start=self.start,
        )


def _first(option: float | None, estimated: float | None) -> float:
    return option if option is not None else estimated or 0.0
