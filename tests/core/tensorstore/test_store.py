from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from shuntserve_core import tensorstore
from shuntserve_core.tensorstore import ShardSpec, StoreClient
from shuntserve_core.tensorstore.memory import HostMemory
from shuntserve_core.tensorstore.spec import KvUnavailable, TensorStoreError
from shuntserve_core.tensorstore.views import KvRange, shard_tensors
from tests.core.tensorstore.conftest import Model
from tests.core.tensorstore.processes import StoreProcess, push, random_model, shard

MIB = 1 << 20


def mapped(store: StoreProcess, client: StoreClient, spec: ShardSpec) -> dict[str, np.ndarray]:
    tensors = shard_tensors(client.attach(spec), store.memory)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_a_shard_is_read_once_and_lent_to_all(model: Model, store: StoreProcess) -> None:
    spec = shard(model.weights, model.name)
    expected = load_file(model.weights.parent / "tiny" / "model.safetensors")
    seen: list[tuple[int, int]] = []
    with StoreClient(store.socket) as one, StoreClient(store.socket) as two:
        report = one.load(spec, lambda done, total: seen.append((done, total)))
        again = two.load(spec)
        stats = one.stats()
        tensors = mapped(store, one, spec)
        assert mapped(store, two, spec).keys() == expected.keys()
    assert (report.tensors_read, report.tensors_kept) == (len(expected), 0)
    assert (again.tensors_read, again.bytes_read, again.tensors_kept) == (0, 0, len(expected))
    assert stats.bytes_read == {str(model.weights): report.bytes_read}
    assert seen[-1] == (report.bytes_read, report.bytes_read)
    for name, tensor in expected.items():
        rows = tensor.shape[0]  # the vocabulary is padded
        np.testing.assert_array_equal(tensors[name][:rows], tensor)


def test_only_what_is_missing_is_read_and_what_nobody_needs_is_dropped(
    model: Model, store: StoreProcess
) -> None:
    low, high = (shard(model.weights, model.name, layers) for layers in (range(2), range(1, 3)))
    with StoreClient(store.socket) as client:
        client.load(low)
        report = client.load(high)
        assert (report.tensors_read, report.tensors_kept) == (9, 9)
        before = client.stats()
        freed = client.retain([high])
        after = client.stats()
        assert after.weight_bytes == before.weight_bytes - freed
        assert after.tensors == 18
        with pytest.raises(TensorStoreError, match="10 tensors of the shard are not loaded"):
            client.attach(low)
        assert client.load(low).tensors_read == 10


def test_lent_weights_outlive_their_dropping(model: Model, store: StoreProcess) -> None:
    spec = shard(model.weights, model.name)
    with StoreClient(store.socket) as client:
        client.load(spec)
        tensors = mapped(store, client, spec)
        before = {name: tensor.copy() for name, tensor in tensors.items()}
        client.retain([])
        assert client.stats().weight_bytes == 0
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, before[name])


def test_a_tied_table_is_held_once(tmp_path: Path, store: StoreProcess) -> None:
    name = push(random_model(tmp_path / "tied", tied=True), tmp_path / "store", [1])
    first = shard(tmp_path / "store", name, range(2))
    last = shard(tmp_path / "store", name, range(2, 4))
    with StoreClient(store.socket) as client:
        client.load(first)
        assert client.load(last).tensors_kept == 1
        tables = (
            mapped(store, client, first)["model.embed_tokens.weight"],
            mapped(store, client, last),
        )
        np.testing.assert_array_equal(tables[0], tables[1]["lm_head.weight"])


def test_lent_weights_cannot_be_written() -> None:
    memory = HostMemory()
    segment, filling = memory.segment("test", 10), memory.filling()
    buffer = filling.take(segment, 0, 5)
    buffer[:] = b"hello"
    filling.put(segment, 0, buffer)
    segment.seal()
    fd = segment.lend()
    with pytest.raises(PermissionError):
        mmap.mmap(fd, mmap.PAGESIZE)
    # Nor by way of a descriptor opened anew: the kernel has sealed the memory itself.
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(again, mmap.PAGESIZE)
    with pytest.raises(PermissionError):
        os.write(again, b"x")
    with pytest.raises(PermissionError):
        os.truncate(again, 0)
    assert mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ)[:5] == b"hello"
    os.close(fd)
    os.close(again)
    segment.close()
    assert memory.allocated_bytes == 0


