"""Whether this machine has the GPUs that nodes on it want, found out without importing PyTorch."""

from __future__ import annotations

import ctypes
import importlib.metadata

DRIVER = "libcuda.so.1"


def cuda_trouble(gpus: int, *, driver: str = DRIVER) -> str:
    """Why nodes with so many GPUs cannot run on this machine's; nothing if they can.

    `CUDA_VISIBLE_DEVICES` counts, as for everybody who asks the driver.
    """
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return f"this machine has no NVIDIA driver ({driver})"
    if error := cuda.cuInit(0):
        return f"the NVIDIA driver does not start: CUDA error {error}"
    count = ctypes.c_int(0)
    if error := cuda.cuDeviceGetCount(ctypes.byref(count)):
        return f"the NVIDIA driver does not count its GPUs: CUDA error {error}"
    if count.value < gpus:
        return f"a node has {gpus} GPUs, and this machine {count.value}"
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "torch is not installed"
    if torch.endswith("+cpu"):
        return f"torch {torch} is built for the CPU"
    try:
        importlib.metadata.version("cuda-bindings")
    except importlib.metadata.PackageNotFoundError:
        return "cuda-bindings is not installed: it comes with the extra `cuda`"
    return ""
