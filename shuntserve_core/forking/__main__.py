"""`python -m shuntserve_core.forking`: the template process.

It imports a module, and forks a worker that calls the module's `main()` for every request on its
control socket: one message of JSON, with the worker's standard streams attached.  It ends when the
agent closes the socket.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from setproctitle import setproctitle, setthreadtitle

from shuntserve_core.node.processes import die_with_parent

_MESSAGE_BYTES = 1 << 18
_STREAMS = 3


class ForkRefused(Exception):
    """Forking would go wrong, or did."""


def main(arguments: list[str] | None = None) -> None:
    """Import, serve, and in a worker go on as that."""
    agent = os.getppid()
    parser = argparse.ArgumentParser(prog="python -m shuntserve_core.forking")
    parser.add_argument("module", help="what to import; `main()` of it is the worker")
    parser.add_argument("--control", type=int, required=True, help="number of the open socket")
    options = parser.parse_args(arguments)
    worker: Callable[[], None] = importlib.import_module(options.module).main
    gc.collect()
    gc.freeze()  # a collection in a worker would write to every object, and so copy it
    sys.stdout.write(json.dumps({"event": "ready"}) + "\n")
    sys.stdout.flush()
    with socket.socket(fileno=options.control) as control:
        forked = serve(control, agent)
    if forked:  # out of the block and the loop, so that a worker ends as any program does
        worker()


def serve(control: socket.socket, agent: int) -> bool:
    """Fork for every request.  Returns True in a worker, and False when the agent is done."""
    while True:
        message, streams, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, _STREAMS)
        if not message:
            return False
        try:
            pid = fork_for(agent)
        except (ForkRefused, OSError) as error:
            answer: dict[str, Any] = {"error": str(error)}
        else:
            if pid == 0:
                become(json.loads(message), streams)
                return True
            answer = {"pid": pid}
        for fd in streams:
            os.close(fd)
        control.send(json.dumps(answer).encode())


def why_not_fork(process: Path) -> str:
    """What a fork of a process (its directory in /proc) would lose; empty if it may fork."""
    threads = sum(1 for _ in (process / "task").iterdir())
    if threads > 1:
        return f"the template runs {threads} threads, which a fork would lose"
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them has been closed
            if str(descriptor.readlink()).startswith("/dev/nvidia-uvm"):
                return "the template has a CUDA context, which a fork would break"
    return ""


def fork_for(agent: int) -> int:
    """Fork a worker whose parent is the agent; its process id, and 0 in the worker itself.

    The worker leads a session of its own, and dies with the agent.  Raises `ForkRefused`, and
    OSError.
    """
    reason = why_not_fork(Path("/proc/self"))
    if reason:
        raise ForkRefused(reason)
    told, tell = os.pipe()
    held, release = os.pipe()
    between = os.fork()
    if between == 0:
        _leave_worker_behind()
        os.close(told)
        os.close(release)
        os.setsid()
        os.read(held, 1)  # nothing comes; it ends when the process between us is gone
        die_with_parent()
        if os.getppid() != agent:
            os._exit(1)
        os.write(tell, str(os.getpid()).encode())
        os.close(tell)
        os.close(held)
        return 0
    os.close(tell)
    os.close(held)
    os.waitpid(between, 0)
    os.close(release)
    pid = os.read(told, 32)
    os.close(told)
    if not pid:
        raise ForkRefused("the agent did not become the worker's parent")
    return int(pid)


def _leave_worker_behind() -> None:
    """Fork once more and end; returns in the fork."""
    try:
        worker = os.fork()
    except OSError:
        os._exit(1)
    if worker:
        os._exit(0)


def become(request: dict[str, Any], streams: Sequence[int]) -> None:
    """Turn this fork into the worker that was asked for."""
    for target, fd in enumerate(streams):
        os.dup2(fd, target)
        os.close(fd)
    os.environ.update(request["environment"])
    setproctitle(request["title"])
    setthreadtitle(Path(sys.executable).name)  # the short name, which the other has changed too


if __name__ == "__main__":
    main()
