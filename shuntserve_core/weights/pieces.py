"""Runs of bytes that lie in several buffers, without copying them together."""

from __future__ import annotations

from collections.abc import Sequence


def total_bytes(pieces: Sequence[memoryview]) -> int:
    """Bytes of all pieces."""
    return sum(piece.nbytes for piece in pieces)


def cut_pieces(pieces: Sequence[memoryview], start: int, stop: int) -> list[memoryview]:
    """Views of bytes `start` to `stop` of the run."""
    cut: list[memoryview] = []
    position = 0
    for piece in pieces:
        low, high = max(start - position, 0), min(stop - position, piece.nbytes)
        if low < high:
            cut.append(piece[low:high])
        position += piece.nbytes
    return cut
