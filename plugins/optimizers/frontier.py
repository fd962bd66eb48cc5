"""One beam search for one pipeline: the dynamic programme of arXiv 2606.18600, a depth at a time.

All extensions of all pipelines that the beam keeps are scored together.  A pipeline of s stages
that does not hold all layers yet is scored as if these s stages were all there are; its last stage
hands on, like one in the middle, and computes no logits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from shuntserve_core.interfaces.estimator import Floats, Ints, Position
from shuntserve_core.planning.building import slo_factor
from shuntserve_core.types import Slo
from shuntserve_plugins.optimizers.common import FREE, Candidate, Pool
from shuntserve_plugins.optimizers.tables import StageTables

Keys = NDArray[np.uint64]


@frozen
class Limits:
    """What one search may use, and how it values a pipeline."""

    available: Ints
    """GPUs left of each instance type."""
    budget: float
    """Most $ per hour that the pipeline may cost."""
    per_dollar: bool
    """Whether the score is throughput over cost, rather than throughput."""
    slo: Slo
    top_k: int
    max_stages: int
    deadline: float
    """`time.monotonic()` after which the search ends as soon as it has found a pipeline."""


class Beam(NamedTuple):
    """The n pipelines of one depth that are kept."""

    kind: Ints
    """Index of each stage's kind: shape (n, depth)."""
    layers: Ints
    """Layers of each stage: shape (n, depth)."""
    placed: Ints
    """Layers of all stages: shape (n,)."""
    used: Ints
    """GPUs of each instance type: shape (n, instance types)."""
    key: Keys
    """A hash of the multiset of kinds: shape (n,)."""
    cost: Floats
    """$ per hour: shape (n,)."""
    rank: Ints
    """Rank of the least batch limit when another stage follows: shape (n,)."""
    score: Floats
    worth: Floats
    """Throughput after the SLO: shape (n,)."""


class Extensions(NamedTuple):
    """Candidates: pipelines of a beam with one more stage; arrays over candidates."""

    parent: Ints
    kind: Ints
    layers: Ints
    rank: Ints
    """Of the pipeline's batch."""
    completed: int
    """How many hold all layers: the last ones."""


def search(tables: StageTables, pool: Pool, limits: Limits) -> list[Candidate]:
    """Every pipeline of all layers that the beam holds at any depth, best score first."""
    hashes = np.random.default_rng(0)
    keys = hashes.integers(1 << 63, size=len(tables.kinds), dtype=np.uint64)
    beam = _empty(limits)
    found: list[tuple[float, Candidate]] = []
    for depth in range(1, limits.max_stages + 1):
        beam = _step(tables, pool, limits, keys, beam, depth)
        found += _completed(tables, pool, beam)
        if not len(beam.placed) or (found and time.monotonic() > limits.deadline):
            break
    return [candidate for _, candidate in sorted(found, key=lambda pair: -pair[0])]


def _empty(limits: Limits) -> Beam:
    """The beam of depth 0: one pipeline without stages."""
    none = np.zeros((1, 0), dtype=np.int64)
    return Beam(
        kind=none,
        layers=none,
        placed=np.zeros(1, dtype=np.int64),
        used=np.zeros((1, len(limits.available)), dtype=np.int64),
        key=np.zeros(1, dtype=np.uint64),
        cost=np.zeros(1),
        rank=np.full(1, np.iinfo(np.int64).max),
        score=np.zeros(1),
        worth=np.zeros(1),
    )


def _step(
    tables: StageTables, pool: Pool, limits: Limits, keys: Keys, beam: Beam, depth: int
) -> Beam:
    """Extend every pipeline of a beam by every kind and number of layers; keep the best."""
    candidates = _extensions(tables, pool, limits, beam, depth)
    cost = beam.cost[candidates.parent] + pool.price[candidates.kind]
    worth = _evaluate(tables, limits.slo, beam, candidates, depth)
    score = worth / np.maximum(cost, FREE) if limits.per_dollar else worth
    chosen = _select(tables, limits.top_k, keys, beam, candidates, score)
    parent, kind, layers = (part[chosen] for part in candidates[:3])
    open_limit = tables.ranks(Position(depth == 1, last=False))[kind, layers]
    return Beam(
        kind=np.column_stack([beam.kind[parent], kind]),
        layers=np.column_stack([beam.layers[parent], layers]),
        placed=beam.placed[parent] + layers,
        used=beam.used[parent] + pool.need[kind],
        key=beam.key[parent] + keys[kind],
        cost=cost[chosen],
        rank=np.minimum(beam.rank[parent], open_limit),
        score=score[chosen],
        worth=worth[chosen],
    )


def _extensions(
    tables: StageTables, pool: Pool, limits: Limits, beam: Beam, depth: int
) -> Extensions:
    """All candidates that fit what is left and hold at least one request; complete ones last.

    A batch limit never grows with layers, so what fits is every number up to some number.
    """
    left = limits.available - beam.used
    allowed = (left[:, None, :] >= pool.need).all(axis=2) & (beam.rank > 0)[:, None]
    allowed &= beam.cost[:, None] + pool.price <= limits.budget * (1 + 1e-12)
    parent, kind = np.nonzero(allowed)
    rest = tables.estimator.model.layers - beam.placed[parent]
    going_on = tables.ranks(Position(depth == 1, last=False))
    most = np.minimum((going_on[:, 1:] > 0).sum(axis=1)[kind], rest - 1).clip(min=0)
    ends = np.cumsum(most)
    layers = np.arange(1, most.sum() + 1) - np.repeat(ends - most, most)
    owner, of_kind = np.repeat(parent, most), np.repeat(kind, most)
    limit = going_on[of_kind, layers]
    ending = tables.ranks(Position(depth == 1, last=True))[kind, rest]
    done = np.flatnonzero((ending > 0) & (rest > 0))
    owner = np.concatenate([owner, parent[done]])
    return Extensions(
        parent=owner,
        kind=np.concatenate([of_kind, kind[done]]),
        layers=np.concatenate([layers, rest[done]]),
        rank=np.minimum(beam.rank[owner], np.concatenate([limit, ending[done]])),
        completed=len(done),
    )


