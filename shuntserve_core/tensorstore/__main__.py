"""`python -m shuntserve_core.tensorstore`: run one store until nobody needs it.

It ends on SIGTERM, when its standard input (a pipe from the node agent) closes, and when its
parent dies.  It prints one JSON line when it listens.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import selectors
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from shuntserve_core.errors import UserError
from shuntserve_core.registry import Registry
from shuntserve_core.tensorstore.memory import Memory, open_memory
from shuntserve_core.tensorstore.server import DYING_SECONDS, StoreServer


def main(
    arguments: list[str] | None = None, memory_of: Callable[[str], Memory] = open_memory
) -> int:
    """Run the store on the memory of a device; returns the exit status."""
    parent = os.getppid()  # before anybody can know that we run, and go
    options = _parse(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    _open_many_files()
    try:
        memory = memory_of(options.device)
        server = StoreServer(
            options.socket,
            memory,
            Registry(),
            options.kv_bytes,
            dying_seconds=options.dying_seconds,
        )
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.close())
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    print(json.dumps({"event": "listening", "socket": str(options.socket)}), flush=True)  # noqa: T201
    server.serve()
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m shuntserve_core.tensorstore")
    parser.add_argument("--socket", type=Path, required=True, help="path of the Unix socket")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:N")
    parser.add_argument(
        "--kv-bytes",
        type=int,
        default=0,
        help="KV memory in all; without it the largest lease so far decides",
    )
    parser.add_argument(
        "--dying-seconds",
        type=float,
        default=DYING_SECONDS,
        help="how long a process may take to exit once its connection has ended",
    )
    return parser.parse_args(arguments)


def _open_many_files() -> None:
    """On a host every chunk and segment is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _end_with(parent: int) -> None:
    """Wait until the parent dies or standard input closes, then end as on SIGTERM.

    Not PR_SET_PDEATHSIG, which fires when the thread that started us ends, even if the parent
    process lives on.
    """
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(os.pidfd_open(parent), selectors.EVENT_READ)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if _is_pipe(0):
            selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != 0 or not os.read(0, 4096):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return


def _is_pipe(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # reads under way must not keep a store alive that nobody needs
