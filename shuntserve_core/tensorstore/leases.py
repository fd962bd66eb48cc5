"""Who owns which bytes of KV memory.

Every byte has at most one owner.  Who waits is served in order of asking, so that a small request
cannot overtake a large one for ever.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from attrs import define, evolve, field, frozen

from shuntserve_core.tensorstore.spec import KvUnavailable, LeaseInfo, TensorStoreError

PAGE = 4096


@frozen
class Ticket:
    """One request for KV memory, granted or waiting."""

    number: int
    owner: str
    nbytes: int
    """Rounded up to whole pages."""
    offset: int = -1
    """-1 while it waits."""


@define(eq=False)
class KvLeases:
    """Hands out ranges of `capacity` bytes; thread-safe.

    With a `capacity` of 0 the region is as large as the largest request so far: the first engine
    defines it, and its successors take it over.
    """

    capacity: int = 0
    on_grow: Callable[[int], None] = lambda _nbytes: None
    """Told the new size before anything beyond the old one is granted."""
    on_free: Callable[[int, int], None] = lambda _offset, _nbytes: None
    """Told offset and bytes of a range that lost its owner, before anybody else gets it."""
    _fixed: bool = field(init=False)
    _owned: dict[int, Ticket] = field(init=False, factory=dict)
    _waiting: dict[int, tuple[Ticket, Callable[[Ticket], None]]] = field(init=False, factory=dict)
    _numbers: itertools.count[int] = field(init=False, factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._fixed = self.capacity > 0
        if self._fixed:
            self.on_grow(self.capacity)

    def ask(
        self, owner: str, nbytes: int, granted: Callable[[Ticket], None] | None = None
    ) -> Ticket:
        """Ask for memory; the ticket is granted if its offset is not negative.

        With `granted` a request that cannot be met waits; `granted` is then called once, from the
        thread that frees the memory.  Without it raises `KvUnavailable`.
        Raises `TensorStoreError` for more than there is in all.
        """
        size = -(-max(nbytes, 1) // PAGE) * PAGE
        with self._lock:
            if self._fixed and size > self.capacity:
                raise TensorStoreError(
                    f"{size} bytes of KV memory asked for, the store has {self.capacity}",
                    where=owner,
                )
            if size > self.capacity:
                self.on_grow(size)
                self.capacity = size
            ticket = Ticket(next(self._numbers), owner, size)
            if not self._waiting and (offset := self._free_offset(size)) is not None:
                return self._own(ticket, offset)
            if granted is None:
                raise KvUnavailable(
                    f"{size} bytes of KV memory are not free", where=owner, remedy=self._owners()
                )
            self._waiting[ticket.number] = (ticket, granted)
            return ticket

    def release(self, number: int) -> None:
        """Give up a ticket, granted or waiting; unknown ones are no error."""
        with self._lock:
            self._waiting.pop(number, None)
            ticket = self._owned.get(number)
            if ticket is not None:
                self.on_free(ticket.offset, ticket.nbytes)
                del self._owned[number]
            self._serve_waiting()

    def owned(self) -> tuple[LeaseInfo, ...]:
        """Every lease."""
        with self._lock:
            return tuple(_info(ticket) for ticket in self._owned.values())

    def waiting(self) -> tuple[LeaseInfo, ...]:
        """Every request that waits, in the order of service."""
        with self._lock:
            return tuple(_info(ticket) for ticket, _ in self._waiting.values())

    def _serve_waiting(self) -> None:
        for number, (ticket, granted) in list(self._waiting.items()):
            offset = self._free_offset(ticket.nbytes)
            if offset is None:
                return
            del self._waiting[number]
            granted(self._own(ticket, offset))

    def _own(self, ticket: Ticket, offset: int) -> Ticket:
        ticket = evolve(ticket, offset=offset)
        self._owned[ticket.number] = ticket
        return ticket

    def _free_offset(self, size: int) -> int | None:
        """The lowest gap that is large enough."""
        start = 0
        for ticket in sorted(self._owned.values(), key=lambda ticket: ticket.offset):
            if ticket.offset - start >= size:
                return start
            start = ticket.offset + ticket.nbytes
        return start if self.capacity - start >= size else None

    def _owners(self) -> str:
        owners = ", ".join(sorted({ticket.owner for ticket in self._owned.values()}))
        return f"owned by {owners or 'nobody'}, and {len(self._waiting)} waiting"


def _info(ticket: Ticket) -> LeaseInfo:
    return LeaseInfo(ticket.owner, ticket.offset, ticket.nbytes)
