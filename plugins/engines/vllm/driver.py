"""Rank 0's loop: requests in, steps of vLLM's engine core, tokens out."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from queue import Empty
from typing import Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.core import EngineCore

from shuntserve_core.interfaces.link import READY, STANDBY
from shuntserve_core.types.request import EngineLoad, EngineRequest, StepOutput
from shuntserve_plugins.engines.vllm.configuration import has_tokenizer
from shuntserve_plugins.engines.vllm.engine import WorkerSpec
from shuntserve_plugins.engines.vllm.executor import RankExecutor
from shuntserve_plugins.engines.vllm.peers import Hub
from shuntserve_plugins.engines.vllm.rank import PREPARE, Rank
from shuntserve_plugins.engines.vllm.resumption import resume
from shuntserve_plugins.engines.vllm.server import ABORT, SUBMIT, TokenServer, finished
from shuntserve_plugins.engines.vllm.translate import core_request, sampling_params, step_output

_PAUSE_SECONDS = 0.001
"""When requests wait for something that is not a step, such as a grammar."""


class Driver:
    """Owns the ranks, and the engine core once there is KV memory."""

    def __init__(self, spec: WorkerSpec, hub: Hub, server: TokenServer) -> None:
        launch = spec.launch
        rank = Rank(spec)
        sampling_rank = len(launch.ranks) - launch.tensor_parallel[-1]
        self._server = server
        self._config = rank.config
        self._executor = RankExecutor(rank.config, rank, hub, sampling_rank)
        self.weights: list[dict[str, int]] = self._executor.collective_rpc(
            PREPARE, args=(rank.open_meeting(),)
        )
        """What became of the weights of each rank, in bytes: `lent`, `copied`."""
        tokenizer = has_tokenizer(launch.model_dir)
        self._tokenizer = (
            cached_tokenizer_from_config(self._config.model_config) if tokenizer else None
        )
        self._early: list[EngineRequest] = []
        self._steps: Steps | None = None

    def run(self) -> None:
        """Serve for ever.  An engine that fails ends, with the reason in its log."""
        try:
            self._server.announce(STANDBY)
            while True:
                self._take_tasks()
                if self._steps is not None and self._steps.busy:
                    self._server.send(self._steps.step())
                    self._server.current = self._steps.load
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _take_tasks(self) -> None:
        """Do what came in; wait for something if there is nothing else to do."""
        idle = self._steps is None or not self._steps.busy
        while True:
            try:
                task, value = self._server.tasks.get(block=idle)
            except Empty:
                return
            idle = False
            if task == SUBMIT:
                self._submit(value)
            elif task == ABORT:
                self._abort(value)
            elif self._steps is None:
                self._activate()
            if self._steps is not None:
                self._server.current = self._steps.load

    def _submit(self, request: EngineRequest) -> None:
        reason = finished(request, self._server.max_length)
        if reason:
            self._server.send([StepOutput(request.id, finish=reason)])
        elif self._steps is None:
            self._early.append(request)
        else:
            self._server.send(self._steps.add(request))

    def _abort(self, request_id: str) -> None:
        self._early = [request for request in self._early if request.id != request_id]
        if self._steps is not None:
            self._steps.abort(request_id)

    def _activate(self) -> None:
        """Lease KV memory, waiting for it on every rank, and start the engine core on it."""
        core = EngineCore(self._config, lambda _: self._executor, log_stats=False)
        self._steps = Steps(core, self._tokenizer)
        self._server.announce(READY)
        for request in self._early:
            self._submit(request)
        self._early.clear()


class Steps:
    """The engine core, in our words.

    It knows requests by a number of ours: an id may come again while a step that computes its
    first use is still under way.
    """

    def __init__(self, core: EngineCore, tokenizer: Any) -> None:
        self._core, self._tokenizer = core, tokenizer
        self._ids: dict[str, str] = {}
        """Ids by number, of requests that are not finished."""
        self._numbers: dict[str, str] = {}
        self._count = 0
        self._generated = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._core.batch_queue) or self._core.scheduler.has_requests()

    @property
    def load(self) -> EngineLoad:
        """How busy it is."""
        scheduler: Any = self._core.scheduler
        running, waiting = scheduler.get_request_counts()
        return EngineLoad(running, waiting, scheduler.kv_cache_manager.usage, self._generated)

    def add(self, request: EngineRequest) -> list[StepOutput]:
        """Take a request; returns why not, if it is wrong."""
        core, config = self._core, self._core.vllm_config
        self._count += 1
        number = str(self._count)
        try:
            sampling = sampling_params(request.sampling, request.output)
            sampling.verify(
                config.model_config, None, config.structured_outputs_config, self._tokenizer
            )
            scheduled, _ = core.preprocess_add_request(core_request(request, number, sampling))
        except Exception as error:  # grammar compilers raise what they like
            return [StepOutput(request.id, finish="error", error=str(error), bad_request=True)]
        if request.output:
            resume(scheduled, request.output)
        self._ids[number], self._numbers[request.id] = request.id, number
        core.add_request(scheduled)
        return []

    def abort(self, request_id: str) -> None:
        """Forget a request; nothing more is said of it."""
        number = self._numbers.pop(request_id, None)
        if number is not None:
            del self._ids[number]
            self._core.abort_requests([number])

    def step(self) -> list[StepOutput]:
        """One step, or a part of several that are under way; returns what it produced."""
        outputs, executed = self._core.step_fn()
        self._core.post_step(executed)
        if not executed and not outputs:
            time.sleep(_PAUSE_SECONDS)
        return [said for one in (outputs or {}).values() for said in self._told(one.outputs)]

    def _told(self, outputs: Sequence[EngineCoreOutput]) -> list[StepOutput]:
        told = []
        for output in outputs:
            request_id = self._ids.get(output.request_id)
            if request_id is not None:
                self._generated += len(output.new_token_ids)
                told.append(step_output(output, request_id))
                if output.finished:
                    del self._ids[output.request_id], self._numbers[request_id]
        return told
