"""vLLM's own server over an engine that answers from a script: a peer for `frontdoor.py`.

    python benchmarks/frontdoor_vllm.py FOLDER PORT

This is what `vllm serve FOLDER` runs (its arguments' defaults, uvloop, uvicorn, FastAPI, chat
template, tokenizer, detokenizer, statistics), with one thing exchanged: the client of the engine's
process, in whose place a script in this process gives every request one token in each turn of the
event loop.  What vLLM spends on talking to that process (ZeroMQ, msgpack) is therefore not in it,
and neither is the line that uvicorn logs for each request: both are in the peer's favour.

For vLLM 0.32; its internals move, so another version may need another line here.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")

import uvloop
from vllm.entrypoints.launchers.api_server.entry import run_server
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats


class ScriptedCore(EngineCoreClient):  # type: ignore[misc]  # vLLM is not checked
    """Repeats each prompt, a token in each turn, as `ScriptedBackend` does for our front door."""

    def __init__(self, vllm_config: Any) -> None:
        vllm_config.cache_config.num_gpu_blocks = 1024
        self.engine_ranks_managed = [0]
        self.resources = SimpleNamespace(engine_dead=False)
        self.running: dict[str, Iterator[int]] = {}
        self.left: dict[str, int] = {}
        self.fresh: dict[str, int] = {}
        self.some = asyncio.Event()

    def shutdown(self, timeout: float | None = None) -> None:
        self.running.clear()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        pass

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        prompt, count = request.prompt_token_ids, request.sampling_params.max_tokens
        self.running[request.request_id] = islice(prompt * math.ceil(count / len(prompt)), count)
        self.left[request.request_id] = count
        self.fresh[request.request_id] = len(prompt)
        self.some.set()

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        for table in (self.running, self.left, self.fresh):
            table.pop(request_id, None)

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next step of all requests that run, once there are some."""
        await asyncio.sleep(0)
        while not self.running:
            self.some.clear()
            await self.some.wait()
        return EngineCoreOutputs(
            outputs=[self._advance(request_id) for request_id in list(self.running)],
            scheduler_stats=SchedulerStats(num_running_reqs=len(self.running)),
        )

    def _advance(self, request_id: str) -> EngineCoreOutput:
        output = EngineCoreOutput(request_id, [next(self.running[request_id])])
        if (prompt := self.fresh.pop(request_id, None)) is not None:
            output.prefill_stats = PrefillStats()
            output.prefill_stats.set(prompt, 0, 0)
        self.left[request_id] -= 1
        if not self.left[request_id]:
            output.finish_reason = FinishReason.LENGTH
            self._forget(request_id)
        return output


def main() -> None:
    folder, port = sys.argv[1:]
    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser())
    wanted = ["--model", folder, "--served-model-name", "m", "--host", "127.0.0.1", "--port", port]
    quiet = ["--uvicorn-log-level", "error", "--disable-uvicorn-access-log"]
    options = parser.parse_args([*wanted, *quiet])
    validate_parsed_serve_args(options)
    EngineCoreClient.make_async_mp_client = staticmethod(
        lambda vllm_config, **_: ScriptedCore(vllm_config)
    )
    uvloop.run(run_server(options))


if __name__ == "__main__":
    main()
