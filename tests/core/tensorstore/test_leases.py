from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.tensorstore.leases import PAGE, KvLeases, Ticket
from shuntserve_core.tensorstore.spec import KvUnavailable, TensorStoreError

asks = st.tuples(st.just("ask"), st.integers(1, 6))
tries = st.tuples(st.just("try"), st.integers(1, 6))
releases = st.tuples(st.just("release"), st.integers(0, 10))


def assert_exclusive(leases: KvLeases) -> None:
    end = 0
    for lease in sorted(leases.owned(), key=lambda lease: lease.offset):
        assert lease.offset >= end
        end = lease.offset + lease.nbytes
    assert end <= leases.capacity


@given(st.sampled_from([0, 8 * PAGE]), st.lists(st.one_of(asks, tries, releases), max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_byte_has_two_owners_and_waiters_come_in_turn(
    capacity: int, actions: list[tuple[str, int]]
) -> None:
    freed: list[tuple[int, int]] = []
    leases = KvLeases(capacity, on_free=lambda offset, nbytes: freed.append((offset, nbytes)))
    asked: set[int] = set()
    order: list[int] = []
    granted: list[int] = []
    alive: list[int] = []

    def grant(ticket: Ticket) -> None:
        granted.append(ticket.number)

    for action, number in actions:
        if action == "ask":
            ticket = leases.ask("engine", number * PAGE, grant)
            asked.add(ticket.number)
            alive.append(ticket.number)
            if ticket.offset < 0:
                order.append(ticket.number)
        elif action == "try":
            try:
                alive.append(leases.ask("engine", number * PAGE).number)
                asked.add(alive[-1])
            except KvUnavailable:
                pass
        elif alive:
            leases.release(alive.pop(number % len(alive)))
        assert_exclusive(leases)
        assert len(leases.owned()) + len(leases.waiting()) == len(alive)
    assert granted == [n for n in order if n in granted]
    for number in alive:
        leases.release(number)
    assert leases.owned() == leases.waiting() == ()
    assert len(freed) == len(asked - set(order)) + len(granted)


def test_first_lease_defines_the_region_and_the_next_engine_takes_it_over() -> None:
    sizes: list[int] = []
    leases = KvLeases(on_grow=sizes.append)
    old = leases.ask("old", 3 * PAGE)
    granted: list[Ticket] = []
    new = leases.ask("new", 3 * PAGE, granted.append)
    assert sizes == [3 * PAGE]
    assert new.offset < 0
    assert not granted
    leases.release(old.number)
    assert [(t.number, t.offset) for t in granted] == [(new.number, 0)]


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    leases = KvLeases(4 * PAGE)
    leases.ask("running", 2 * PAGE)
    leases.ask("large", 4 * PAGE, lambda ticket: None)
    with pytest.raises(KvUnavailable, match="1 waiting"):
        leases.ask("small", PAGE)


def test_more_than_there_is_is_refused_at_once() -> None:
    with pytest.raises(TensorStoreError, match="the store has 4096"):
        KvLeases(PAGE).ask("engine", 2 * PAGE, lambda ticket: None)
