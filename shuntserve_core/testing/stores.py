"""What every weight store must do: subclass `WeightStoreContract` in your plugin's tests.

class TestMyStore(WeightStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return MyStore.from_url(f"my://{tmp_path}")
"""

# ruff: noqa: D102 - a test says by its name what it shows

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.store import (
    ObjectMissing,
    StoreError,
    VersionConflict,
    WeightStore,
)
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.lease import hold_lease

LARGE_BYTES = 40_000_000
"""More than one part of any store that we know."""


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that no store can mix up or compress away."""
    return np.random.default_rng(seed).bytes(size)


def put(store: WeightStore, key: str, data: bytes) -> int:
    """Put a whole object; returns the bytes that were sent."""
    sent: list[int] = []
    store.put(key, [memoryview(data)], checksum([data]), sent.append)
    return sum(sent)


class WeightStoreContract:
    """Tests of the interface; `store` must be a fixture that gives an empty store."""

    @pytest.fixture
    def store(self) -> WeightStore:
        raise NotImplementedError("override the fixture `store`")

    def test_gives_back_what_was_put(self, store: WeightStore) -> None:
        data = random_bytes(100_000)
        assert put(store, "a/b.bin", data) == len(data)
        assert store.get("a/b.bin")[0] == data
        info = store.stat("a/b.bin")
        assert info is not None
        assert (info.key, info.size) == ("a/b.bin", len(data))
        assert info.checksum in (None, checksum([data]))

    def test_joins_pieces_and_fills_several_buffers_from_an_offset(
        self, store: WeightStore
    ) -> None:
        pieces = [memoryview(random_bytes(size, size)) for size in (7, 1000, 1, 300)]
        whole = b"".join(pieces)
        store.put("pieces", pieces, checksum([whole]))
        buffers = [memoryview(bytearray(size)) for size in (3, 500, 0, 700)]
        store.read_into("pieces", buffers, 5)
        assert b"".join(buffers) == whole[5 : 5 + 1203]

    def test_large_object_goes_and_comes_whole(self, store: WeightStore) -> None:
        data = random_bytes(LARGE_BYTES)
        assert put(store, "large", data) == len(data)
        buffer = memoryview(bytearray(LARGE_BYTES))
        store.read_into("large", [buffer])
        assert buffer == data

    def test_empty_object(self, store: WeightStore) -> None:
        put(store, "empty", b"")
        assert store.get("empty")[0] == b""
        store.read_into("empty", [])

    def test_overwrites(self, store: WeightStore) -> None:
        put(store, "key", b"old")
        put(store, "key", b"newer")
        assert store.get("key")[0] == b"newer"

    def test_reading_past_the_end_is_an_error(self, store: WeightStore) -> None:
        put(store, "short", b"12345")
        with pytest.raises(StoreError) as caught:
            store.read_into("short", [memoryview(bytearray(10))], 2)
        assert "\n" not in str(caught.value)

    def test_missing_objects(self, store: WeightStore) -> None:
        assert store.stat("no/such") is None
        with pytest.raises(ObjectMissing):
            store.get("no/such")
        with pytest.raises(ObjectMissing):
            store.read_into("no/such", [memoryview(bytearray(1))])
        store.delete(["no/such"])

    def test_lists_by_prefix_and_deletes(self, store: WeightStore) -> None:
        for key in ("raw/a/x", "raw/a/y", "raw/ab/x", "other"):
            put(store, key, key.encode())
        found = {info.key: info.size for info in store.list("raw/a/")}
        assert found == {"raw/a/x": 7, "raw/a/y": 7}
        assert {info.key for info in store.list("")} == {"raw/a/x", "raw/a/y", "raw/ab/x", "other"}
        store.delete(found)
        assert [info.key for info in store.list("raw/")] == ["raw/ab/x"]

    def test_conditional_writes(self, store: WeightStore) -> None:
        first = store.put_if("lock", b"one", None)
        with pytest.raises(VersionConflict):
            store.put_if("lock", b"two", None)
        assert store.get("lock") == (b"one", first)
        second = store.put_if("lock", b"two", first)
        with pytest.raises(VersionConflict):
            store.put_if("lock", b"three", first)
        assert store.get("lock") == (b"two", second)

    def test_only_one_of_many_creators_wins(self, store: WeightStore) -> None:
        start = threading.Barrier(6)

        def create(number: int) -> bool:
            start.wait()
            try:
                store.put_if("race", b"%d" % number, None)
            except VersionConflict:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(create, range(6))) == 1

    def test_lock_keeps_a_second_push_out(self, store: WeightStore) -> None:
        with hold_lease(store, "raw/a/b/.lock") as lease:
            lease.renew()
            lease.check()
            with (
                pytest.raises(UserError, match="is pushing this model"),
                hold_lease(store, "raw/a/b/.lock"),
            ):
                pass
        with hold_lease(store, "raw/a/b/.lock"):
            pass
        assert store.stat("raw/a/b/.lock") is None

    def test_nothing_unfinished_is_left(self, store: WeightStore) -> None:
        put(store, "raw/m/x", random_bytes(LARGE_BYTES))
        assert store.discard_unfinished("raw/") == 0
        assert [info.key for info in store.list("raw/")] == ["raw/m/x"]
