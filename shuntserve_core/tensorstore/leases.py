"""Who owns which chunks of KV memory.

Every chunk has at most one owner.  Who waits is served in order of asking, so that a small request
cannot overtake a large one for ever.  What the chunks are is none of the business here.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

from attrs import define, evolve, field, frozen

from shuntserve_core.tensorstore.spec import KvUnavailable, LeaseInfo, TensorStoreError


@frozen
class Ticket:
    """One request for KV memory, granted or waiting."""

    number: int
    owner: str
    count: int
    """Chunks asked for."""
    chunks: tuple[int, ...] = ()
    """Those that it owns; none while it waits."""
    leaving: bool = False

    @property
    def granted(self) -> bool:
        """Whether it owns what it asked for."""
        return bool(self.chunks)


@define(eq=False)
class KvLeases:
    """Hands out chunks of `chunk_bytes`, known by their numbers from 0; thread-safe.

    With a `capacity` of 0 there are as many as the largest request so far wanted: the first engine
    defines it, and its successors take them over.
    """

    chunk_bytes: int
    capacity: int = 0
    """Chunks."""
    _fixed: bool = field(init=False)
    _owned: dict[int, Ticket] = field(init=False, factory=dict)
    _waiting: dict[int, tuple[Ticket, Callable[[Ticket], None]]] = field(init=False, factory=dict)
    _numbers: itertools.count[int] = field(init=False, factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._fixed = self.capacity > 0

    def ask(
        self, owner: str, nbytes: int, granted: Callable[[Ticket], None] | None = None
    ) -> Ticket:
        """Ask for memory, in whole chunks.

        With `granted` a request that cannot be met waits; `granted` is then called once, from the
        thread that frees the memory.  Without it raises `KvUnavailable`.
        Raises `TensorStoreError` for more than there is in all.
        """
        count = -(-max(nbytes, 1) // self.chunk_bytes)
        with self._lock:
            if self._fixed and count > self.capacity:
                raise TensorStoreError(
                    f"{nbytes} bytes of KV memory asked for, the store has"
                    f" {self.capacity * self.chunk_bytes}",
                    where=owner,
                )
            self.capacity = max(self.capacity, count)
            ticket = Ticket(next(self._numbers), owner, count)
            free = self._free()
            if not self._waiting and count <= len(free):
                return self._own(ticket, free)
            if granted is None:
                raise KvUnavailable(
                    f"{nbytes} bytes of KV memory are not free", where=owner, remedy=self._owners()
                )
            self._waiting[ticket.number] = (ticket, granted)
            return ticket

    def leave(self, number: int) -> tuple[int, ...]:
        """Its owner is on the way out: the chunks are nobody's until `release`; returns them.

        A ticket that waits is given up.
        """
        with self._lock:
            self._waiting.pop(number, None)
            ticket = self._owned.get(number)
            if ticket is None:
                self._serve_waiting()
                return ()
            self._owned[number] = evolve(ticket, leaving=True)
            return ticket.chunks

    def release(self, number: int) -> None:
        """Give up a ticket, granted or waiting; unknown ones are no error."""
        with self._lock:
            self._waiting.pop(number, None)
            self._owned.pop(number, None)
            self._serve_waiting()

    def with_free(self, act: Callable[[Sequence[int]], int]) -> int:
        """Do something with the chunks that nobody owns, while nobody gets any."""
        with self._lock:
            return act(self._free())

    def owned(self) -> tuple[LeaseInfo, ...]:
        """Every lease."""
        with self._lock:
            return tuple(self._info(ticket) for ticket in self._owned.values())

    def waiting(self) -> tuple[LeaseInfo, ...]:
        """Every request that waits, in the order of service."""
        with self._lock:
            return tuple(self._info(ticket) for ticket, _ in self._waiting.values())

    def _serve_waiting(self) -> None:
        for number, (ticket, granted) in list(self._waiting.items()):
            free = self._free()
            if ticket.count > len(free):
                return
            del self._waiting[number]
            granted(self._own(ticket, free))

    def _own(self, ticket: Ticket, free: Sequence[int]) -> Ticket:
        ticket = evolve(ticket, chunks=tuple(free[: ticket.count]))
        self._owned[ticket.number] = ticket
        return ticket

    def _free(self) -> list[int]:
        taken = {chunk for ticket in self._owned.values() for chunk in ticket.chunks}
        return [chunk for chunk in range(self.capacity) if chunk not in taken]

    def _owners(self) -> str:
        owners = ", ".join(sorted({ticket.owner for ticket in self._owned.values()}))
        return f"owned by {owners or 'nobody'}, and {len(self._waiting)} waiting"

    def _info(self, ticket: Ticket) -> LeaseInfo:
        nbytes = ticket.count * self.chunk_bytes
        return LeaseInfo(ticket.owner, nbytes, ticket.count, ticket.leaving)
