"""What any machine of a cluster needs: memory, disk, descriptors, ports, the time."""

from __future__ import annotations

import ctypes
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shuntserve_core.config.build import plugin_from
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.check import OK, PROBLEM, WARNING, Finding
from shuntserve_core.interfaces.frontdoor import Addressed
from shuntserve_core.interfaces.launcher import LocalNodes

if TYPE_CHECKING:
    from shuntserve_core.config import Config

_GIGABYTE = 1_000_000_000
_LEAST_MEMORY = 4 * _GIGABYTE
_LEAST_DISK = 5 * _GIGABYTE
_LEAST_SHARED = _GIGABYTE
_LEAST_DESCRIPTORS = 4096
_TIME_ERROR = 5
"""`TIME_ERROR` of linux/timex.h: the kernel's clock is not synchronised."""


class Machine:
    """Checks that need no plugin."""

    def findings(self, config: Config | None) -> Iterator[Finding]:
        """Look at this machine."""
        yield _python()
        yield _memory()
        yield _space("disk", Path(tempfile.gettempdir()), _LEAST_DISK)
        shared = Path("/dev/shm")  # noqa: S108 - what ranks of a node talk through
        if shared.is_dir():
            yield _space("shared memory", shared, _LEAST_SHARED)
        yield _descriptors()
        yield _loopback()
        if config is not None:
            yield from _door(config)
            yield from _nodes(config)
        yield clock(_clock_state())


def _python() -> Finding:
    return Finding("Python", OK, ".".join(map(str, sys.version_info[:3])))


def _memory() -> Finding:
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    detail = f"{free / _GIGABYTE:.1f} GB available"
    if free < _LEAST_MEMORY:
        return Finding("memory", WARNING, detail, "weights pass through it: have 4 GB or more")
    return Finding("memory", OK, detail)


def _space(what: str, path: Path, least: int) -> Finding:
    free = shutil.disk_usage(path).free
    detail = f"{free / _GIGABYTE:.1f} GB free in {path}"
    if free < least:
        remedy = f"have {least / _GIGABYTE:.0f} GB free there"
        return Finding(what, WARNING, detail, remedy)
    return Finding(what, OK, detail)


def _descriptors() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < _LEAST_DESCRIPTORS:
        remedy = f"raise it before serving: ulimit -n {_LEAST_DESCRIPTORS * 16}"
        return Finding("open files", WARNING, f"at most {limit}", remedy)
    return Finding("open files", OK, f"at most {limit}")


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                pass
    except OSError as error:
        return Finding("loopback", PROBLEM, str(error), "bring it up: ip link set lo up")
    return Finding("loopback", OK, "processes of this machine reach each other")


def _door(config: Config) -> Iterator[Finding]:
    """Whether the front door could listen, if it says where."""
    try:
        door = plugin_from(config, "frontdoor", config.document.frontdoor)
    except UserError as error:
        yield Finding("front door", PROBLEM, error.message, error.remedy)
        return
    if isinstance(door, Addressed):
        yield _listening(door.host, door.port)


def _listening(host: str, port: int) -> Finding:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        detail = f"{host}:{port} cannot be listened on: {error.strerror}"
        return Finding("front door", PROBLEM, detail, "end what listens there, or change the port")
    return Finding("front door", OK, f"{host}:{port} is free")


def _nodes(config: Config) -> Iterator[Finding]:
    """Whether nodes that are to be on this machine can be."""
    trouble = local_trouble(config)
    if trouble:
        yield Finding(
            "nodes", PROBLEM, trouble, 'set launcher.device to "cpu", or use another machine'
        )
    elif trouble is not None:
        yield Finding("nodes", OK, "they can be on this machine")


def local_trouble(config: Config) -> str | None:
    """Why the largest node cannot be here; nothing if it can, None if nodes are elsewhere."""
    launcher = plugin_from(config, "launcher", config.document.launcher)
    if not isinstance(launcher, LocalNodes):
        return None
    return launcher.trouble(max((o.instance.gpu_count for o in config.cluster.offers), default=1))


def clock(state: int | None) -> Finding:
    """The clock, by what `adjtimex` returns; None where there is no such call."""
    if state is None:
        remedy = "see that it is set by NTP: deadlines of notices are times"
        return Finding("clock", WARNING, "whether it is synchronised cannot be told", remedy)
    if state == _TIME_ERROR:
        remedy = "run chrony or systemd-timesyncd: deadlines of notices are times"
        return Finding("clock", WARNING, "it is not synchronised", remedy)
    return Finding("clock", OK, "it is synchronised")


def _clock_state() -> int | None:
    """What the kernel says of its clock."""
    if not sys.platform.startswith("linux"):
        return None
    parameters = ctypes.create_string_buffer(512)  # struct timex, all zero: only asks
    state = int(ctypes.CDLL(None, use_errno=True).adjtimex(parameters))
    return None if state < 0 else state
