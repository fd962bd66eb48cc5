from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import astuple
from safetensors.numpy import load_file

from shuntserve_core.tensorstore import KvLease, StoreClient
from shuntserve_core.tensorstore.memory import HostMemory, Memory
from shuntserve_core.tensorstore.memory.cuda import CudaMemory
from shuntserve_core.tensorstore.memory.driver import CudaError
from shuntserve_core.tensorstore.views import KvRange, shard_tensors
from shuntserve_core.testing.cuda import FakeDriver
from tests.core.tensorstore.conftest import Model
from tests.core.tensorstore.processes import StoreProcess, shard

MIB = 1 << 20


def test_tensors_of_a_shard(model: Model, store: StoreProcess) -> None:
    spec = shard(model.weights, model.name)
    expected = load_file(model.weights.parent / "tiny" / "model.safetensors")
    with StoreClient(store.socket) as client:
        client.load(spec)
        tensors = shard_tensors(client.attach(spec), store.memory)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        rows = tensor.shape[0]  # the vocabulary is padded
        np.testing.assert_array_equal(tensors[name][:rows].numpy(), tensor)


def test_practice_is_left_behind_and_the_address_stays(store: StoreProcess) -> None:
    kv, other = (KvRange(5 * MIB, memory=store.memory) for _ in range(2))
    tensor, address = kv.tensor, kv.tensor.data_ptr()
    kv.practise()
    tensor.fill_(7)
    with StoreClient(store.socket) as client, StoreClient(store.socket) as next_client:
        lease = client.kv_lease("old", 5 * MIB)
        kv.own(lease)
        assert (tensor.data_ptr(), tensor.numel()) == (address, 5 * MIB)
        assert not tensor.any()
        tensor.fill_(1)
        kv.close()
        client.release(lease)
        lease = next_client.kv_lease("new", 5 * MIB)
        other.own(lease)
        assert not other.tensor.any()
        other.close()
        next_client.release(lease)


@pytest.mark.parametrize("memory", [HostMemory(2 * MIB), CudaMemory(FakeDriver(), 2 * MIB)])
def test_practice_costs_next_to_nothing(memory: Memory) -> None:
    kv = KvRange(64 * MIB, memory=memory)
    before = memory.allocated_bytes
    kv.practise()
    assert memory.allocated_bytes == before == 0  # only the mapping holds the scratch memory
    if isinstance(memory, CudaMemory):
        assert memory.driver.memory()[0] == memory.driver.memory()[1] - 2 * MIB
    kv.tensor[0] = 3
    assert int((kv.tensor == 3).sum()) == 32
    kv.practise()
    assert not kv.tensor.any()


def test_a_lease_must_fill_the_range(store: StoreProcess) -> None:
    with StoreClient(store.socket) as client:
        lease = client.kv_lease("engine", MIB)
        with pytest.raises(ValueError, match=f"a lease of {lease.nbytes} bytes"):
            KvRange(lease.nbytes + 1, memory=store.memory).own(lease)
        client.release(lease)


def test_a_lease_must_be_of_the_same_device() -> None:
    lease = KvLease(1, "cuda:1", 2 * MIB, 2 * MIB, lambda start, count: [])
    with pytest.raises(ValueError, match="a lease of cuda:1 for a range of cuda:0"):
        KvRange(MIB, memory=CudaMemory(FakeDriver(), 2 * MIB)).own(lease)


def test_what_fails_half_way_leaves_nothing_mapped() -> None:
    driver = FakeDriver()
    memory = CudaMemory(driver, 2 * MIB)
    given = memory.allocate(2 * MIB)

    def fetch(start: int, count: int) -> list[int]:
        return [given.lend(writable=True), os.open("/dev/null", os.O_RDWR)]

    kv = KvRange(4 * MIB, memory=memory)
    with pytest.raises(CudaError, match="not memory of this GPU"):
        kv.own(KvLease(1, "cuda:0", 4 * MIB, 2 * MIB, fetch))
    assert driver.leftovers == {"handles": 1, "ranges": 1, "mappings": 0, "pinned": 0, "streams": 0}
    kv.practise()
    assert not kv.tensor.any()


def test_a_range_is_reserved_until_nobody_sees_it() -> None:
    def reserved(address: int) -> bool:
        with Path("/proc/self/maps").open() as maps:
            spans = [line.split()[0].split("-") for line in maps]
        return any(int(low, 16) <= address < int(high, 16) for low, high in spans)

    kv = KvRange(3 * MIB)
    tensor, address = kv.tensor[:10], kv.tensor.data_ptr()
    kv.close()
    del kv
    assert reserved(address)
    del tensor
    assert not reserved(address)


def test_memory_is_there_until_the_process_ends() -> None:
    code = (
        "import atexit, ctypes\n"
        "atexit.register(lambda: print(ctypes.string_at(addresses.address, 1)))\n"
        "from shuntserve_core.tensorstore.memory import HostMemory\n"
        "addresses = HostMemory().reserve(4096)\n"
        "addresses.back([HostMemory().allocate(4096)], writable=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"b'\\x00'\n"


@pytest.mark.parametrize("memory", [HostMemory(), CudaMemory(FakeDriver())])
def test_nothing_is_mapped_beside_a_range(memory: Memory) -> None:
    addresses, allocation = memory.reserve(4 * MIB), memory.allocate(2 * MIB)
    with pytest.raises(ValueError, match="bytes 4194304 to 6291456 of a range of 4194304"):
        addresses.back([allocation] * 3, writable=True)
    addresses.back([allocation] * 2, writable=True)
    addresses.clear()
    allocation.close()


def test_nothing_is_mapped_beyond_a_files_end() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, MIB)
    with pytest.raises(ValueError, match="2097152 bytes were lent, and there are 1048576"):
        HostMemory().adopt(fd, 2 * MIB)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_weights_cannot_be_written(model: Model, store: StoreProcess) -> None:
    spec = shard(model.weights, model.name)
    code = store.client_code + (
        "from shuntserve_core.tensorstore.views import shard_tensors\n"
        f"tensors = shard_tensors(client.attach(ShardSpec{astuple(spec)!r}), memory)\n"
        "print('attached', flush=True)\n"
        "next(iter(tensors.values())).zero_()\n"
        "print('written', flush=True)"
    )
    with StoreClient(store.socket) as client:
        client.load(spec)
        lent = shard_tensors(client.attach(spec), store.memory)
        before = {name: tensor.clone() for name, tensor in lent.items()}
        writer = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert writer.stdout == b"attached\n"
    assert writer.returncode < 0
    assert all(torch.equal(lent[name], tensor) for name, tensor in before.items())
