"""`python -m shuntserve_core.testing.cuda_store CARD BYTES CHUNK ...`: a store on a fake card.

CARD is the card's name and BYTES its size; CHUNK is what KV memory is lent by.  The rest is as for
`python -m shuntserve_core.tensorstore`.
"""

from __future__ import annotations

import os
import sys

from shuntserve_core.tensorstore.__main__ import main
from shuntserve_core.tensorstore.memory.cuda import CudaMemory
from shuntserve_core.testing.cuda import FakeCard, FakeDriver


def run() -> int:
    """Run the store; returns the exit status."""
    name, nbytes, chunk_bytes, *arguments = sys.argv[1:]
    driver = FakeDriver(FakeCard(name, int(nbytes)))
    return main(["--device", "cuda:0", *arguments], lambda _: CudaMemory(driver, int(chunk_bytes)))


if __name__ == "__main__":
    status = run()
    sys.stdout.flush()
    os._exit(status)
