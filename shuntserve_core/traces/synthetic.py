"""Requests that nobody sent: arrivals by a law, lengths by a law or drawn from a trace."""

from __future__ import annotations

import numpy as np

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.traces.workload import Requests


def gamma_arrivals(count: int, rate: float, variation: float, rng: np.random.Generator) -> Floats:
    """Seconds of `count` arrivals, `rate` a second on average.

    Gaps follow a Gamma law whose standard deviation is `variation` times its mean: 1 is Poisson,
    more is bursty, 0 is a clock.
    """
    mean = 1 / rate
    if variation == 0:
        return np.arange(count, dtype=np.float64) * mean
    shape = 1 / variation**2
    arrivals: Floats = np.cumsum(rng.gamma(shape, mean / shape, count))
    return arrivals


def drawn_lengths(
    sample: tuple[tuple[int, int], ...], count: int, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """`count` (prompt, answer) pairs drawn from a sample, with repetition."""
    pairs = np.asarray(sample, dtype=np.int64)[rng.integers(len(sample), size=count)]
    return pairs[:, 0], pairs[:, 1]


def lognormal_lengths(
    means: tuple[float, float], variation: float, longest: int, rng: np.random.Generator, count: int
) -> tuple[Ints, Ints]:
    """Lengths by a log-normal law of these means, at least 1, each cut off at `longest`.

    `variation` is the standard deviation over the mean; that of the Azure conversation trace is
    about 1 for prompts and 0.7 for answers.
    """
    sigma = np.sqrt(np.log1p(variation**2))
    prompt, answer = (
        np.clip(np.rint(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)), 1, longest)
        for mean in means
    )
    return prompt.astype(np.int64), answer.astype(np.int64)


def synthetic(
    count: int,
    rate: float,
    sample: tuple[tuple[int, int], ...],
    *,
    variation: float = 1.0,
    seed: int = 0,
) -> Requests:
    """Requests with Gamma arrivals and lengths drawn from `sample`; the same for the same seed."""
    rng = np.random.default_rng(seed)
    arrivals = gamma_arrivals(count, rate, variation, rng)
    return Requests.of(arrivals, *drawn_lengths(sample, count, rng))
