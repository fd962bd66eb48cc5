"""A template that a fork would break is not forked."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve_core.forking.__main__ import why_not_fork


def process(directory: Path, threads: int, *devices: str) -> Path:
    """What /proc says of a process."""
    for number in range(threads):
        (directory / "task" / str(number)).mkdir(parents=True)
    (directory / "fd").mkdir()
    for number, device in enumerate(("/dev/null", *devices)):
        (directory / "fd" / str(number)).symlink_to(device)
    return directory


@pytest.mark.parametrize(
    ("threads", "devices", "reason"),
    [
        (1, (), ""),
        (1, ("/dev/nvidiactl",), ""),  # asking for GPUs opens it, and closes it again
        (2, (), "2 threads"),
        (1, ("/dev/nvidiactl", "/dev/nvidia-uvm"), "CUDA context"),
    ],
)
def test_threads_and_gpus_forbid_a_fork(
    tmp_path: Path, threads: int, devices: tuple[str, ...], reason: str
) -> None:
    said = why_not_fork(process(tmp_path, threads, *devices))
    assert reason in said
    assert bool(said) == bool(reason)