def test_damaged_weights_are_refused_and_the_rest_is_kept(
    tmp_path: Path, store: StoreProcess
) -> None:
    name = push(random_model(tmp_path / "tiny"), tmp_path / "store", [1])
    spec = shard(tmp_path / "store", name)
    damaged = next((tmp_path / "store").rglob("model.layers.3.mlp.up_proj.weight.bin"))
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with StoreClient(store.socket) as client:
        with pytest.raises(TensorStoreError, match="damaged"):
            client.load(spec)
        damaged.write_bytes(data)
        assert 9 <= client.load(spec).tensors_read < 39
        assert client.attach(spec).tensors["model.layers.3.mlp.up_proj.weight"].shape == (64, 32)


def test_kv_memory_passes_from_engine_to_engine(store: StoreProcess) -> None:
    with StoreClient(store.socket) as old, StoreClient(store.socket) as new:
        lease = old.kv_lease("old", MIB)
        kv = KvRange(MIB, memory=store.memory)
        kv.own(lease)
        assert not kv.tensor.any()
        kv.tensor[:] = 7
        with pytest.raises(KvUnavailable, match="owned by old"):
            new.kv_lease("new", MIB, wait=False)
        granted = []
        waiting = threading.Thread(target=lambda: granted.append(new.kv_lease("new", MIB)))
        waiting.start()
        while not old.stats().waiting:
            assert not granted
        kv.close()
        before = old.stats().memory
        old.release(lease)
        waiting.join()
        kv.own(granted[0])
        assert not kv.tensor.any()
        assert new.stats().memory.kv == before.kv  # the same memory, emptied
        kv.close()
        new.release(granted[0])


@pytest.mark.parametrize("how", [signal.SIGKILL, None], ids=["killed", "closed"])
def test_a_lease_ends_with_its_owner(store: StoreProcess, how: signal.Signals | None) -> None:
    code = store.client_code + (
        f"write(own({MIB}), 9); print('owns', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout
    assert owner.stdout.readline() == b"owns\n"
    with StoreClient(store.socket) as client:
        before = client.stats().memory
        with pytest.raises(KvUnavailable):
            client.kv_lease("next", MIB, wait=False)
        if how is not None:
            owner.send_signal(how)
        owner.communicate()
        lease = client.kv_lease("next", MIB, timeout=30)
        kv = KvRange(MIB, memory=store.memory)
        kv.own(lease)
        assert not kv.tensor.any()
        assert client.stats().memory.kv == before.kv
        kv.close()
        client.release(lease)


def test_who_waits_and_goes_is_forgotten(store: StoreProcess) -> None:
    with StoreClient(store.socket) as client:
        lease = client.kv_lease("old", MIB)
        with (
            StoreClient(store.socket) as impatient,
            pytest.raises(TensorStoreError, match=r"no KV memory came free in time"),
        ):
            impatient.kv_lease("impatient", MIB, timeout=0.05)
        assert client.stats().waiting == ()
        gone = StoreClient(store.socket, timeout=0.05)
        with pytest.raises(TensorStoreError):
            gone.kv_lease("gone", MIB)
        assert client.stats().waiting[0].owner == "gone"
        gone.close()
        while client.stats().waiting:
            pass
        client.release(lease)
        assert client.stats().leases == ()


def test_a_lease_is_its_clients_alone(store: StoreProcess) -> None:
    with StoreClient(store.socket) as one, StoreClient(store.socket) as two:
        lease = one.kv_lease("one", MIB)
        with pytest.raises(TensorStoreError, match="no such lease"):
            two.release(lease)
        one.release(lease)
        with pytest.raises(TensorStoreError, match="no such lease"):
            list(lease.descriptors())


def test_kv_memory_grows_for_a_larger_engine(store: StoreProcess) -> None:
    chunk = store.memory.kv_chunk_bytes
    with StoreClient(store.socket) as client:
        small = client.kv_lease("small", chunk)
        assert client.stats().memory.kv == small.nbytes == chunk
        client.release(small)
        large = client.kv_lease("large", 2 * chunk + 1)
        stats = client.stats()
        assert stats.kv_capacity == stats.memory.kv == large.nbytes == 3 * chunk
        kv = KvRange(2 * chunk + 1, memory=store.memory)
        kv.own(large)
        assert not kv.tensor.any()
        kv.close()
        client.release(large)


def test_a_lease_is_fetched_a_few_chunks_at_a_time(
    store: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorstore.client, "CHUNKS_AT_A_TIME", 2)
    with StoreClient(store.socket) as client:
        lease = client.kv_lease("engine", 5 * store.memory.kv_chunk_bytes)
        inodes = {os.fstat(descriptor.fd).st_ino for descriptor in lease.descriptors()}
        assert len(inodes) == 5
        client.release(lease)


def test_a_lease_may_have_more_chunks_than_files_may_be_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (
        StoreProcess(tmp_path / "store.sock") as store,
        StoreClient(store.socket) as client,
    ):
        lease = client.kv_lease("engine", 400 * store.memory.kv_chunk_bytes)
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 300, hard))
        try:
            inodes = {os.fstat(descriptor.fd).st_ino for descriptor in lease.descriptors()}
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(inodes) == 400


