"""(a) How fast weights that the page cache holds come into the store's memory."""

from __future__ import annotations

import torch

from gpu_check import model
from gpu_check.place import Place
from gpu_check.rows import Record, expect
from gpu_check.stores import Store, whole

RUNS = 3


def run(record: Record, place: Place) -> None:
    """Load, drop, load again."""
    size = model.BILLION if place.on_gpu else model.Size(4, 512, 8, 4, 64, 2048, 2048)
    made = model.make(place.scratch, size, torch.bfloat16, device=place.device)
    if place.on_gpu:
        torch.cuda.empty_cache()
    with Store(place.scratch / "store", place.device) as store, store.client() as client:
        with record.measure("load from the page cache") as figures:
            rates = []
            for _ in range(RUNS):
                report = client.load(whole(made))
                rates.append(report.bytes_read / report.seconds / 1e9)
                expect(client.retain([]) > 0, "nothing was dropped")
            figures["bytes"] = report.bytes_read
            figures["median, GB/s"] = sorted(rates)[RUNS // 2]
            figures["best, GB/s"] = max(rates)
        with record.check("loaded again, nothing is read") as figures:
            client.load(whole(made))
            again = client.load(whole(made))
            figures["bytes read"] = again.bytes_read
            expect(again.tensors_read == 0, f"{again.tensors_read} tensors were read again")