def _evaluate(
    tables: StageTables, slo: Slo, beam: Beam, candidates: Extensions, depth: int
) -> Floats:
    """Throughput of every candidate, after the SLO."""
    busy = _last_busy(tables, candidates, depth)
    if depth > 1:
        parents = _parents_busy(tables, beam, candidates.parent, candidates.rank, depth)
        np.maximum(busy, parents, out=busy)
    batch, prefill, decode = tables.batches[candidates.rank], busy[:, 0], busy[:, 1]
    throughput: Floats = batch / tables.estimator.period(batch, depth, prefill, decode)
    if not slo.limited:
        return throughput
    ttft, tpot = tables.estimator.latencies(batch, depth, prefill, decode)
    return throughput * slo_factor(slo, _alone(tables, beam, candidates, depth), ttft, tpot)


def _last_busy(tables: StageTables, candidates: Extensions, depth: int) -> Floats:
    """Busy seconds of the new stage in prefill and decode: (n, 2)."""
    parts = [
        tables.busy(Position(depth == 1, last), depth, kind, layers, rank)
        for last, (_, kind, layers, rank) in _halves(candidates)
    ]
    return np.concatenate(parts)


def _halves(candidates: Extensions) -> Iterator[tuple[bool, tuple[Ints, ...]]]:
    """Candidates whose new stage is not the last of the model, then those where it is."""
    cut = len(candidates.parent) - candidates.completed
    yield False, tuple(part[:cut] for part in candidates[:4])
    yield True, tuple(part[cut:] for part in candidates[:4])


def _parents_busy(tables: StageTables, beam: Beam, parent: Ints, rank: Ints, depth: int) -> Floats:
    """Busy seconds of the slowest of a parent's stages, at each candidate's batch: (n, 2).

    Candidates share few pairs of parent and batch, and only those are computed.
    """
    ranks = len(tables.batches)
    pairs, where = _distinct(parent * ranks + rank, len(beam.placed) * ranks)
    owner, at = pairs // ranks, pairs % ranks
    slowest = np.zeros((len(pairs), 2))
    for stage in range(depth - 1):
        place = Position(stage == 0, last=False)
        kind, layers = beam.kind[owner, stage], beam.layers[owner, stage]
        np.maximum(slowest, tables.busy(place, depth, kind, layers, at), out=slowest)
    result: Floats = slowest.take(where, axis=0)
    return result


def _distinct(values: Ints, end: int) -> tuple[Ints, Ints]:
    """Distinct values out of 0 to `end`, sorted, and where among them each value is."""
    seen = np.zeros(end, dtype=np.bool_)
    seen[values] = True
    distinct = np.flatnonzero(seen)
    where = np.empty(end, dtype=np.int64)
    where[distinct] = np.arange(len(distinct))
    return distinct, where[values]


def _alone(tables: StageTables, beam: Beam, candidates: Extensions, depth: int) -> Floats:
    """Seconds of a request that is alone in the candidate."""
    parts = [
        tables.alone(Position(depth == 1, last), depth, kind, layers)
        for last, (_, kind, layers, _) in _halves(candidates)
    ]
    seconds = np.concatenate(parts)
    for stage in range(depth - 1):
        place = Position(stage == 0, last=False)
        of_parents = tables.alone(place, depth, beam.kind[:, stage], beam.layers[:, stage])
        seconds += of_parents[candidates.parent]
    return seconds


def _select(
    tables: StageTables,
    top_k: int,
    keys: Keys,
    beam: Beam,
    candidates: Extensions,
    score: Floats,
) -> Ints:
    """Indices of the `top_k` best candidates for each number of layers placed, one a multiset."""
    if not len(score):
        return np.zeros(0, dtype=np.int64)
    total, kinds = tables.estimator.model.layers, len(tables.kinds)
    pairs, column = _distinct(candidates.parent * kinds + candidates.kind, len(beam.key) * kinds)
    row = beam.placed[candidates.parent] + candidates.layers
    flat = row * len(pairs) + column
    table = np.full((total + 1, len(pairs)), -np.inf)
    table.put(flat, score)
    index = np.empty(table.shape, dtype=np.int32)
    index.put(flat, np.arange(len(score), dtype=np.int32))
    key = beam.key[pairs // kinds] + keys[pairs % kinds]
    rows = np.arange(total + 1)
    chosen = []
    for _ in range(top_k):
        best = table.argmax(axis=1)
        there = table[rows, best] > -np.inf
        chosen.append(index[rows[there], best[there]])
        table[key == key[best][:, None]] = -np.inf
    return np.concatenate(chosen)


def _completed(tables: StageTables, pool: Pool, beam: Beam) -> list[tuple[float, Candidate]]:
    """The pipelines of a beam that hold all layers and are worth something, with their scores."""
    done = (beam.placed == tables.estimator.model.layers) & (beam.worth > 0)
    return [
        (float(beam.score[n]), pool.candidate(beam.kind[n], beam.layers[n], beam.worth[n]))
        for n in np.flatnonzero(done)
    ]
