"""(a) What a store lends comes back, whatever happens to who borrowed it."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext

import torch

from gpu_check import holders, model
from gpu_check.model import Model
from gpu_check.place import Place
from gpu_check.rows import Figures, Record, expect
from gpu_check.stores import Store, whole
from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.tensorstore.spec import MemoryStats
from shuntserve_core.tensorstore.views import KvRange, shard_tensors

CYCLES = 20
MB = 1 << 20
SETTLE_SECONDS = 10.0


def run(record: Record, place: Place) -> None:
    """All of it on one store."""
    size = model.TINY if not place.on_gpu else model.Size(4, 1024, 8, 4, 128, 2816, 8192)
    made = model.make(place.scratch, size, torch.float16)
    forks = holders.context()
    with Store(place.scratch / "store", place.device) as store, store.client() as client:
        with record.check("every tensor is as in the checkpoint") as figures:
            client.load(whole(made))
            _compare(client, made, figures)
        with record.check("what a killed engine held is lent on, as zeros") as figures:
            _kill_and_return(store, client, made, place, forks, figures)
        with record.check("a lease larger than any before: the region grows") as figures:
            _grow(client, place, figures)
        with record.check("weights cannot be written to by who borrows them") as figures:
            _write_weights(store, client, made, place, forks, figures)
        with record.check("memory taken and given back, to the byte") as figures:
            _account(client, made, place, figures)


def _compare(client: StoreClient, made: Model, figures: Figures) -> None:
    """The lent tensors against the file that they were cut from."""
    data = (made.directory / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    import json

    header = json.loads(data[8 : 8 + length])
    tensors = shard_tensors(client.attach(whole(made)))
    for name, tensor in tensors.items():
        begin, end = (8 + length + offset for offset in header[name]["data_offsets"])
        original = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float16)
        rows = original.view(header[name]["shape"])
        # Vocabularies are padded in the store.
        same = torch.equal(tensor[: len(rows)].cpu(), rows)
        expect(same, f"{name} differs from the checkpoint")
    figures["tensors"] = len(tensors)


def _kill_and_return(
    store: Store,
    client: StoreClient,
    made: Model,
    place: Place,
    forks: ForkServerContext,
    figures: Figures,
) -> None:
    """Twenty engines in turn: each finds zeros although the one before left a pattern."""
    nbytes = (256 if place.on_gpu else 4) * MB
    waits = []
    for cycle in range(CYCLES):
        holder = holders.Holder(
            forks, holders.hold, str(store.socket), place.device, nbytes, whole(made)
        )
        holder.kill()
        began = time.monotonic()
        lease = client.kv_lease("next", nbytes, timeout=30.0)
        waits.append(time.monotonic() - began)
        kv = KvRange(nbytes, place.device)
        kv.own(lease)
        dirty = int(kv.tensor.count_nonzero())
        kv.close()
        client.release(lease)
        expect(not dirty, f"cycle {cycle}: {dirty} bytes of the killed engine's are left")
    figures["cycles"] = CYCLES
    figures["median wait for the memory, ms"] = 1e3 * sorted(waits)[CYCLES // 2]
    figures["longest wait, ms"] = 1e3 * max(waits)


def _grow(client: StoreClient, place: Place, figures: Figures) -> None:
    """Twice as much as anybody had; and two leases beside each other do not touch."""
    nbytes = (512 if place.on_gpu else 8) * MB
    first = client.kv_lease("first", nbytes, timeout=30.0)
    figures["bytes"] = first.nbytes
    kv = KvRange(nbytes, place.device)
    kv.own(first)
    kv.tensor.fill_(1)
    total = int(kv.tensor.sum(dtype=torch.int64))
    kv.close()
    client.release(first)
    expect(total == nbytes, f"{total} of {nbytes} bytes hold what was written")


def _write_weights(
    store: Store,
    client: StoreClient,
    made: Model,
    place: Place,
    forks: ForkServerContext,
    figures: Figures,
) -> None:
    holder = holders.Holder(
        forks, holders.write_weights, str(store.socket), place.device, whole(made)
    )
    status = holder.ended(20.0)
    figures["exit status of the writer"] = "still runs" if status is None else status
    _compare(client, made, figures)
    expect(status not in (0, None), "a process wrote to lent weights and lives")


def _account(client: StoreClient, made: Model, place: Place, figures: Figures) -> None:
    """What the store says that it holds, and what the driver says is free, byte for byte."""
    nbytes = (1024 if place.on_gpu else 16) * MB
    expect(not client.stats().leases, f"leases are left: {client.stats().leases}")
    before = _memory(client, place)
    lease = client.kv_lease("accounted", nbytes, timeout=30.0)
    leased = _memory(client, place)
    client.release(lease)
    grown = leased.kv - before.kv
    figures["KV memory grew by, bytes"] = grown
    expect(leased.kv >= nbytes, f"{leased.kv} bytes of KV memory for a lease of {nbytes}")
    _compare_free(before, leased, "free memory went down by, bytes", figures)
    dropped = client.retain([])
    figures["weights, bytes"] = dropped
    expect(dropped == before.weights, f"{dropped} bytes dropped of {before.weights}")
    if place.on_gpu:
        _until(lambda: _free(client) - _of(leased), at_least=dropped)
    after = _memory(client, place)
    expect(after.weights == 0, f"{after.weights} bytes of weights are left")
    _compare_free(after, leased, "free memory went up by, bytes", figures)


def _memory(client: StoreClient, place: Place) -> MemoryStats:
    """Of the store; what it allocated is the sum of its parts."""
    if place.on_gpu:
        torch.cuda.synchronize()
    memory = client.stats().memory
    total = memory.weights + memory.kv
    expect(memory.allocated == total, f"{memory.allocated} bytes allocated, {total} accounted for")
    expect(memory.staging == 0, f"{memory.staging} bytes of pinned memory are left")
    return memory


def _compare_free(less: MemoryStats, more: MemoryStats, name: str, figures: Figures) -> None:
    """Between two moments the driver's free memory changed as the store's own did."""
    if less.device_free is None or more.device_free is None:
        return  # the host's free memory is everybody's
    changed, freed = more.allocated - less.allocated, less.device_free - more.device_free
    figures[name] = freed
    expect(freed == changed, f"the store's memory changed by {changed}, the driver's by {freed}")


def _free(client: StoreClient) -> int:
    return _of(client.stats().memory)


def _of(memory: MemoryStats) -> int:
    assert memory.device_free is not None
    return memory.device_free


def _until(value: Callable[[], int], at_least: int) -> int:
    """A value that is given some time."""
    end = time.monotonic() + SETTLE_SECONDS
    while value() < at_least and time.monotonic() < end:
        time.sleep(0.05)
    return value()
