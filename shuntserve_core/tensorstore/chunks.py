"""The memory behind the chunks that leases are made of."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence

from shuntserve_core.tensorstore.memory import Allocation, Memory


class Chunks:
    """One allocation a chunk, made when it is first wanted; thread-safe.

    Whoever calls must own the chunks by `KvLeases`, so that no two threads want the same ones.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._allocations: dict[int, Allocation] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks that have memory."""
        with self._lock:
            return len(self._allocations) * self._memory.kv_chunk_bytes

    def back(self, chunks: Iterable[int]) -> None:
        """Have memory behind all of them, new memory being zeros.  All or nothing.

        Raises `OutOfMemory`.
        """
        made: dict[int, Allocation] = {}
        try:
            for chunk in chunks:
                if chunk not in self._allocations:
                    made[chunk] = self._memory.allocate(self._memory.kv_chunk_bytes)
            self._memory.zero(made.values())
        except BaseException:
            for allocation in made.values():
                allocation.close()
            raise
        with self._lock:
            self._allocations |= made

    def lend(self, chunks: Sequence[int]) -> list[int]:
        """A writable descriptor for each, which the caller must close."""
        fds: list[int] = []
        try:
            for chunk in chunks:
                fds.append(self._allocations[chunk].lend(writable=True))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def zero(self, chunks: Iterable[int]) -> None:
        """Zero them, so that the next owner does not see old data."""
        self._memory.zero([self._allocations[c] for c in chunks if c in self._allocations])

    def abandon(self, chunks: Iterable[int]) -> int:
        """Stop holding their memory; returns the bytes.

        Who still has it mapped can go on writing: nobody else will ever see that memory, and the
        kernel or driver frees it with the last mapping.
        """
        with self._lock:
            dropped = [self._allocations.pop(c) for c in chunks if c in self._allocations]
        for allocation in dropped:
            allocation.close()
        return len(dropped) * self._memory.kv_chunk_bytes
