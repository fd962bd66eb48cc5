"""vLLM's engine core, in our words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.metrics.stats import SchedulerStats

from shuntserve_core.types.request import EngineLoad, EngineRequest, StepOutput
from shuntserve_plugins.engines.vllm.resumption import resume
from shuntserve_plugins.engines.vllm.translate import core_request, sampling_params, step_output

_PAUSE_SECONDS = 0.001
"""When requests wait for something that is not a step, such as a grammar."""


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
        self._generated = self._preemptions = self._queries = self._hits = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._core.batch_queue) or self._core.scheduler.has_requests()

    @property
    def load(self) -> EngineLoad:
        """How busy it is."""
        scheduler: Any = self._core.scheduler
        running, waiting = scheduler.get_request_counts()
        return EngineLoad(
            running,
            waiting,
            scheduler.kv_cache_manager.usage,
            self._generated,
            self._preemptions,
            self._queries,
            self._hits,
        )

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
        said: list[StepOutput] = []
        for one in (outputs or {}).values():
            self._take(one.scheduler_stats)
            said += self._told(one.outputs)
        return said

    def _take(self, stats: SchedulerStats | None) -> None:
        """Add what the scheduler counted since the last step."""
        if stats is not None and stats.prefix_cache_stats is not None:
            self._queries += stats.prefix_cache_stats.queries
            self._hits += stats.prefix_cache_stats.hits

    def _told(self, outputs: Sequence[EngineCoreOutput]) -> list[StepOutput]:
        told = []
        for output in outputs:
            request_id = self._ids.get(output.request_id)
            if request_id is not None:
                self._generated += len(output.new_token_ids)
                events = output.events or ()
                self._preemptions += sum(e.type is EngineCoreEventType.PREEMPTED for e in events)
                told.append(step_output(output, request_id))
                if output.finished:
                    del self._ids[output.request_id], self._numbers[request_id]
        return told
