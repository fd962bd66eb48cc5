"""Rank 0's loop: requests in, steps of vLLM's engine core, tokens out."""

from __future__ import annotations

import os
import secrets
import sys
import traceback
from collections.abc import Callable
from queue import Empty
from typing import Any

from torch.distributed import HashStore  # type: ignore[attr-defined]
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.engine.core import EngineCore

from shuntserve_core.interfaces.link import READY, STANDBY
from shuntserve_core.types.request import EngineRequest, StepOutput
from shuntserve_plugins.engines.vllm import payload
from shuntserve_plugins.engines.vllm.configuration import has_tokenizer
from shuntserve_plugins.engines.vllm.control import Hub
from shuntserve_plugins.engines.vllm.engine import WorkerSpec
from shuntserve_plugins.engines.vllm.executor import RankExecutor
from shuntserve_plugins.engines.vllm.lending import Taken
from shuntserve_plugins.engines.vllm.meeting import serve_store
from shuntserve_plugins.engines.vllm.practice import practise
from shuntserve_plugins.engines.vllm.rank import OWN, PREPARE, STAND_BY, Rank
from shuntserve_plugins.engines.vllm.server import ABORT, SUBMIT, TokenServer, finished
from shuntserve_plugins.engines.vllm.steps import Steps

_OWN = 0


class Driver:
    """Owns the ranks and the engine core.

    Everything that takes time is done when it is made: the core is set up, kernels are warmed up
    and graphs captured, and a request is computed, all on scratch memory.  To activate it is only
    to put KV memory in its place.
    """

    def __init__(
        self, spec: WorkerSpec, hub: Hub, server: TokenServer, report: Callable[..., None]
    ) -> None:
        launch = spec.launch
        store = HashStore()
        serve_store(store, hub.meetings.values())
        hub.speak(payload.Wire())
        rank = Rank(spec, store)
        sampling_rank = len(launch.ranks) - launch.tensor_parallel[-1]
        self._server, self._report = server, report
        self._executor = RankExecutor(rank.config, rank, hub, sampling_rank)
        self._executor.collective_rpc(PREPARE, args=(secrets.token_hex(8), payload.vocabulary()))
        core = EngineCore(rank.config, lambda _: self._executor, log_stats=True)
        tokenizer = (
            cached_tokenizer_from_config(rank.config.model_config)
            if has_tokenizer(launch.model_dir)
            else None
        )
        practise(core, Steps(core, tokenizer), server.max_length, guided=tokenizer is not None)
        self.prepared: dict[str, Any] = self._executor.collective_rpc(STAND_BY)[_OWN]
        """What there is to tell of this rank, which is ready."""
        self._steps = Steps(core, tokenizer)
        self._early: list[EngineRequest] = []
        self._active = False

    def run(self) -> None:
        """Serve for ever.  An engine that fails ends, with the reason in its log."""
        try:
            self._server.announce(STANDBY)
            while True:
                self._take_tasks()
                if self._active and self._steps.busy:
                    self._server.send(self._steps.step())
                    self._server.current = self._steps.load
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _take_tasks(self) -> None:
        """Do what came in; wait for something if there is nothing else to do."""
        idle = not (self._active and self._steps.busy)
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
            elif not self._active:
                self._activate()
            self._server.current = self._steps.load

    def _submit(self, request: EngineRequest) -> None:
        reason = finished(request, self._server.max_length)
        if reason:
            self._server.send([StepOutput(request.id, finish=reason)])
        elif not self._active:
            self._early.append(request)
        else:
            self._server.send(self._steps.add(request))

    def _abort(self, request_id: str) -> None:
        self._early = [request for request in self._early if request.id != request_id]
        self._steps.abort(request_id)

    def _activate(self) -> None:
        """Have every rank own its KV memory, waiting for whoever has it, and serve."""
        taken: list[Taken] = self._executor.collective_rpc(OWN)
        self._active = True
        self._server.announce(READY)
        waited = max(one.waited for one in taken)
        mapped = max(one.mapped for one in taken)
        self._report(event="active", waited=waited, mapped=mapped)
        for request in self._early:
            self._submit(request)
        self._early.clear()
