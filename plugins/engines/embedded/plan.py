"""A step, as rank 0 tells it to every rank, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import cattrs
from attrs import frozen

from shuntserve_core.types.request import SamplingParams, TokenLogprob

BLOCK = 16
"""Tokens of a block of KV memory, and positions of a tile of attention."""


@frozen
class Newcomer:
    """A sequence that the sampler has not seen."""

    number: int
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    sampling: SamplingParams


@frozen
class Part:
    """Tokens of one sequence to compute."""

    number: int
    tokens: tuple[int, ...]
    start: int
    """Position of the first of them."""
    blocks: tuple[int, ...]
    """The sequence's blocks of KV memory."""
    sample: bool
    """Whether the next token is wanted."""


@frozen
class Plan:
    """One step."""

    parts: tuple[Part, ...]
    added: tuple[Newcomer, ...] = ()
    dropped: tuple[int, ...] = ()
    """Sequences that the sampler may forget."""


@frozen
class Choice:
    """The next token of a sequence."""

    number: int
    token: int
    logprob: TokenLogprob | None = None


def pack_plan(plan: Plan) -> dict[str, Any]:
    """As plain data."""
    return {
        "parts": [attrs.astuple(part) for part in plan.parts],
        "added": [cattrs.unstructure(one) for one in plan.added],
        "dropped": plan.dropped,
    }


def unpack_plan(data: Mapping[str, Any]) -> Plan:
    """From plain data."""
    return Plan(
        parts=tuple(Part(n, tuple(t), s, tuple(b), w) for n, t, s, b, w in data["parts"]),
        added=tuple(cattrs.structure(one, Newcomer) for one in data["added"]),
        dropped=tuple(data["dropped"]),
    )


def pack_choices(choices: list[Choice]) -> list[Any]:
    """As plain data."""
    return [attrs.astuple(choice) for choice in choices]


def unpack_choices(data: list[Any]) -> list[Choice]:
    """From plain data."""
    return [
        Choice(number, token, TokenLogprob(logprob[0], [tuple(p) for p in logprob[1]]))
        if logprob
        else Choice(number, token)
        for number, token, logprob in data
    ]
