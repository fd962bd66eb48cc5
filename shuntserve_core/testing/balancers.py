"""The contract of balancers, for authors of plugins to run against their own.

class TestMine(BalancerContract):
    def make_balancer(self):
        return MyBalancer()
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from attrs import evolve

from shuntserve_core.interfaces.balancer import Balancer, Candidate


def pick_many(
    balancer: Balancer, candidates: Sequence[Candidate], count: int, *, length: int = 100
) -> list[str]:
    """Names picked for `count` requests; each stays until its pipeline has done its work.

    Time goes on by one request of the whole cluster's throughput a pick.
    """
    done = dict.fromkeys((c.name for c in candidates), 0.0)
    sent: Counter[str] = Counter()
    total = sum(c.throughput for c in candidates) or 1.0
    picked = []
    for _ in range(count):
        now = []
        for c in candidates:
            done[c.name] = min(sent[c.name], done[c.name] + c.throughput / total)
            left = sent[c.name] - done[c.name]
            now.append(evolve(c, in_flight=round(left), tokens=round(left * length)))
        name = balancer.pick(now)
        sent[name] += 1
        picked.append(name)
    return picked


class BalancerContract:
    """Subclass, and say which balancer."""

    def make_balancer(self) -> Balancer:
        """A new one, with options as you like."""
        raise NotImplementedError

    def candidates(self) -> list[Candidate]:
        """Pipelines of unequal throughput."""
        rates = (0.5, 2.0, 3.5)
        return [Candidate(f"p{i}", rate, 8, 0, 0) for i, rate in enumerate(rates)]

    def test_it_picks_one_of_the_candidates(self) -> None:
        """Whichever there are."""
        balancer, rng = self.make_balancer(), random.Random(1)
        for _ in range(300):
            some = rng.sample(self.candidates(), rng.randint(1, 3))
            assert balancer.pick(some) in {c.name for c in some}

    def test_nobody_starves(self) -> None:
        """Under load every pipeline gets some."""
        picked = pick_many(self.make_balancer(), self.candidates(), 600)
        assert set(picked) == {c.name for c in self.candidates()}

    def test_pipelines_come_and_go(self) -> None:
        """A forgotten name may come back, and unknown ones may be forgotten."""
        balancer, candidates = self.make_balancer(), self.candidates()
        pick_many(balancer, candidates, 20)
        balancer.forget("p1")
        balancer.forget("never seen")
        assert "p1" not in pick_many(balancer, [candidates[0], candidates[2]], 20)
        assert "p1" in pick_many(balancer, candidates, 200)

    def test_nothing_estimated_is_no_crash(self) -> None:
        """Pipelines of throughput 0 still share the work."""
        candidates = [evolve(c, throughput=0.0) for c in self.candidates()]
        assert len(pick_many(self.make_balancer(), candidates, 30)) == 30
