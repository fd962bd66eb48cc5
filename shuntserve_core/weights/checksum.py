"""The checksum of every object: XXH3, 128 bits.

Chosen by measurement (benchmarks/weights_speed.py): it keeps up with memory, where SHA-256 and
BLAKE3 would cap a load at the speed of one core.  It finds damage, not malice; who may write to
the store is the store's own affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from typing_extensions import Buffer

PREFIX = "xxh3-128:"


class Checksum:
    """A checksum of bytes that come one after another."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()

    def update(self, piece: Buffer) -> None:
        """Add the next bytes."""
        self._digest.update(piece)

    def text(self) -> str:
        """As it stands in manifests."""
        return PREFIX + self._digest.hexdigest()


def checksum(pieces: Iterable[Buffer]) -> str:
    """Checksum of the pieces one after another, as it stands in manifests."""
    digest = Checksum()
    for piece in pieces:
        digest.update(piece)
    return digest.text()
