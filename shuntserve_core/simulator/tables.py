"""What steps cost on every stage of a pipeline, tabulated from an estimator.

An estimator takes a tenth of a millisecond for one step of one stage; a simulation makes millions.
Tables are filled as steps of new sizes turn up.  They use that a step's seconds are a sum of what
depends on its tokens, on its prompts' ends, on the contexts that decodes read (in proportion), and
on the attention of prompts, which grows by a factor when pairs and contexts both do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from shuntserve_core.interfaces.estimator import Position
from shuntserve_core.interfaces.layer import EngineStep, StepPredictor
from shuntserve_core.simulator.microbatch import Prefill
from shuntserve_core.simulator.profile import MeasuredSteps
from shuntserve_core.types import StageKind

Seconds = list[float]
"""One entry a stage."""

FINE, GRAIN = 64, 8
"""Up to FINE tokens are tabulated each, above that in multiples of GRAIN, rounded up."""
CONTEXT = 1 << 16
"""Tokens at which the slope of attention over contexts is taken."""
RATIOS = tuple(2.0 ** (i / 4) for i in range(-4, 65))
"""Pairs over context at which the attention of prompts is tabulated."""


class StepTable(Protocol):
    """Seconds of steps on every stage."""

    def decode(self, requests: int) -> tuple[Seconds, Seconds]:
        """Of a step in which so many requests decode: seconds, and seconds per cached token."""
        ...

    def mixed(self, prompts: Prefill, requests: int, context: int) -> Seconds:
        """Of a step with prompts, in which `requests` decode over `context` cached tokens."""
        ...


class PredictedSteps:
    """From an estimator's `step_seconds`."""

    def __init__(self, predictor: StepPredictor, stages: Sequence[tuple[StageKind, int]]) -> None:
        last = len(stages) - 1
        placed = [(kind, Position(i == 0, i == last), n) for i, (kind, n) in enumerate(stages)]
        self._classes = list(dict.fromkeys(placed))
        self._stage_class = [self._classes.index(where) for where in placed]
        self._predictor = predictor
        self._tokens: dict[int, list[float]] = {}
        self._ends: dict[int, list[float]] = {}
        self._decode: dict[int, tuple[list[float], list[float]]] = {}
        self._slope = [
            (with_context - without) / CONTEXT
            for with_context, without in zip(
                self._ask(EngineStep(decodes=1, decode_context=CONTEXT)),
                self._ask(EngineStep(decodes=1)),
                strict=True,
            )
        ]
        self._pairs = self._attention()

    def decode(self, requests: int) -> tuple[Seconds, Seconds]:
        """As `StepTable.decode`."""
        known = self._decode.get(requests)
        if known is None:
            fixed = self._ask(EngineStep(decodes=requests))
            known = self._decode[requests] = (self._spread(fixed), self._spread(self._slope))
        return known

    def mixed(self, prompts: Prefill, requests: int, context: int) -> Seconds:
        """As `StepTable.mixed`."""
        tokens = prompts.tokens + requests
        if tokens > FINE:
            tokens = -(-tokens // GRAIN) * GRAIN
        base, ends = self._tokens_of(tokens), self._ends_of(prompts.ended + requests)
        low, share = _between(prompts.pairs / max(prompts.context, 1))
        read = prompts.context
        seconds = [
            base[i]
            + ends[i]
            + read * (pairs[low] * (1 - share) + pairs[low + 1] * share)
            + context * self._slope[i]
            for i, pairs in enumerate(self._pairs)
        ]
        return self._spread(seconds)

    def _ask(self, step: EngineStep) -> list[float]:
        return [self._predictor.step_seconds(*where, step) for where in self._classes]

    def _spread(self, by_class: Sequence[float]) -> list[float]:
        return [by_class[index] for index in self._stage_class]

    def _tokens_of(self, tokens: int) -> list[float]:
        known = self._tokens.get(tokens)
        if known is None:
            known = self._tokens[tokens] = self._ask(EngineStep(prompt_tokens=tokens))
        return known

    def _ends_of(self, ended: int) -> list[float]:
        """What logits and host work of so many requests add to a step without any."""
        known = self._ends.get(ended)
        if known is None:
            tokens = max(ended, 1)
            with_ends = self._ask(EngineStep(prompt_tokens=tokens, prompts_ended=ended))
            without = self._tokens_of(tokens)
            known = [a - b for a, b in zip(with_ends, without, strict=True)]
            self._ends[ended] = known
        return known

    def _attention(self) -> list[list[float]]:
        """Seconds per token of context at each of RATIOS, for each class of stages."""
        without = self._ask(EngineStep(prompt_tokens=1))
        columns = []
        for ratio in RATIOS:
            step = EngineStep(1, prompt_pairs=ratio * CONTEXT, prompt_context=CONTEXT)
            found = self._ask(step)
            columns.append([(a - b) / CONTEXT for a, b in zip(found, without, strict=True)])
        return [list(row) for row in zip(*columns, strict=True)]


def _between(ratio: float) -> tuple[int, float]:
    """Index into RATIOS, and how far on the way to the next one."""
    place = (math.log2(ratio) + 1) * 4 if ratio > RATIOS[0] else 0.0
    low = min(int(place), len(RATIOS) - 2)
    share = (ratio - RATIOS[low]) / (RATIOS[low + 1] - RATIOS[low])
    return low, share


class MeasuredTable:
    """From measured steps: one stage that stands for the whole pipeline."""

    def __init__(self, measured: MeasuredSteps) -> None:
        self._measured = measured
        self._slope = [measured.context_token]

    def decode(self, requests: int) -> tuple[Seconds, Seconds]:
        """As `StepTable.decode`."""
        return [self._measured.step + requests * self._measured.sequence], self._slope

    def mixed(self, prompts: Prefill, requests: int, context: int) -> Seconds:
        """As `StepTable.mixed`."""
        m = self._measured
        per_request = requests * m.sequence + prompts.ended * m.prompt
        per_token = prompts.tokens * m.prompt_token + context * m.context_token
        return [m.step + m.prompt_step + per_request + per_token]
