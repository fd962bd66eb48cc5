"""(c) A CUDA graph captured on practice memory goes on with leased memory at the same address."""

from __future__ import annotations

import time
from typing import Any

import torch

from gpu_check.place import Place
from gpu_check.rows import Figures, Record, Skip, expect
from gpu_check.stores import Store
from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.tensorstore.views import KvRange

KV_BYTES = 4 << 30
NUMBERS = 1 << 20


def run(record: Record, place: Place) -> None:
    """Capture, switch, replay; then once more with the memory of a second lease."""
    if not place.on_gpu:
        raise Skip("there is no GPU")
    with (
        Store(place.scratch / "store", place.device) as store,
        store.client() as client,
        record.check("captured on practice memory, replayed on leased memory") as figures,
    ):
        _capture_and_replay(client, place.device, figures)


def _capture_and_replay(client: StoreClient, device: str, figures: Figures) -> None:
    free = torch.cuda.mem_get_info(device)[0]
    kv = KvRange(KV_BYTES, device)
    kv.practise()
    figures["practice memory, bytes"] = free - torch.cuda.mem_get_info(device)[0]
    address = kv.tensor.data_ptr()
    # The last numbers of the range: behind practice memory that is seen again and again.
    cells = kv.tensor[-4 * NUMBERS :].view(torch.int32)
    source = torch.zeros(NUMBERS, dtype=torch.int32, device=device)
    seen = torch.zeros((), dtype=torch.int64, device=device)
    graph = _captured(cells, source, seen)
    lease = client.kv_lease("graphs", KV_BYTES, timeout=30.0)
    torch.cuda.synchronize()
    began = time.perf_counter()
    kv.own(lease)
    figures["to map 4 GiB of leased memory, ms"] = 1e3 * (time.perf_counter() - began)
    expect(kv.tensor.data_ptr() == address, "the address has changed")
    expect(int(cells.count_nonzero()) == 0, "leased memory does not begin as zeros")
    for value in (3, 5):
        source.fill_(value)
        graph.replay()
        torch.cuda.synchronize()
        expect(int(seen) == value * NUMBERS, f"the replay summed to {int(seen)}")
        expect(bool((cells == value).all()), "the replay wrote elsewhere")
    dirty = int(kv.tensor[: -4 * NUMBERS].count_nonzero())
    expect(dirty == 0, f"{dirty} bytes elsewhere in the range were written")
    kv.close()
    client.release(lease)


def _captured(cells: torch.Tensor, source: torch.Tensor, seen: torch.Tensor) -> Any:
    """A graph that copies `source` into the cells and sums them up in `seen`."""

    def step() -> None:
        cells.copy_(source)
        seen.copy_(cells.sum())

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
