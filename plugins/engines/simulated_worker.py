"""The simulated engine's process: `python -m shuntserve_plugins.engines.simulated_worker`.

Reads a `SimulatedSpec` as one line of JSON on standard input; ends with that stream.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

from shuntserve_core.interfaces.link import READY, STANDBY, STOPPING, RequestRefused
from shuntserve_core.link.connection import LinkPolicy
from shuntserve_core.link.server import LinkServer
from shuntserve_core.types.request import EngineInfo, EngineLoad, EngineRequest
from shuntserve_plugins.engines.simulated import FEATURES, SimulatedSpec
from shuntserve_plugins.engines.simulated_steps import Simulation

_IDLE = 3600.0
"""Seconds to wait where nothing is due."""


class SimulatedEngine:
    """An engine on two threads: the link's, and the one that calls `run`."""

    def __init__(self, spec: SimulatedSpec, policy: LinkPolicy | None = None) -> None:
        self.spec = spec
        self._simulation = Simulation(spec)
        self._load = EngineLoad()
        self._tasks: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        info = EngineInfo(
            spec.engine_id, "simulated", spec.model, spec.max_batch, spec.max_length, FEATURES
        )
        self.server = LinkServer(info, self, spec.link_token, policy)

    def submit(self, request: EngineRequest) -> None:
        """Take a request."""
        needed = len(request.prompt) + 1
        if needed > self.spec.max_length:
            raise RequestRefused(
                f"{len(request.prompt)} prompt tokens leave no room in {self.spec.max_length}"
            )
        self._later(lambda: self._simulation.submit(request))

    def abort(self, request_id: str) -> None:
        """Drop a request."""
        self._later(lambda: self._simulation.abort(request_id))

    def activate(self) -> None:
        """Serve."""
        self._later(lambda: self.server.announce(READY))

    def load(self) -> EngineLoad:
        """As of the last step."""
        return self._load

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Work until `stop`; the link must be open already."""
        self._stopping.wait(self.spec.start)
        self.server.announce(STANDBY)
        on_ready()
        due: float | None = None
        while not self._stopping.is_set():
            now = time.monotonic()
            self._wake.wait(_IDLE if due is None else max(0.0, due - now))
            self._wake.clear()
            while self._tasks:
                self._tasks.popleft()()
            outputs, due = self._simulation.step(time.monotonic())
            self._load = self._simulation.load
            self.server.send_step(outputs)
        self.server.announce(STOPPING)
        self.server.stop()

    def stop(self) -> None:
        """Make `run` return; from any thread or signal handler."""
        self._stopping.set()
        self._wake.set()

    def _later(self, task: Callable[[], None]) -> None:
        self._tasks.append(task)
        self._wake.set()


def main() -> None:
    """The process."""
    logging.basicConfig(level=logging.WARNING)
    spec = SimulatedSpec(**json.loads(sys.stdin.readline()))
    engine = SimulatedEngine(spec)

    def terminate(number: int, frame: FrameType | None) -> None:
        engine.stop()

    def end_with_agent() -> None:
        sys.stdin.read()
        engine.stop()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the control plane's
    threading.Thread(target=end_with_agent, daemon=True).start()
    _report(event="listening", address=engine.server.start(f"{spec.host}:0"))
    engine.run(on_ready=lambda: _report(event="ready"))


def _report(**event: str) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
