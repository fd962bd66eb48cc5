"""How weights come into a GPU's memory, and who makes room for them."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.registry import Registry
from shuntserve_core.tensorstore import StoreClient, wire
from shuntserve_core.tensorstore.memory import OutOfMemory, open_memory
from shuntserve_core.tensorstore.memory.cuda import CudaFilling, CudaMemory
from shuntserve_core.tensorstore.memory.driver import INVALID_VALUE, CudaError
from shuntserve_core.tensorstore.shards import Shards
from shuntserve_core.tensorstore.spec import TensorStoreError
from shuntserve_core.testing.cuda import GRANULARITY, FakeCard, FakeDriver
from shuntserve_core.weights import reading
from tests.core.tensorstore.conftest import Model
from tests.core.tensorstore.processes import (
    CARD_CHUNK,
    LAYERS,
    StoreProcess,
    push,
    random_model,
    shard,
)

NOTHING = {"handles": 0, "ranges": 0, "mappings": 0, "pinned": 0, "streams": 0}


def card_memory(nbytes: int = 1 << 30) -> tuple[CudaMemory, FakeDriver]:
    driver = FakeDriver(FakeCard(nbytes=nbytes, shared=False))
    return CudaMemory(driver, CARD_CHUNK), driver


def open_files() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir())[:-1]


def contents(memory: CudaMemory, shards: Shards, spec: object) -> dict[str, bytes]:
    views, sizes, fds = shards.attach(spec)  # type: ignore[arg-type]
    ranges = []
    for fd, size in zip(fds, sizes, strict=True):
        addresses, allocation = memory.reserve(size), memory.adopt(fd, size)
        addresses.back([allocation], writable=False)
        allocation.close()
        ranges.append(addresses)
    return {
        view.name: ctypes.string_at(ranges[view.segment].address + view.offset, view.nbytes)
        for view in views
    }


@pytest.mark.parametrize("buffers", [1, 3])
def test_tensors_pass_through_few_small_buffers(
    model: Model, monkeypatch: pytest.MonkeyPatch, buffers: int
) -> None:
    monkeypatch.setattr(reading, "READ_BYTES", 1000)  # so that tensors come in pieces
    spec = shard(model.weights, model.name)
    memory, driver = card_memory()
    rings: list[CudaFilling] = []

    def filling() -> CudaFilling:
        rings.append(CudaFilling(memory, buffers, 1000))
        assert memory.staging_bytes == buffers * 1000
        return rings[-1]

    monkeypatch.setattr(memory, "filling", filling)
    shards = Shards(memory, Registry())
    report = shards.load(spec, lambda done, total: None)
    assert report.tensors_read > buffers
    assert driver.calls.count("pin") == buffers
    assert driver.calls.count("copy") > report.tensors_read
    assert memory.staging_bytes == 0

    plain, _ = card_memory()
    expected = Shards(plain, Registry())
    monkeypatch.undo()
    expected.load(spec, lambda done, total: None)
    assert contents(memory, shards, spec) == contents(plain, expected, spec)
    shards.retain([])
    assert driver.leftovers == NOTHING
    assert driver.memory()[0] == driver.memory()[1]


def test_damage_is_found_on_the_way_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_BYTES", 1000)
    name = push(random_model(tmp_path / "tiny"), tmp_path / "store", [1])
    damaged = next((tmp_path / "store").rglob("model.layers.1.mlp.up_proj.weight.bin"))
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    memory, driver = card_memory()
    monkeypatch.setattr(memory, "filling", lambda: CudaFilling(memory, 2, 1000))
    shards = Shards(memory, Registry())
    with pytest.raises(UserError, match="damaged"):
        shards.load(shard(tmp_path / "store", name), lambda done, total: None)
    assert memory.allocated_bytes == shards.allocated_bytes == shards.weight_bytes
    shards.retain([])
    assert driver.leftovers == NOTHING


def test_a_failing_copy_ends_the_load(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, driver = card_memory()

    def fail(*_: object) -> None:
        raise CudaError("copy", INVALID_VALUE, "broken")

    monkeypatch.setattr(driver, "copy", fail)
    monkeypatch.setattr(memory, "filling", lambda: CudaFilling(memory, 1))
    with pytest.raises(CudaError, match="broken"):
        Shards(memory, Registry()).load(shard(model.weights, model.name), lambda done, total: None)
    assert driver.leftovers == NOTHING


def test_what_does_not_fit_is_refused_and_leaves_nothing(model: Model) -> None:
    memory, driver = card_memory(3 * GRANULARITY)
    shards = Shards(memory, Registry())
    with pytest.raises(OutOfMemory, match=f"no room for {GRANULARITY} bytes: 0 of"):
        shards.load(shard(model.weights, model.name), lambda done, total: None)
    assert driver.leftovers == NOTHING
    assert shards.load(shard(model.weights, model.name, range(1, 3)), print).tensors_read == 18


def test_kv_memory_that_nobody_owns_makes_room_for_weights(model: Model, tmp_path: Path) -> None:
    segments = LAYERS + 3
    card = FakeCard(nbytes=segments * GRANULARITY + CARD_CHUNK)
    with (
        StoreProcess(tmp_path / "store.sock", card=card) as store,
        StoreClient(store.socket) as client,
    ):
        large = client.kv_lease("large", 3 * CARD_CHUNK)
        with pytest.raises(TensorStoreError, match="no room for"):
            client.load(shard(model.weights, model.name))
        client.release(large)
        kept = client.kv_lease("small", CARD_CHUNK)
        client.load(shard(model.weights, model.name))
        memory = client.stats().memory
        assert (memory.kv, memory.device_free) == (CARD_CHUNK, 0)
        assert memory.weights == segments * GRANULARITY
        client.release(kept)


def test_read_only_is_done_without_where_the_driver_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory, driver = card_memory()
    allow = driver.set_access

    def refuse(address: int, nbytes: int, *, writable: bool) -> None:
        if not writable:
            raise CudaError("cuMemSetAccess", INVALID_VALUE, "invalid argument")
        allow(address, nbytes, writable=True)

    monkeypatch.setattr(driver, "set_access", refuse)
    memory.reserve(GRANULARITY).back([memory.allocate(GRANULARITY)], writable=False)
    assert "maps nothing read-only" in caplog.text


def test_the_settings_of_torchs_allocator_do_not_matter(model: Model, tmp_path: Path) -> None:
    """Nor does the store import torch at all."""
    code = (
        "import sys; import shuntserve_core.tensorstore.memory.cuda\n"
        "import shuntserve_core.tensorstore.memory.driver, shuntserve_core.tensorstore.__main__\n"
        "print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, check=True
    )
    assert done.stdout == b"False\n"


def test_a_device_that_is_not_there_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="cpu or cuda:N"):
        open_memory("tpu:0")
    with pytest.raises(UserError, match=r"cuda:7: no (such GPU|cuda-bindings)"):
        open_memory("cuda:7")


def test_descriptors_that_cannot_be_opened_end_the_call() -> None:
    ours, theirs = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    wire.send(theirs, "here", fds)
    most = max(open_files()) + 5
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        before = open_files()
        with pytest.raises(wire.Disconnected, match="ulimit -n"):
            wire.receive(ours)
        assert open_files() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fds:
            os.close(fd)
    ours.close()
    theirs.close()
