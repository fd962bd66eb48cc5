from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import astuple
from safetensors.numpy import load_file

from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.tensorstore.memory.addresses import HostRange
from shuntserve_core.tensorstore.views import KvRange, shard_tensors
from tests.core.tensorstore.conftest import Model
from tests.core.tensorstore.processes import StoreProcess, shard

MIB = 1 << 20


def test_tensors_of_a_shard(model: Model, store: StoreProcess) -> None:
    spec = shard(model.weights, model.name)
    expected = load_file(model.weights.parent / "tiny" / "model.safetensors")
    with StoreClient(store.socket) as client:
        client.load(spec)
        tensors = shard_tensors(client.attach(spec))
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        rows = tensor.shape[0]  # the vocabulary is padded
        np.testing.assert_array_equal(tensors[name][:rows].numpy(), tensor)


def test_practice_is_left_behind_and_the_address_stays(store: StoreProcess) -> None:
    kv = KvRange(5 * MIB)
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
        other = KvRange(5 * MIB)
        other.own(next_client.kv_lease("new", 5 * MIB))
        assert not other.tensor.any()


def test_practice_costs_next_to_nothing() -> None:
    kv = KvRange(256 * MIB)
    kv.practise()
    kv.tensor[0] = 3
    assert int((kv.tensor == 3).sum()) == 128
    kv.practise()
    assert not kv.tensor.any()


def test_a_lease_must_fill_the_range(store: StoreProcess) -> None:
    with StoreClient(store.socket) as client:
        lease = client.kv_lease("engine", MIB)
        with pytest.raises(ValueError, match="a lease of 1048576 bytes"):
            KvRange(64 * MIB).own(lease)


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


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(-mmap.PAGESIZE, mmap.PAGESIZE), (0, 5 * MIB), (10, 4096), (0, 10)]
)
def test_nothing_is_mapped_beside_a_range(offset: int, nbytes: int) -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8 * MIB)
    with pytest.raises(ValueError, match="bytes"):
        HostRange(4 * MIB).map(offset, fd, nbytes, writable=True)
    os.close(fd)


def test_nothing_is_mapped_beyond_a_files_end() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, MIB)
    with pytest.raises(ValueError, match="more than the memory has"):
        HostRange(4 * MIB).map(0, fd, 2 * MIB, writable=True)
    os.close(fd)


def test_weights_cannot_be_written(model: Model, store: StoreProcess) -> None:
    spec = shard(model.weights, model.name)
    code = (
        "from shuntserve_core.tensorstore import ShardSpec, StoreClient\n"
        "from shuntserve_core.tensorstore.views import shard_tensors\n"
        f"client = StoreClient({str(store.socket)!r})\n"
        f"tensors = shard_tensors(client.attach(ShardSpec{astuple(spec)!r}))\n"
        "print('attached', flush=True)\n"
        "next(iter(tensors.values())).zero_()\n"
        "print('written', flush=True)"
    )
    with StoreClient(store.socket) as client:
        client.load(spec)
        before = {name: t.clone() for name, t in shard_tensors(client.attach(spec)).items()}
        writer = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
        after = shard_tensors(client.attach(spec))
    assert writer.stdout == b"attached\n"
    assert writer.returncode < 0
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
