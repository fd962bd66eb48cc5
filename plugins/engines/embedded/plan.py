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
    score: tuple[int, ...] = ()
    """Tokens behind each of the first ones, whose logprobs are wanted."""


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


@frozen
class Scores:
    """Logprobs of tokens that a part was to score."""

    number: int
    logprobs: tuple[TokenLogprob, ...]


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
        parts=tuple(
            Part(n, tuple(t), s, tuple(b), w, tuple(c)) for n, t, s, b, w, c in data["parts"]
        ),
        added=tuple(cattrs.structure(one, Newcomer) for one in data["added"]),
        dropped=tuple(data["dropped"]),
    )


def pack_results(results: list[Choice | Scores]) -> list[Any]:
    """As plain data."""
    return [attrs.astuple(result) for result in results]


def unpack_results(data: list[Any]) -> list[Choice | Scores]:
    """From plain data."""
    return [
        Scores(one[0], tuple(map(_logprob, one[1]))) if len(one) == 2 else _choice(*one)
        for one in data
    ]


def _choice(number: int, token: int, logprob: Any) -> Choice:
    return Choice(number, token, _logprob(logprob) if logprob else None)


def _logprob(data: Any) -> TokenLogprob:
    logprob, top, rank = data
    return TokenLogprob(logprob, [tuple(pair) for pair in top], rank)
