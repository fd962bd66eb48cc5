"""How an engine cuts a batch of requests into steps.

A pipeline of P stages holds G requests as K = min(G, P) micro-batches of b = G / K slots, which go
round one behind the other, as in vLLM.  A slot is taken by one request after another; a *turnover*
is the time in which every slot has served one request: what `StageWork` counts for all K together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shuntserve_plugins.estimators.roofline.lengths import Lengths


class Steps(NamedTuple):
    """The steps of one micro-batch in one turnover: so many of each kind, and their sizes."""

    prefill: Any
    """Steps with prompt tokens."""
    prefill_tokens: Any
    """All tokens of such a step."""
    prefill_rows: Any
    """Tokens of it that need logits; nearly the number of requests in it."""
    decode: Any
    """Steps without prompt tokens."""
    decode_tokens: Any
    """Tokens of such a step, one a request."""
    length: Any
    """Steps of the turnover: how long a slot waits for its next request, in steps."""


def mixed(lengths: Lengths, slots: Any, budget: int) -> Steps:
    """Chunked prefill: steps of at most `budget` tokens carry decodes and chunks of prompts.

    A request takes part in ⌈s / budget⌉ + o − 1 steps, more where the budget is the limit.  Prompts
    begin at random: with λ chunks a step on average, a share of 1 − exp(−λ) of the steps has any
    (Poisson), and what they carry is as little as the budget allows.
    """
    tokens = slots * (lengths.prompt + lengths.decode_steps)
    length = np.maximum(lengths.chunks + lengths.decode_steps, tokens / budget)
    decodes = slots * lengths.decode_steps / length
    prefill = _occupied(slots * lengths.chunks, length)
    room = np.maximum(budget - decodes, 1e-9)
    prefill = np.clip(np.maximum(prefill, slots * lengths.prompt / room), 0.0, length)
    return Steps(
        prefill=prefill,
        prefill_tokens=decodes + slots * lengths.prompt / prefill,
        prefill_rows=decodes + slots / prefill,
        # Without any decodes (answers of one token) there are no such steps.
        decode=(length - prefill) * np.minimum(decodes, 1.0),
        decode_tokens=np.maximum(decodes, 1.0),
        length=length,
    )


def separate(lengths: Lengths, slots: Any, budget: int) -> Steps:
    """Prefill first (vLLM before chunked prefill): whole prompts, or decodes, in a step.

    Prompts that wait together share a step of at most `budget` tokens, or of one prompt.
    """
    decode = lengths.decode_steps + 0 * slots
    most = np.maximum(budget / lengths.prompt, 1.0)
    steps = _occupied(slots * 1.0, np.maximum(decode, 1.0))
    prefill = np.maximum(np.maximum(steps, slots / most), 1.0)
    return Steps(
        prefill=prefill,
        prefill_tokens=slots * lengths.prompt / prefill,
        prefill_rows=slots / prefill,
        decode=decode,
        decode_tokens=slots * 1.0,
        length=decode + prefill,
    )


def stalled(steps: Steps, groups: Any) -> Any:
    """Decode steps of a micro-batch, in one turnover, that wait as long as a prefill step takes.

    Micro-batches go round in a line: none overtakes, and each has one step under way.  So a light
    step behind a heavy one comes out as late as that, and a round with any heavy step in it takes
    as long as one with none but heavy steps.  At a share φ of heavy steps that is a share
    1 − (1 − φ)^K of the rounds, of which only φ do the work.
    """
    share = np.clip(steps.prefill / steps.length, 0.0, 1.0)
    return steps.length * np.maximum(1 - (1 - share) ** groups - share, 0.0)


def _occupied(events: Any, steps: Any) -> Any:
    """Of `steps`, how many have at least one of so many events that fall on them at random."""
    return steps * -np.expm1(-events / steps)
