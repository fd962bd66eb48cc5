"""Rank 0's loop: requests in, steps through all ranks, tokens out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from shuntserve_core.interfaces.link import READY, STANDBY, STOPPING, RequestRefused
from shuntserve_core.link.server import LinkServer
from shuntserve_core.types.request import EngineInfo, EngineLoad, EngineRequest
from shuntserve_plugins.engines.embedded.control import Hub
from shuntserve_plugins.engines.embedded.engine import FEATURES, WorkerSpec, kv_blocks, longest
from shuntserve_plugins.engines.embedded.geometry import Geometry
from shuntserve_plugins.engines.embedded.plan import Choice, Plan, Scores, pack_plan, unpack_results
from shuntserve_plugins.engines.embedded.scheduler import Limits, Scheduler

if TYPE_CHECKING:
    from shuntserve_plugins.engines.embedded.process import RankProcess


class Driver:
    """The link's handler, and the loop that serves what it is handed."""

    def __init__(self, spec: WorkerSpec, geometry: Geometry, hub: Hub) -> None:
        launch = spec.launch
        self._vocab = geometry.vocab
        self._peers = len(launch.ranks) - 1
        self._hub = hub
        self.from_ranks: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        """(rank, message) as ranks send them."""
        self._tasks: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        max_length = longest(launch, geometry)
        blocks = kv_blocks(launch, geometry)
        self._scheduler = Scheduler(Limits(blocks, launch.max_batch, max_length, spec.max_chunk))
        self._load = EngineLoad()
        self._active = False
        self.on_active: Callable[[float, float], None] = lambda _waited, _mapped: None
        """Told how many seconds it took until KV memory was owned, and was in its place."""
        info = EngineInfo(
            engine_id=launch.engine_id,
            engine="embedded",
            model=launch.model.name,
            max_batch=launch.max_batch,
            max_length=max_length,
            features=FEATURES,
        )
        self.server = LinkServer(info, self, launch.link_token)

    def submit(self, request: EngineRequest) -> None:
        """Take a request.  Raises `RequestRefused` for what no engine could do."""
        reason = refusal(request, self._vocab, self.server.info.max_length)
        if reason:
            raise RequestRefused(reason)
        self._tasks.put(("submit", request))

    def abort(self, request_id: str) -> None:
        """Drop a request before the next step."""
        self._tasks.put(("abort", request_id))

    def activate(self) -> None:
        """Own the KV memory as soon as it is free, and serve."""
        self._tasks.put(("activate", None))

    def load(self) -> EngineLoad:
        """As of the last step."""
        return self._load

    def stop(self) -> None:
        """End the process; may be called from a signal handler."""
        self.server.announce(STOPPING)
        self.server.stop()
        os._exit(0)

    def run(self, process: RankProcess) -> None:
        """Serve for ever; `process` is this rank's own part."""
        for _ in range(self._peers):
            self.from_ranks.get()  # "ready"
        self._hub.all_started()
        self.server.announce(STANDBY)
        while True:
            self._take_tasks(process)
            if self._active and self._scheduler.busy:
                self._step(process)

    def _take_tasks(self, process: RankProcess) -> None:
        """Do what came in; wait for something if there is nothing else to do."""
        idle = not (self._active and self._scheduler.busy)
        while True:
            try:
                task, value = self._tasks.get(block=idle)
            except Empty:
                return
            idle = False
            if task == "submit":
                self._scheduler.submit(value)
            elif task == "abort":
                self._scheduler.abort(value)
            elif not self._active:
                self._activate(process)

    def _activate(self, process: RankProcess) -> None:
        began = time.perf_counter()
        self._hub.tell("activate")
        mapped = process.own_memory()
        for _ in range(self._peers):
            self.from_ranks.get()  # "active"
        self._active = True
        self.server.announce(READY)
        self.on_active(time.perf_counter() - began - mapped, mapped)

    def _step(self, process: RankProcess) -> None:
        plan = self._scheduler.plan()
        if plan.parts or plan.added or plan.dropped:
            self._hub.tell(pack_plan(plan))
        outputs = self._scheduler.apply(plan, self._results(process, plan))
        self._load = self._scheduler.load
        self.server.send_step(outputs)

    def _results(self, process: RankProcess, plan: Plan) -> list[Choice | Scores]:
        ours = process.rank.step(plan)
        if process.rank.stage.last or not any(part.sample or part.score for part in plan.parts):
            return ours
        _, results = self.from_ranks.get()
        return unpack_results(results)


def refusal(request: EngineRequest, vocab: int, max_length: int) -> str | None:
    """Why a request is wrong, or None."""
    sampling = request.sampling
    if not request.prompt:
        return "the prompt has no tokens"
    if len(request.prompt) >= max_length:
        return f"{len(request.prompt)} prompt tokens leave no room in {max_length}"
    if sampling.guided is not None:
        return "the embedded engine cannot constrain the output"
    known = {*request.prompt, *request.output, *sampling.logit_bias, *sampling.stop_token_ids}
    if min(known) < 0 or max(known) >= vocab:
        return f"token ids must be from 0 to {vocab - 1}"
    return None
