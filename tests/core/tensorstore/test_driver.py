"""What reaches the CUDA driver's library through `cuda-bindings`: a library that only listens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings")
COMPILER = shutil.which("cc") or shutil.which("gcc")

PROGRAM = """
import os
from shuntserve_core.tensorstore.memory import OutOfMemory
from shuntserve_core.tensorstore.memory.cuda import CudaFilling, CudaMemory
from shuntserve_core.tensorstore.memory.driver import CudaBindings

memory = CudaMemory(CudaBindings(1))
assert (memory.device, memory.granularity) == ("cuda:1", 2 << 20)
assert (memory.room().free, memory.room().total) == (5, 9)
lent, addresses = memory.allocate(100), memory.reserve(100)
addresses.back([lent], writable=False)
adopted = memory.adopt(lent.lend(writable=False), lent.nbytes)
memory.zero([adopted])
adopted.close()
lent.close()
addresses.clear()
segment, filling = memory.segment("weights", 5), CudaFilling(memory, 1, 4096)
view = filling.take(segment, 256, 5)
view[:] = b"hello"
filling.put(segment, 256, view)
filling.close()
segment.close()
try:
    memory.allocate(5 << 30)
except OutOfMemory as error:
    print(error)
"""

EXPECTED = [
    "",
    "cuInit 0",
    "cuDeviceGetAttribute 102 1",
    "cuDeviceGetAttribute 103 1",
    "cuDevicePrimaryCtxRetain 1",
    "cuMemGetAllocationGranularity 1 1 1 1, 0",
    "cuStreamCreate 1",
    "cuMemCreate 2097152, 1 1 1 1, 0",
    "cuMemAddressReserve 2097152 0 0 0",
    "cuMemMap 7f0000000000 2097152 0 77 0",
    "cuMemSetAccess 7f0000000000 2097152, 1 1 1, 1",
    "cuMemExportToShareableHandle 77 1 0",
    "cuMemImportFromShareableHandle fd 1",
    "cuMemAddressReserve 2097152 0 0 0",
    "cuMemMap 7f0000000000 2097152 0 78 0",
    "cuMemSetAccess 7f0000000000 2097152, 1 1 3, 1",
    "cuMemsetD8Async 7f0000000000 0 2097152 0x57",
    "cuStreamSynchronize 0x57",
    "cuMemUnmap 7f0000000000 2097152",
    "cuMemAddressFree 7f0000000000 2097152",
    "cuMemRelease 78",
    "cuMemRelease 77",
    "cuCtxSynchronize",
    "cuMemUnmap 7f0000000000 2097152",
    "cuMemCreate 2097152, 1 1 1 1, 0",
    "cuMemAddressReserve 2097152 0 0 0",
    "cuMemMap 7f0000000000 2097152 0 77 0",
    "cuMemSetAccess 7f0000000000 2097152, 1 1 3, 1",
    "cuMemHostAlloc 4096 0",
    "cuStreamCreate 1",
    "cuStreamSynchronize 0x57",
    "cuMemcpyHtoDAsync 7f0000000100 hello 5 0x57",
    "cuStreamSynchronize 0x57",
    "cuStreamDestroy 0x57",
    "cuMemFreeHost",
    "cuCtxSynchronize",
    "cuMemUnmap 7f0000000000 2097152",
    "cuMemAddressFree 7f0000000000 2097152",
    "cuMemRelease 77",
    "",
][1:-1]


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_calls_arrive_as_they_were_meant(tmp_path: Path) -> None:
    source = Path(__file__).with_name("libcuda.c")
    assert COMPILER
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-w", "-o", str(tmp_path / "libcuda.so.1"), str(source)],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cuda:1: no room for 5368709120 bytes: 5 of 9 are free\n"
    calls = done.stderr.splitlines()
    context = [call for call in calls if call.startswith("cuCtxP")]
    assert context[::2] == ["cuCtxPushCurrent 0xc0de"] * (len(context) // 2)
    assert context[1::2] == ["cuCtxPopCurrent"] * (len(context) // 2)
    assert [call for call in calls if call not in context] == EXPECTED
