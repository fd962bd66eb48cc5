"""vLLM's executor over rank processes that node agents started."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig
from vllm.v1.executor.abstract import Executor

from shuntserve_plugins.engines.vllm.control import Hub

if TYPE_CHECKING:
    from shuntserve_plugins.engines.vllm.rank import Rank

_OWN = 0
"""Rank 0 runs here, on a thread of its own, so that the next step can be planned meanwhile."""


class RankExecutor(Executor):
    """Hands every call to all ranks; steps are answered by one rank of the last stage.

    Made before vLLM's engine core, which then takes it as it is: ranks hold weights long before
    there is KV memory.
    """

    supports_pp = True

    def __init__(self, vllm_config: VllmConfig, rank: Rank, hub: Hub, sampling_rank: int) -> None:
        self._rank, self._hub, self._sampling_rank = rank, hub, sampling_rank
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rank-0")
        super().__init__(vllm_config)

    def _init_executor(self) -> None:
        """The ranks are there."""

    def collective_rpc(  # type: ignore[override]
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """What every rank returns, in their order.  Raises what rank 0 raises, or `RankError`."""
        if non_block:
            raise NotImplementedError("vLLM's core does not wait for anything but steps")
        if not isinstance(method, str):
            raise NotImplementedError("functions are not sent to ranks")
        futures = self._everywhere(method, args, kwargs or {}, None)
        return [futures[rank].result(timeout) for rank in sorted(futures)]

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Compute a step; None where sampling is to follow."""
        return self._step("execute_model", scheduler_output, non_block)

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """Sample the step's tokens."""
        return self._step("sample_tokens", grammar_output, non_block)

    def check_health(self) -> None:
        """A rank that is lost ends this process."""

    def shutdown(self) -> None:
        """The process ends, and with it the other ranks."""

    def _step(self, method: str, argument: Any, non_block: bool) -> Any:
        futures = self._everywhere(method, (argument,), {}, {self._sampling_rank})
        result = futures[self._sampling_rank]
        if self._sampling_rank != _OWN:
            futures[_OWN].add_done_callback(lambda own: _fail(result, own))
        return result if non_block else result.result()

    def _everywhere(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], answering: set[int] | None
    ) -> dict[int, Future[Any]]:
        futures = self._hub.call(method, args, kwargs, answering)
        return {_OWN: self._thread.submit(self._rank.run, method, args, kwargs), **futures}


def _fail(result: Future[Any], own: Future[Any]) -> None:
    """Have a step fail with rank 0, although another rank would have answered it."""
    error = own.exception()
    if error is not None and not result.done():
        result.set_exception(error)
