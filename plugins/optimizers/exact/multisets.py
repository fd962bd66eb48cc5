"""Every set of stages that the instances can hold, as counts of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from attrs import define

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.types import Cluster, Offer, StageKind


@define(frozen=True, slots=False, eq=False)
class Resources:
    """What stages take from the instances, as rows of linear constraints.

    Stages of degrees t1 | t2 | ... (powers of two) fit into n instances of g GPUs exactly if, for
    each degree p, those of degree p or more take no more than n·floor(g / p)·p GPUs: placed
    widest first, each finds an instance whose free GPUs are a multiple of p.  A stage on all g
    GPUs takes an instance's whole share of every row.  Where p divides g the row for p follows
    from that for 1.
    """

    cluster: Cluster
    kinds: Sequence[StageKind]

    @cached_property
    def rows(self) -> list[tuple[int, int, int]]:
        """(offer, p, GPUs that an instance offers to stages of degree p or more)."""
        found = []
        for index, offer in enumerate(self.cluster.offers):
            gpus = offer.instance.gpu_count
            degrees = {k.tensor_parallel for k in self.kinds if k.instance == offer.instance.name}
            for p in sorted(degrees - {gpus} | {1}) if degrees else ():
                if p == 1 or gpus % p:
                    found.append((index, p, gpus // p * p))
        return found

    @cached_property
    def usage(self) -> Floats:
        """(kinds, rows): what one stage of each kind takes."""
        table = np.zeros((len(self.kinds), len(self.rows)))
        for column, (index, p, share) in enumerate(self.rows):
            instance = self.cluster.offers[index].instance
            for row, kind in enumerate(self.kinds):
                if kind.instance != instance.name:
                    continue
                if kind.tensor_parallel == instance.gpu_count:
                    table[row, column] = share
                elif kind.tensor_parallel >= p:
                    table[row, column] = kind.tensor_parallel
        return table

    @cached_property
    def shares(self) -> Floats:
        """(rows,): what one instance offers."""
        return np.array([share for _, _, share in self.rows], dtype=np.float64)

    @cached_property
    def owners(self) -> Ints:
        """(rows,): the offer each row belongs to."""
        return np.array([index for index, _, _ in self.rows], dtype=np.int64)

    @cached_property
    def counts(self) -> Floats:
        """(offers,): instances that may be used."""
        return np.array([offer.count for offer in self.cluster.offers], dtype=np.float64)

    @cached_property
    def prices(self) -> Floats:
        """(offers,): $ per hour of an instance."""
        return np.array([offer.price for offer in self.cluster.offers], dtype=np.float64)

    @cached_property
    def available(self) -> Floats:
        """(rows,): what all instances offer."""
        return self.shares * self.counts[self.owners]


def _of_offer(offer: Offer, degrees: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    """Counts of stages of each degree, widest last, that fit into an offer's instances."""
    gpus = offer.instance.gpu_count

    def fits(counts: Sequence[int]) -> bool:
        whole = sum(n for n, t in zip(counts, degrees, strict=True) if t == gpus)
        for p in degrees:
            wide = sum(n * t for n, t in zip(counts, degrees, strict=True) if p <= t < gpus)
            if wide > (offer.count - whole) * (gpus // p * p):
                return False
        return whole <= offer.count

    def extend(prefix: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(prefix) == len(degrees):
            yield prefix
            return
        rest = len(degrees) - len(prefix) - 1
        for n in range(most - sum(prefix) + 1):
            longer = (*prefix, n)
            if not fits(longer + (0,) * rest):
                return
            yield from extend(longer)

    yield from extend(())


def count_multisets(resources: Resources, depth: int) -> float:
    """How many sets of at most `depth` stages there are, at most (packing is not looked at)."""
    ways: Floats = np.zeros(depth + 1)
    ways[0] = 1
    for kind in resources.kinds:
        offer = next(o for o in resources.cluster.offers if o.instance.name == kind.instance)
        most = min(depth, offer.count * (offer.instance.gpu_count // kind.tensor_parallel))
        ways = np.convolve(ways, np.ones(most + 1))[: depth + 1].astype(np.float64)
    return float(ways.sum())


def multisets(resources: Resources, depth: int) -> Ints:
    """All sets of 1 to `depth` stages: counts (sets, kinds)."""
    sets = np.zeros((1, 0), dtype=np.int64)
    for offer in resources.cluster.offers:
        degrees = [k.tensor_parallel for k in resources.kinds if k.instance == offer.instance.name]
        if not degrees:
            continue
        options = np.array(list(_of_offer(offer, degrees, depth)), dtype=np.int64)
        left = np.repeat(sets, len(options), axis=0)
        right = np.tile(options, (len(sets), 1))
        sets = np.concatenate([left, right], axis=1)
        sets = sets[sets.sum(axis=1) <= depth]
    return np.asarray(sets[sets.sum(axis=1) > 0])
