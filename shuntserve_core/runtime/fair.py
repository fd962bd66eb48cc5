"""Whose turn it is: every tenant has a waiting room of its own, and the one that has had the least
work done for it, by its weight, is next.

Work is counted in whatever unit the owner chooses (the dispatcher counts tokens) as it is done, so
it need not be known in advance: the virtual counters of Sheng et al., "Fairness in Serving Large
Language Models" (OSDI 2024), which are start-time fair queueing (Goyal et al., 1996) for that case.
A tenant that was away comes back at the counter of whoever is being served: it can neither save up
turns nor be made to wait for what others had before.  While two tenants both wait, what they are
given differs, by weight, by no more than the largest pieces of work of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T")
_REMEMBERED = 4096
"""Tenants without anything under way whose counters are kept."""


@define(eq=False)
class Room(Generic[T]):
    """A tenant: what waits, what was done for it."""

    tenant: str
    weight: float
    spent: float = 0.0
    """Work done for it, divided by its weight."""
    under_way: int = 0
    """Items that it has, waiting or not."""
    first: dict[str, T] = field(factory=dict)
    """Items that go before the others."""
    later: dict[str, T] = field(factory=dict)
    running: dict[str, T] = field(factory=dict)
    """Items that wait no longer; kept by the owner, where it wants to."""

    def __len__(self) -> int:
        """Items that wait."""
        return len(self.first) + len(self.later)

    def share(self, more: int = 0) -> float:
        """Items that run, and so many `more`, divided by the weight."""
        return (len(self.running) + more) / self.weight

    def __iter__(self) -> Iterator[T]:
        """Items in their order, as they are now."""
        return iter((*self.first.values(), *self.later.values()))

    def charge(self, work: float) -> None:
        """Count work as done for this tenant; less than nothing gives some back."""
        self.spent += work / self.weight


class FairQueue(Generic[T]):
    """The rooms of all tenants."""

    def __init__(self) -> None:
        self._rooms: dict[str, Room[T]] = {}
        self._now = 0.0
        self._under_way = 0
        self.waiting = 0
        """Items that wait."""

    def __iter__(self) -> Iterator[Room[T]]:
        """Rooms of tenants that are known, those that wait for nothing among them."""
        return iter(self._rooms.values())

    def enter(self, tenant: str, weight: float) -> Room[T]:
        """Count an item of a tenant in, and give its room."""
        room = self._rooms.get(tenant)
        if room is None:
            room = self._rooms[tenant] = Room(tenant, weight)
        room.weight = weight
        if not room.under_way:
            room.spent = max(room.spent, self._now)
        room.under_way += 1
        self._under_way += 1
        return room

    def leave(self, room: Room[T]) -> None:
        """Count an item out."""
        room.under_way -= 1
        self._under_way -= 1
        if not self._under_way:  # nobody is behind anybody any more
            self._rooms.clear()
            self._now = 0.0
        elif len(self._rooms) > _REMEMBERED and not room.under_way:
            del self._rooms[room.tenant]

    def add(self, room: Room[T], name: str, item: T, *, first: bool = False) -> None:
        """Have an item wait; `first` before those that do not."""
        (room.first if first else room.later)[name] = item
        self.waiting += 1

    def drop(self, room: Room[T], name: str) -> None:
        """Have an item wait no longer, if it does."""
        for items in (room.first, room.later):
            if items.pop(name, None) is not None:
                self.waiting -= 1

    def serve(self, room: Room[T], work: float) -> None:
        """A room has its turn, which begins with so much work."""
        self._now = max(self._now, room.spent)
        room.charge(work)

    def turns(self) -> Iterator[T]:
        """Items in the order in which they are due; whoever takes one drops it from its room.

        An item that is not taken is passed over, and its tenant's next one is due.
        """
        left = {room: None for room in self._rooms.values() if len(room)}
        items: dict[Room[T], Iterator[T]] = {}
        while left:
            room = min(left, key=_spent)
            if room not in items:
                items[room] = iter(room)
            item = next(items[room], None)
            if item is None:
                del left[room]
            else:
                yield item


def _spent(room: Room[T]) -> float:
    return room.spent