def test_a_limit_is_kept(tmp_path: Path) -> None:
    limit = str(40 * MIB)  # two chunks
    with (
        StoreProcess(tmp_path / "store.sock", "--kv-bytes", limit) as store,
        StoreClient(store.socket) as client,
    ):
        assert client.stats().memory.kv == client.stats().kv_capacity == 64 * MIB
        with pytest.raises(TensorStoreError, match="the store has 67108864"):
            client.kv_lease("engine", 65 * MIB)


def test_memory_is_accounted_to_the_byte(model: Model, store: StoreProcess) -> None:
    with StoreClient(store.socket) as client:
        client.load(shard(model.weights, model.name, range(2)))
        lease = client.kv_lease("engine", 3 * store.memory.kv_chunk_bytes)
        for _ in range(2):
            memory = client.stats().memory
            assert memory.weights == client.stats().weight_bytes > 0
            assert memory.allocated == memory.weights + memory.kv
            assert memory.staging == 0
            if store.card is not None:
                assert memory.device_total == store.card.nbytes
                assert memory.device_free == store.card.nbytes - memory.allocated
            client.load(shard(model.weights, model.name))
        client.release(lease)
        client.retain([])
        memory = client.stats().memory
        assert (memory.weights, memory.allocated) == (0, memory.kv)


def test_nothing_is_left_of_a_killed_store(model: Model, tmp_path: Path) -> None:
    before = sorted(Path("/dev/shm").iterdir())
    with StoreProcess(tmp_path / "store.sock") as store, StoreClient(store.socket) as client:
        client.load(shard(model.weights, model.name))
        client.kv_lease("engine", MIB)
        store.process.kill()
        store.process.wait()
        with pytest.raises(TensorStoreError, match="has gone"):
            client.stats()
    assert sorted(Path("/dev/shm").iterdir()) == before
    with (
        StoreProcess(tmp_path / "store.sock") as successor,
        StoreClient(successor.socket) as client,
    ):
        assert client.stats().weight_bytes == 0


@pytest.mark.parametrize("how", ["terminated", "input closed"])
def test_a_store_ends_when_told(store: StoreProcess, how: str) -> None:
    with StoreClient(store.socket) as client:
        client.kv_lease("engine", MIB)
        if how == "terminated":
            store.process.terminate()
        else:
            assert store.process.stdin
            store.process.stdin.close()
        assert store.process.wait(10) == 0
    assert not store.socket.exists()


def test_a_store_ends_with_its_parent(tmp_path: Path) -> None:
    socket = tmp_path / "store.sock"
    code = (
        "import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-m', "
        f"'shuntserve_core.tensorstore', '--socket', {str(socket)!r}], stdin=subprocess.DEVNULL,"
        "stdout=subprocess.PIPE); p.stdout.readline(); print(p.pid, flush=True); os._exit(0)"
    )
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    try:
        fd = os.pidfd_open(int(parent.stdout))
    except ProcessLookupError:
        pass
    else:
        import select

        assert select.select([fd], [], [], 10)[0]
        os.close(fd)
    assert not socket.exists()


def test_two_stores_do_not_share_a_socket(store: StoreProcess) -> None:
    command = [sys.executable, "-m", "shuntserve_core.tensorstore", "--socket", str(store.socket)]
    second = subprocess.run(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.returncode == 2
    assert "another tensor store listens there" in second.stderr


def test_an_unknown_shard_is_refused_in_one_line(model: Model, store: StoreProcess) -> None:
    with StoreClient(store.socket) as client:
        with pytest.raises(TensorStoreError, match="no shards for tensor-parallel degree 3"):
            client.load(shard(model.weights, model.name, tp=3))
        with pytest.raises(TensorStoreError, match="no complete model a/b"):
            client.load(shard(model.weights, "a/b"))
