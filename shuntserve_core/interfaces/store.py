"""Where weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from attrs import frozen

from shuntserve_core.errors import UserError

Pieces = Sequence[memoryview]
"""Bytes one after another without having been copied together."""


class StoreError(UserError):
    """A store that failed for good: after its retries, or where retrying cannot help."""


class ObjectMissing(StoreError):
    """There is no object of that key."""


class VersionConflict(StoreError):
    """Somebody else wrote the object in the meantime."""


@frozen
class ObjectInfo:
    """What a store knows of an object without reading it."""

    key: str
    size: int
    """Bytes."""
    checksum: str | None = None
    """What was given to `put`, in a store that records it with the object."""


class WeightStore(Protocol):
    """An object store under one prefix.  Every method may be called from several threads at once.

    Built from its URL by `from_url`; keys are relative paths with `/`.  Methods retry what may
    pass, with jitter, and raise `StoreError` in one clear line for what does not.
    """

    @classmethod
    def from_url(cls, url: str) -> WeightStore:
        """Open the store.  Raises `UserError` for a URL that makes no sense; makes no request."""
        ...

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        ...

    def check(self) -> None:
        """Raise `StoreError` if the store cannot be reached, is not there, or lets nobody in."""
        ...

    def read_into(self, key: str, buffers: Pieces, offset: int = 0) -> None:
        """Fill the buffers, one after another, with bytes from `offset` on.

        Raises `StoreError` if the object ends before the buffers are full, `ObjectMissing` if it
        is not there.
        """
        ...

    def get(self, key: str) -> tuple[bytes, str]:
        """A small object whole, and its version for `put_if`."""
        ...

    def put(
        self, key: str, pieces: Pieces, checksum: str, on_sent: Callable[[int], None] | None = None
    ) -> None:
        """Store an object: whole or not at all.

        Resumes what an interrupted `put` of the same bytes left behind.  `on_sent` is told the
        bytes of each part that was really sent.
        """
        ...

    def put_if(self, key: str, data: bytes, version: str | None) -> str:
        """Store a small object if it is still of that version (None: if it is not there).

        Returns the new version.  Raises `VersionConflict`.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Size, and checksum where recorded; None if there is no such object."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key begins with `prefix`, in no order; unfinished ones are unseen."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        ...

    def discard_unfinished(self, prefix: str) -> int:
        """Remove what interrupted `put`s left below `prefix`; returns how many there were."""
        ...

    def close(self) -> None:
        """Let go of connections and threads."""
        ...
