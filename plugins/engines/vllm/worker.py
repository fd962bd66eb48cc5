"""The process of one rank: `python -m shuntserve_plugins.engines.vllm.worker`.

Reads a `WorkerSpec` as one line of JSON on standard input, and ends with that stream.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cattrs

from shuntserve_core.errors import UserError
from shuntserve_plugins.engines.vllm.control import Hub, Silence, Spoke
from shuntserve_plugins.engines.vllm.engine import WorkerSpec
from shuntserve_plugins.engines.vllm.symbols import refuse_installed

# Nothing above imports torch: rank 0 listens, and ranks meet, while it is still being imported.


def main() -> None:
    """The process."""
    reports = Reports()
    spec = cattrs.structure(json.loads(sys.stdin.readline()), WorkerSpec)
    if "vllm" not in sys.modules:  # else the template has looked
        _refuse_installed()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the control plane's
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.Thread(target=_end_with_agent, daemon=True).start()
    if spec.rank == 0:
        with reports.mistakes():
            _lead(spec, reports)
    else:
        _follow(spec, reports)


class Reports:
    """The way to the node agent: standard output, of which vLLM and its libraries get none."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def __call__(self, **event: object) -> None:
        """Tell the node agent."""
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()

    @contextmanager
    def mistakes(self) -> Iterator[None]:
        """Tell of what a person can change, such as a GPU without room, and raise it."""
        try:
            yield
        except UserError as error:
            self(event="failed", reason=str(error))
            raise


def _lead(spec: WorkerSpec, report: Reports) -> None:
    """Rank 0: takes requests, plans steps, and does its own part of them."""
    launch = spec.launch
    hub = Hub(launch.rendezvous, launch.link_token, len(launch.ranks) - 1)
    from shuntserve_plugins.engines.vllm.server import TokenServer

    server = TokenServer(launch, spec.options)
    report(event="listening", address=server.start())
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    silence = Silence(spec.options.silence_seconds)
    hub.accept(silence)

    from shuntserve_plugins.engines.vllm.driver import Driver

    driver = Driver(spec, hub, server, report)
    silence.started()
    report(event="ready", **driver.prepared)
    driver.run()


def _follow(spec: WorkerSpec, report: Reports) -> None:
    """Any other rank: does as rank 0 says."""
    launch = spec.launch
    silence = Silence(spec.options.silence_seconds)
    spoke = Spoke(launch.rendezvous, launch.link_token, spec.rank, silence)

    from shuntserve_plugins.engines.vllm import payload
    from shuntserve_plugins.engines.vllm.meeting import RankStore
    from shuntserve_plugins.engines.vllm.rank import STAND_BY, Rank

    rank = Rank(spec, RankStore(spoke.meeting))

    def run(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with report.mistakes():
            result = rank.run(method, args, kwargs)
        if method == STAND_BY:
            silence.started()
            report(event="ready", **result)
        return result

    spoke.serve(payload.Wire(), run)


def _refuse_installed() -> None:
    """End with one line in the log where this node has a vLLM that nobody has read."""
    try:
        refuse_installed()
    except UserError as error:
        sys.exit(str(error))


def _end_with_agent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
