"""Tokens without a model: at each place of an output a made-up distribution to draw from.

The first candidate is a function of the prompt and the place, the others follow it in the
vocabulary, and each is half as probable as the one before.
"""

from __future__ import annotations

import math
from itertools import accumulate

from shuntserve_core.types.request import SamplingParams, TokenLogprob

CANDIDATES = 20
"""As many as logprobs can be asked for."""
_MASK = 2**64 - 1
_TOTAL = 2 - 2.0 ** (1 - CANDIDATES)
_LOGPROBS = tuple(-place * math.log(2) - math.log(_TOTAL) for place in range(CANDIDATES))


def mixed(base: int, k: int) -> int:
    """64 bits for place `k` of what belongs to `base` (splitmix64)."""
    x = (base + (k + 1) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def drawn(sampling: SamplingParams, base: int, k: int, vocab: int) -> int:
    """Which candidate comes at place `k`: 0 unless it is drawn, by the seed."""
    most = min(CANDIDATES, vocab)
    if sampling.temperature <= 0 or most == 1:
        return 0
    weights = [2.0 ** (-place / sampling.temperature) for place in range(most)]
    left = _left(sampling, weights)
    reached = list(accumulate(weights[:left]))
    point = mixed(base ^ (sampling.seed << 32) ^ 0x5EED, k) / 2**64 * reached[-1]
    return next(place for place, sum_ in enumerate(reached) if point < sum_)


def _left(sampling: SamplingParams, weights: list[float]) -> int:
    """How many of the most probable the filters leave; at least one."""
    count = len(weights) if sampling.top_k <= 0 else min(len(weights), sampling.top_k)
    count = sum(weight >= sampling.min_p for weight in weights[:count])
    if sampling.top_p < 1:
        total, before = sum(weights[:count]), 0.0
        for place, weight in enumerate(weights[:count]):
            if before >= sampling.top_p * total:
                return max(place, 1)
            before += weight
    return max(count, 1)


def logprob(first: int, place: int, alternatives: int, vocab: int) -> TokenLogprob:
    """Of candidate `place`, beside the `alternatives` most probable ones."""
    top = [((first + i) % vocab, _LOGPROBS[i]) for i in range(min(alternatives, vocab))]
    return TokenLogprob(_LOGPROBS[min(place, CANDIDATES - 1)], top)
