"""Libraries that print from C: a solver its banner."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what C code prints meanwhile; Python's own output is written before and after.

    It is the process's descriptor that is turned aside, so keep the block short.
    """
    flush_c()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        flush_c()
        os.dup2(kept, 1)
        os.close(kept)


def flush_c() -> None:
    """Write what C code has printed, and the C library holds."""
    ctypes.CDLL(None).fflush(None)
