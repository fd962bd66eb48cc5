"""Shares of requests: in proportion to throughput where promised, whatever comes and goes."""

from __future__ import annotations

from collections import Counter

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.interfaces.balancer import Balancer, Candidate
from shuntserve_core.registry import Registry
from shuntserve_core.testing.balancers import BalancerContract, pick_many
from shuntserve_plugins.balancers.outstanding import LeastOutstanding
from shuntserve_plugins.balancers.plain import RoundRobin
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=6)


class TestWeightedRoundRobin(BalancerContract):
    def make_balancer(self) -> Balancer:
        return WeightedRoundRobin()


class TestLeastOutstanding(BalancerContract):
    def make_balancer(self) -> Balancer:
        return LeastOutstanding()


class TestRoundRobin(BalancerContract):
    def make_balancer(self) -> Balancer:
        return RoundRobin()


def candidates_of(weights: list[float]) -> list[Candidate]:
    return [Candidate(f"p{i}", weight, 99, 0, 0) for i, weight in enumerate(weights)]


@pytest.mark.parametrize("name", ["weighted-round-robin", "least-outstanding", "round-robin"])
def test_all_are_registered(name: str) -> None:
    assert Registry().get("balancer", name)().pick([Candidate("a", 1, 1, 0, 0)]) == "a"


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(0, 300))
def test_any_window_has_the_right_shares(weights: list[float], start: int) -> None:
    candidates, window = candidates_of(weights), 600
    picked = pick_many(WeightedRoundRobin(), candidates, start + window)[start:]
    counts = Counter(picked)
    for candidate in candidates:
        share = candidate.throughput / sum(weights)
        assert abs(counts[candidate.name] / window - share) <= 0.02


@settings(max_examples=60, deadline=None)
@given(WEIGHTS)
def test_nobody_waits_much_longer_than_its_share(weights: list[float]) -> None:
    candidates = candidates_of(weights)
    slowest = min(weights) / sum(weights)
    picked = pick_many(WeightedRoundRobin(), candidates, int(3 / slowest) + 1)
    assert set(picked) == {c.name for c in candidates}


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.lists(st.integers(0, 5), max_size=400))
def test_shares_hold_while_others_come_and_go(weights: list[float], away: list[int]) -> None:
    """Each pick, one pipeline is full or absent: the rest share by weight what it leaves."""
    candidates, balancer = candidates_of(weights), WeightedRoundRobin()
    expected = dict.fromkeys((c.name for c in candidates), 0.0)
    counts: Counter[str] = Counter()
    for gone in away:
        present = [c for i, c in enumerate(candidates) if i != gone] or candidates
        total = sum(c.throughput for c in present)
        for candidate in present:
            expected[candidate.name] += candidate.throughput / total
        counts[balancer.pick(present)] += 1
    for name, share in expected.items():
        assert abs(counts[name] - share) <= max(0.02 * len(away), 2 * len(candidates))


def test_requests_are_spread_in_time_and_not_in_bursts() -> None:
    picked = pick_many(WeightedRoundRobin(), candidates_of([3, 1]), 8)
    assert picked == ["p0", "p0", "p1", "p0"] * 2


def test_a_pipeline_that_comes_back_takes_no_burst() -> None:
    balancer = WeightedRoundRobin()
    two = candidates_of([1, 1])
    pick_many(balancer, two, 10)
    pick_many(balancer, two[:1], 100)
    assert Counter(pick_many(balancer, two, 10)) == {"p0": 5, "p1": 5}


def test_least_outstanding_counts_time_and_not_tokens() -> None:
    slow, fast = candidates_of([1, 4])
    pick = LeastOutstanding().pick
    assert pick([slow, fast]) == "p1"
    assert pick([evolve(slow, tokens=100), evolve(fast, tokens=300)]) == "p1"
    assert pick([evolve(slow, tokens=100), evolve(fast, tokens=500)]) == "p0"


def test_round_robin_takes_turns_and_newcomers_first() -> None:
    balancer, three = RoundRobin(), candidates_of([1, 5, 9])
    assert [balancer.pick(three[:2]) for _ in range(4)] == ["p0", "p1"] * 2
    assert [balancer.pick(three) for _ in range(4)] == ["p2", "p0", "p1", "p2"]
