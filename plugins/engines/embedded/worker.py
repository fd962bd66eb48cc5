"""The process of one rank: `python -m shuntserve_plugins.engines.embedded.worker`.

Reads a `WorkerSpec` as one line of JSON on standard input, and ends with that stream.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from queue import SimpleQueue
from typing import Any

import cattrs

from shuntserve_core.errors import UserError
from shuntserve_plugins.engines.arrivals import PeerListener
from shuntserve_plugins.engines.embedded.control import Hub, Spoke, watch_or_end
from shuntserve_plugins.engines.embedded.driver import Driver
from shuntserve_plugins.engines.embedded.engine import WorkerSpec
from shuntserve_plugins.engines.embedded.geometry import read_geometry
from shuntserve_plugins.engines.embedded.plan import pack_results, unpack_plan
from shuntserve_plugins.engines.peers import PeerLost

# Nothing above imports torch: rank 0 listens, and ranks meet, while it is still being imported.

_structure = cattrs.global_converter.get_structure_hook(WorkerSpec)
"""Made now, since making it takes more memory than using it: forked workers share that."""


def main() -> None:
    """The process."""
    spec: WorkerSpec = _structure(json.loads(sys.stdin.readline()), WorkerSpec)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the control plane's
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.Thread(target=_end_with_agent, daemon=True).start()
    try:
        _lead(spec) if spec.rank == 0 else _follow(spec)
    except (UserError, PeerLost) as error:
        if isinstance(error, UserError):
            report(event="failed", reason=str(error))
        sys.stderr.write(f"rank {spec.rank} of {spec.launch.engine_id}: {error}\n")
    except Exception:  # our bug, or a collective whose other side has died
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # an orderly end would wait for threads that wait for dead ranks


def report(**event: object) -> None:
    """Tell the node agent."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _lead(spec: WorkerSpec) -> None:
    """Rank 0: takes requests, plans steps, and does its own part of them."""
    launch = spec.launch
    hub = Hub(launch.rendezvous, launch.link_token, len(launch.ranks) - 1)
    driver = Driver(spec, read_geometry(launch.model_dir), hub)
    driver.on_active = lambda waited, mapped: report(event="active", waited=waited, mapped=mapped)
    report(event="listening", address=driver.server.start(f"{launch.ranks[0].host}:0"))
    signal.signal(signal.SIGTERM, lambda *_: driver.stop())

    from shuntserve_plugins.engines.embedded.process import RankProcess

    hub.accept()
    listener = _listener(spec)
    addresses = hub.introduce(listener.address)
    watch_or_end(hub.watch, driver.from_ranks)
    process = RankProcess(spec, listener, addresses)
    report(event="ready")
    driver.run(process)


def _follow(spec: WorkerSpec) -> None:
    """Any other rank: does as rank 0 says."""
    launch = spec.launch
    spoke = Spoke(launch.rendezvous, launch.link_token, spec.rank)
    listener = _listener(spec)
    addresses = spoke.introduce(listener.address)
    inbox: SimpleQueue[Any] = SimpleQueue()

    def listen() -> None:
        while True:
            inbox.put(spoke.receive())

    watch_or_end(listen)

    from shuntserve_plugins.engines.embedded.process import RankProcess

    process = RankProcess(spec, listener, addresses)
    spoke.tell("ready")
    report(event="ready")
    while True:
        message = inbox.get()
        if message == "activate":
            process.own_memory()
            spoke.tell("active")
        else:
            plan = unpack_plan(message)
            results = process.rank.step(plan)
            if results:
                spoke.tell(pack_results(results))


def _listener(spec: WorkerSpec) -> PeerListener:
    """Where this rank's peers find it."""
    launch = spec.launch
    return PeerListener(f"{launch.ranks[spec.rank].host}:0", launch.link_token, len(launch.ranks))


def _end_with_agent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
