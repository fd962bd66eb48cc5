"""(a) An engine killed in mid-kernel does not write to memory that the store has lent on.

A process that dies closes its socket before the driver has taken its context apart: a store that
lent the memory on at that moment would have two writers.
"""

from __future__ import annotations

import time
from multiprocessing.context import ForkServerContext

from gpu_check import holders
from gpu_check.place import Place
from gpu_check.rows import Figures, Record, expect
from gpu_check.stores import Store
from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.tensorstore.views import KvRange

KILLS = 20
WATCH_SECONDS = 0.5
LONG_WATCH_SECONDS = 2.0


def run(record: Record, place: Place) -> None:
    """Twenty writers on one store."""
    forks = holders.context()
    with (
        Store(place.scratch / "store", place.device) as store,
        store.client() as client,
        record.check("nobody writes to what was lent on") as figures,
    ):
        _kill_writers(store, client, place, forks, figures)


def _kill_writers(
    store: Store, client: StoreClient, place: Place, forks: ForkServerContext, figures: Figures
) -> None:
    nbytes = (256 if place.on_gpu else 16) << 20
    waits, looks = [], 0
    for kill in range(KILLS):
        writer = holders.Holder(
            forks, holders.write_for_ever, str(store.socket), place.device, nbytes
        )
        writer.kill()
        began = time.monotonic()
        lease = client.kv_lease("next", nbytes, timeout=30.0)
        waits.append(time.monotonic() - began)
        kv = KvRange(nbytes, place.device)
        kv.own(lease)
        watch = LONG_WATCH_SECONDS if kill == 0 else WATCH_SECONDS if place.on_gpu else 0.05
        end = time.monotonic() + watch
        while time.monotonic() < end:
            dirty = int(kv.tensor.count_nonzero())
            looks += 1
            expect(
                not dirty,
                f"kill {kill}: {dirty} bytes written {time.monotonic() - end + watch:.3f} s "
                "after the memory was lent on",
            )
        kv.close()
        client.release(lease)
    figures["writers killed"] = KILLS
    figures["times looked"] = looks
    figures["median wait for the memory, ms"] = 1e3 * sorted(waits)[KILLS // 2]
    figures["longest wait, ms"] = 1e3 * max(waits)
