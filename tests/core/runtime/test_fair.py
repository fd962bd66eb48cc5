"""Whose turn it is: shares, whatever tenants ask for."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.runtime.fair import FairQueue, Room

WEIGHTS = st.sampled_from([0.5, 1.0, 2.0, 3.0])
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=8)


class Tenants:
    """Everybody always wants more; an item's name tells its tenant."""

    def __init__(self, weights: list[float]) -> None:
        self.queue: FairQueue[str] = FairQueue()
        self.rooms: dict[str, Room[str]] = {}
        self.weights = {f"t{number}": weight for number, weight in enumerate(weights)}
        self.numbers = itertools.count()

    def ask(self, tenant: str) -> None:
        room = self.rooms[tenant] = self.queue.enter(tenant, self.weights[tenant])
        name = f"{tenant}.{next(self.numbers)}"
        self.queue.add(room, name, name)

    def turn(self, work: int) -> str:
        name = next(self.queue.turns())
        tenant = name.split(".")[0]
        room = self.rooms[tenant]
        self.queue.drop(room, name)
        self.queue.serve(room, work)
        return tenant


@given(weights=st.lists(WEIGHTS, min_size=2, max_size=4), sizes=st.lists(SIZES, min_size=4))
@settings(max_examples=200, deadline=None)
def test_work_is_shared_by_weight(weights: list[float], sizes: list[list[int]]) -> None:
    """At every moment, within the largest piece of work of each."""
    tenants = Tenants(weights)
    work = {t: itertools.cycle(sizes[i % len(sizes)]) for i, t in enumerate(tenants.weights)}
    largest = {t: max(sizes[i % len(sizes)]) for i, t in enumerate(tenants.weights)}
    done = dict.fromkeys(tenants.weights, 0)
    for tenant in tenants.weights:
        tenants.ask(tenant)
    for _ in range(200):
        tenant = next(tenants.queue.turns()).split(".")[0]
        tenants.ask(tenant)  # it goes on waiting
        size = next(work[tenant])
        assert tenants.turn(size) == tenant
        tenants.queue.leave(tenants.rooms[tenant])
        done[tenant] += size
        for one, other in itertools.combinations(done, 2):
            w1, w2 = tenants.weights[one], tenants.weights[other]
            apart = abs(done[one] / w1 - done[other] / w2)
            assert apart <= largest[one] / w1 + largest[other] / w2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=1, max_size=60))
def test_whatever_waits_has_its_turn(asked: list[tuple[str, int]]) -> None:
    tenants = Tenants([])
    tenants.weights = {"a": 1.0, "b": 2.0, "c": 0.1}
    for tenant, _ in asked:
        tenants.ask(tenant)
    served = []
    for _, work in asked:
        assert tenants.queue.waiting == len(asked) - len(served)
        served.append(tenants.turn(work))
        tenants.queue.leave(tenants.rooms[served[-1]])
    assert sorted(served) == sorted(tenant for tenant, _ in asked)
    assert not list(tenants.queue)


def test_who_was_away_has_saved_up_nothing_and_owes_nothing() -> None:
    tenants = Tenants([1.0, 1.0])
    for _ in range(50):
        tenants.ask("t0")
    for _ in range(20):
        assert tenants.turn(100) == "t0"
    for _ in range(5):
        tenants.ask("t1")
    turns = [tenants.turn(100) for _ in range(8)]
    assert turns.count("t1") == 4


def test_an_item_that_is_passed_over_holds_up_nobody() -> None:
    tenants = Tenants([1.0, 1.0])
    for tenant in ("t0", "t0", "t1"):
        tenants.ask(tenant)
    assert [name.split(".")[0] for name in tenants.queue.turns()] == ["t0", "t0", "t1"]
    assert tenants.queue.waiting == 3


def test_many_tenants_leave_nothing_behind() -> None:
    queue: FairQueue[int] = FairQueue()
    stays = queue.enter("stays", 1.0)
    for number in range(10_000):
        queue.leave(queue.enter(str(number), 1.0))
    assert len(list(queue)) < 5000
    queue.leave(stays)
    assert not list(queue)
