"""Pushes a checkpoint and prints bytes sent so far, to be killed by a test."""

from __future__ import annotations

import sys
from pathlib import Path

from shuntserve_core.registry import Registry
from shuntserve_core.weights import open_store
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import Progress, push_model
from shuntserve_core.weights.sources import open_source
from shuntserve_plugins.storage import directory


def main() -> None:
    checkpoint, url, part_bytes, workers = sys.argv[1:]
    directory.PART_BYTES = int(part_bytes)
    source, name = open_source(str(Path(checkpoint)))
    plan = plan_push(source, name, [1])

    def tell(progress: Progress) -> None:
        sys.stdout.write(f"{progress.sent_bytes}\n")
        sys.stdout.flush()

    store = open_store(url, Registry())
    push_model(store, source, plan, workers=int(workers), on_progress=tell)


if __name__ == "__main__":
    main()
