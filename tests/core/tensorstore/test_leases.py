from __future__ import annotations

import pytest

from shuntserve_core.tensorstore.leases import KvLeases, Ticket
from shuntserve_core.tensorstore.spec import KvUnavailable, TensorStoreError

CHUNK = 4096


def test_first_lease_defines_the_capacity_and_the_next_engine_takes_it_over() -> None:
    leases = KvLeases(CHUNK)
    old = leases.ask("old", 3 * CHUNK)
    granted: list[Ticket] = []
    new = leases.ask("new", 3 * CHUNK, granted.append)
    assert leases.capacity == 3
    assert not new.granted
    assert not granted
    leases.release(old.number)
    assert [(t.number, t.chunks) for t in granted] == [(new.number, old.chunks)]


def test_what_an_owner_leaves_is_nobodys_until_it_is_released() -> None:
    leases = KvLeases(CHUNK)
    old = leases.ask("old", 3 * CHUNK)
    granted: list[Ticket] = []
    leases.ask("new", CHUNK, granted.append)
    assert leases.leave(old.number) == old.chunks
    assert not granted
    assert leases.owned()[0].leaving
    assert leases.with_free(len) == 0
    with pytest.raises(KvUnavailable):
        leases.ask("another", CHUNK)
    leases.release(old.number)
    assert granted


def test_who_waits_and_leaves_makes_way() -> None:
    leases = KvLeases(CHUNK, 3)
    leases.ask("running", CHUNK)
    large = leases.ask("large", 3 * CHUNK, lambda ticket: None)
    granted: list[Ticket] = []
    leases.ask("small", CHUNK, granted.append)
    assert not granted
    assert leases.leave(large.number) == ()
    assert granted


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    leases = KvLeases(CHUNK, 4)
    leases.ask("running", 2 * CHUNK)
    leases.ask("large", 4 * CHUNK, lambda ticket: None)
    with pytest.raises(KvUnavailable, match="1 waiting"):
        leases.ask("small", CHUNK)


def test_more_than_there_is_is_refused_at_once() -> None:
    with pytest.raises(TensorStoreError, match="the store has 4096"):
        KvLeases(CHUNK, 1).ask("engine", CHUNK + 1, lambda ticket: None)
