"""Leases, the chunks behind them and the memory of a card, through any sequence of events."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shuntserve_core.tensorstore.chunks import Chunks
from shuntserve_core.tensorstore.leases import KvLeases, Ticket
from shuntserve_core.tensorstore.memory import HostMemory, Memory, OutOfMemory
from shuntserve_core.tensorstore.memory.cuda import CudaMemory
from shuntserve_core.tensorstore.memory.interface import AddressRange
from shuntserve_core.tensorstore.spec import KvUnavailable, TensorStoreError
from shuntserve_core.testing.cuda import FakeCard, FakeDriver

CHUNK, CARD = 4096, 8 * 4096
picks = st.integers(0, 100)


class Engine:
    """Who has leased chunks mapped, and writes its number into them."""

    def __init__(self, memory: Memory, fds: list[int], mark: int) -> None:
        self.mark = mark
        self.addresses: AddressRange = memory.reserve(len(fds) * CHUNK)
        self.nbytes = len(fds) * CHUNK

        def chunks() -> Iterator[object]:
            for fd in fds:
                allocation = memory.adopt(fd, CHUNK)
                yield allocation
                allocation.close()

        self.addresses.back(chunks(), writable=True)  # type: ignore[arg-type]

    def read(self) -> bytes:
        return ctypes.string_at(self.addresses.address, self.nbytes)

    def write(self) -> None:
        ctypes.memset(self.addresses.address, self.mark, self.nbytes)


class Region(RuleBasedStateMachine):
    """KV memory, and engines that lease it, write to it, and end in several ways."""

    memory: Memory
    fixed = 0

    def __init__(self) -> None:
        super().__init__()
        self.memory = self.make()
        self.leases = KvLeases(CHUNK, self.fixed)
        self.chunks = Chunks(self.memory)
        self.tickets: dict[int, Ticket] = {}
        self.waiting: list[int] = []
        self.engines: dict[int, Engine] = {}
        self.ghosts: list[Engine] = []
        """Processes that live on after their lease, and go on writing."""
        self.marks = 0

    def make(self) -> Memory:
        return HostMemory(CHUNK)

    def granted(self, ticket: Ticket) -> None:
        assert self.waiting
        assert ticket.number == self.waiting.pop(0)
        self.tickets[ticket.number] = ticket

    @rule(count=st.integers(1, 5), waits=st.booleans())
    def ask(self, count: int, waits: bool) -> None:
        try:
            ticket = self.leases.ask("engine", count * CHUNK, self.granted if waits else None)
        except KvUnavailable:
            assert not waits
            return
        except TensorStoreError:
            assert self.fixed
            assert count > self.fixed
            return
        if ticket.granted:
            self.tickets[ticket.number] = ticket
        else:
            self.waiting.append(ticket.number)

    @precondition(lambda self: self.unmapped())
    @rule(pick=picks)
    def map(self, pick: int) -> None:
        number = self.unmapped()[pick % len(self.unmapped())]
        ticket = self.tickets[number]
        before = self.chunks.nbytes
        try:
            self.chunks.back(ticket.chunks)
        except OutOfMemory:
            assert self.chunks.nbytes == before
            assert self.memory.room()
            return
        self.marks = self.marks % 250 + 1
        engine = Engine(self.memory, self.chunks.lend(ticket.chunks), self.marks)
        assert engine.read() == bytes(engine.nbytes)
        engine.write()
        self.engines[number] = engine

    @precondition(lambda self: self.engines)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        """In order: unmapped first."""
        number = sorted(self.engines)[pick % len(self.engines)]
        self.engines.pop(number).addresses.clear()
        self.chunks.zero(self.leases.leave(number))
        self.tickets.pop(number)
        self.leases.release(number)

    @precondition(lambda self: self.engines)
    @rule(pick=picks)
    def vanish(self, pick: int) -> None:
        """Its connection is gone, and nobody knows whether the process is."""
        number = sorted(self.engines)[pick % len(self.engines)]
        self.ghosts.append(self.engines.pop(number))
        chunks = self.leases.leave(number)
        with pytest.raises(KvUnavailable):
            self.leases.ask("nosy", (self.leases.capacity + 1 - len(chunks)) * CHUNK)
        self.chunks.abandon(chunks)
        self.tickets.pop(number)
        self.leases.release(number)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def give_up(self, pick: int) -> None:
        number = self.waiting.pop(pick % len(self.waiting))
        assert self.leases.leave(number) == ()

    @precondition(lambda self: self.ghosts)
    @rule()
    def ghost_ends(self) -> None:
        self.ghosts.pop().addresses.clear()

    @rule()
    def make_room(self) -> None:
        before = self.chunks.nbytes
        freed = self.leases.with_free(self.chunks.abandon)
        assert self.chunks.nbytes == before - freed

    def unmapped(self) -> list[int]:
        return sorted(set(self.tickets) - set(self.engines))

    @invariant()
    def nobody_sees_anybody_else(self) -> None:
        for ghost in self.ghosts:
            ghost.write()
        for engine in self.engines.values():
            assert engine.read() == bytes([engine.mark]) * engine.nbytes

    @invariant()
    def chunks_have_one_owner(self) -> None:
        owned = [chunk for ticket in self.tickets.values() for chunk in ticket.chunks]
        assert len(owned) == len(set(owned)) == sum(i.chunks for i in self.leases.owned())
        assert all(chunk < self.leases.capacity for chunk in owned)
        assert len(self.leases.waiting()) == len(self.waiting)

    @invariant()
    def accounts_are_exact(self) -> None:
        assert self.memory.allocated_bytes == self.chunks.nbytes
        room = self.memory.room()
        if room is not None:
            ghosts = sum(ghost.nbytes for ghost in self.ghosts)
            assert room.total - room.free == self.chunks.nbytes + ghosts

    def teardown(self) -> None:
        for engine in [*self.engines.values(), *self.ghosts]:
            engine.addresses.clear()
        for number in [*self.tickets, *self.waiting]:
            self.leases.release(number)
        self.chunks.abandon(range(self.leases.capacity))
        assert self.memory.allocated_bytes == 0
        room = self.memory.room()
        assert room is None or room.free == room.total


class CardRegion(Region):
    """On a card that does not hold everything."""

    def make(self) -> Memory:
        driver = FakeDriver(FakeCard(nbytes=CARD, shared=False), granularity=CHUNK)
        return CudaMemory(driver, CHUNK)


class FixedRegion(Region):
    fixed = 6


TestRegion = Region.TestCase
TestCardRegion = CardRegion.TestCase
TestFixedRegion = FixedRegion.TestCase
for case in (TestRegion, TestCardRegion, TestFixedRegion):
    case.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_failure_half_way_takes_nothing() -> None:
    memory = CardRegion().make()
    chunks = Chunks(memory)
    chunks.back(range(3))
    with pytest.raises(OutOfMemory, match=f"no room for {CHUNK} bytes: 0 of {CARD} are free"):
        chunks.back(range(9))
    assert chunks.nbytes == memory.allocated_bytes == 3 * CHUNK
    fds = chunks.lend([0, 1, 2])
    with pytest.raises(KeyError):
        chunks.lend([0, 3])
    for fd in fds:
        os.close(fd)
