"""The one kernel of our own: it writes to memory for as long as it is asked to."""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # a machine without a GPU need not have it
    triton = None

BLOCK = 1024
PROGRAMS = 256

if triton is not None:

    @triton.jit
    def _count_up(memory: Any, count: Any, rounds: Any, size: tl.constexpr) -> None:
        """Adds 1 to every number, `rounds` times; atomically, so that each time reaches memory."""
        step = tl.num_programs(0) * size
        for _ in range(rounds):
            start = tl.program_id(0) * size
            while start < count:
                at = start + tl.arange(0, size)
                tl.atomic_add(memory + at, 1, mask=at < count)
                start += step


def count_up(memory: Any, rounds: int) -> None:
    """Start the kernel on a tensor of int32; returns while it runs."""
    _count_up[(PROGRAMS,)](memory, memory.numel(), rounds, BLOCK)
