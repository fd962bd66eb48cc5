"""What is true of a stored object: is it there, and is it what it should be?"""

from __future__ import annotations

from collections.abc import Callable

import xxhash

from shuntserve_core.interfaces.store import WeightStore
from shuntserve_core.weights.checksum import PREFIX, checksum
from shuntserve_core.weights.manifest import FileRecord, TensorRecord
from shuntserve_core.weights.reading import DamagedObject

CHUNK_BYTES = 8 << 20


def stored_checksum(
    store: WeightStore, key: str, size: int, on_bytes: Callable[[int], None] | None = None
) -> str:
    """Checksum of an object's bytes as they are now, read by chunks."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, size)))
    digest = xxhash.xxh3_128()
    for start in range(0, size, CHUNK_BYTES):
        chunk = buffer[: min(CHUNK_BYTES, size - start)]
        store.read_into(key, [chunk], start)
        digest.update(chunk)
        if on_bytes:
            on_bytes(len(chunk))
    return PREFIX + digest.hexdigest()


def holds(store: WeightStore, key: str, size: int, expected: str) -> bool:
    """Whether the store has this object already; its bytes are read if it records no checksum."""
    info = store.stat(key)
    if info is None or info.size != size:
        return False
    found = info.checksum or stored_checksum(store, key, size)
    return found == expected


def read_object(
    store: WeightStore,
    key: str,
    record: FileRecord | TensorRecord,
    on_bytes: Callable[[int], None] | None = None,
) -> bytearray:
    """A whole object.  Raises `DamagedObject` unless it is what the manifest says."""
    if record.size > CHUNK_BYTES:  # what a manifest says is believed only of small objects
        info = store.stat(key)
        if info is None or info.size != record.size:
            there = "not there" if info is None else f"of {info.size} bytes"
            raise DamagedObject(
                f"the object is {there}, not of {record.size}", where=key, remedy="push again"
            )
    data = bytearray(record.size)
    view = memoryview(data)
    for start in range(0, record.size, CHUNK_BYTES):
        chunk = view[start : start + CHUNK_BYTES]
        store.read_into(key, [chunk], start)
        if on_bytes:
            on_bytes(len(chunk))
    if checksum([data]) != record.checksum:
        raise DamagedObject(
            "the object is damaged: its checksum is wrong", where=key, remedy="push the model again"
        )
    return data
