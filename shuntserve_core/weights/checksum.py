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


def checksum(pieces: Iterable[Buffer]) -> str:
    """Checksum of the pieces one after another, as it stands in manifests."""
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return PREFIX + digest.hexdigest()
