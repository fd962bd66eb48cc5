"""What a bad network does to reads and writes: survived, or named."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shuntserve_core.interfaces.store import StoreError
from shuntserve_core.testing.fault_proxy import Fault, FaultProxy, fault_proxy
from shuntserve_core.testing.s3_servers import S3Server
from shuntserve_core.testing.stores import put, random_bytes
from shuntserve_plugins.storage.s3 import S3Store

Open = Callable[[str], S3Store]
DATA = random_bytes(300_000)


@pytest.fixture
def proxy(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    # Moto: a request whose headers were changed on the way would have a wrong signature.
    for name, value in moto_server.environment.items():
        monkeypatch.setenv(name, value)
    moto_server.client().create_bucket(Bucket="faulty")
    with fault_proxy(moto_server.endpoint) as running:
        yield running


@pytest.fixture
def store(proxy: FaultProxy, opened: Open) -> S3Store:
    return opened(f"s3://faulty?endpoint={proxy.endpoint}&stall_seconds=1&part_mib=5")


def read(store: S3Store, start: int, stop: int) -> bytes:
    buffers = [memoryview(bytearray(100)), memoryview(bytearray(stop - start - 100))]
    store.read_into("key", buffers, start)
    return b"".join(buffers)


@pytest.mark.parametrize("kind", ["refuse", "reset", "truncate", "stall", "ignore-range"])
def test_a_passing_fault_of_a_read_is_survived(
    kind: str, proxy: FaultProxy, store: S3Store
) -> None:
    put(store, "key", DATA)
    proxy.faults.append(Fault(kind, times=2))
    assert read(store, 1000, 250_000) == DATA[1000:250_000]
    assert kind in proxy.happened


def test_a_server_that_always_ignores_ranges_is_survived(proxy: FaultProxy, store: S3Store) -> None:
    put(store, "key", DATA)
    proxy.faults.append(Fault("ignore-range", times=1000))
    assert read(store, 0, len(DATA)) == DATA
    assert read(store, 200_000, 200_500) == DATA[200_000:200_500]


@pytest.mark.parametrize("kind", ["refuse", "truncate"])
def test_a_lasting_fault_of_a_read_is_named(kind: str, proxy: FaultProxy, store: S3Store) -> None:
    put(store, "key", DATA)
    proxy.faults.append(Fault(kind, times=1000))
    with pytest.raises(StoreError) as caught:
        read(store, 0, len(DATA))
    assert str(caught.value).startswith("s3://faulty/key: no usable answer from http://127.0.0.1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["refuse", "lose-answer"])
def test_a_passing_fault_of_a_write_is_survived(
    kind: str, proxy: FaultProxy, store: S3Store
) -> None:
    proxy.faults.append(Fault(kind, times=2, method="PUT"))
    put(store, "key", DATA)
    large = random_bytes(12_000_000)
    proxy.faults.append(Fault(kind, times=2, method="PUT"))
    put(store, "large", large)
    assert store.get("key")[0] == DATA
    assert store.get("large")[0] == large
    assert proxy.happened == [kind] * 4


def test_a_conditional_write_whose_answer_was_lost_is_no_conflict(
    proxy: FaultProxy, store: S3Store
) -> None:
    proxy.faults.append(Fault("lose-answer", method="PUT"))
    version = store.put_if("lock", b"mine", None)
    assert store.get("lock") == (b"mine", version)
    assert proxy.happened == ["lose-answer"]
