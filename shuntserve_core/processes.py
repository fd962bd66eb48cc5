"""Which process a written-down number means: numbers are given out again.

`psutil` tells processes apart while it holds them, by the same fact; what it gives to write down
(`create_time`) moves when the clock is set.
"""

from __future__ import annotations

import os
from pathlib import Path


def identity_of(pid: int | None = None) -> str:
    """What tells a process (this one by default) from every other of this machine and boot.

    Empty if there is none of that number, or the system does not tell (not Linux).
    """
    pid = os.getpid() if pid is None else pid
    machine, start = _machine(), _start_of(pid)
    return f"{machine} {pid} {start}" if machine and start else ""


def runs(identity: str) -> bool:
    """Whether that process is there, and can be seen from here."""
    _, pid = _parts(identity)
    return pid is not None and identity_of(pid) == identity


def has_ended(identity: str) -> bool:
    """Whether it ran where this process would see it, and runs no more."""
    machine, pid = _parts(identity)
    return pid is not None and machine == _machine() and not runs(identity)


def _parts(identity: str) -> tuple[str, int | None]:
    machine, _, rest = identity.rpartition(" ")[0].rpartition(" ")
    return machine, int(rest) if machine and rest.isdecimal() else None


def _machine() -> str:
    """This boot and process-id namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process began, in clock ticks after boot; empty if there is none of that number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, start = fields[0], fields[19]
    return "" if state in "ZX" else start
