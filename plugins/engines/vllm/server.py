"""The link's end of the engine: takes requests into a queue that the driver reads."""

from __future__ import annotations

import os
from queue import SimpleQueue
from typing import Any

from shuntserve_core.interfaces.engine import EngineLaunch
from shuntserve_core.interfaces.link import STOPPING, RequestRefused
from shuntserve_core.link.server import LinkServer
from shuntserve_core.types.request import EngineInfo, EngineLoad, EngineRequest, StepOutput
from shuntserve_plugins.engines.vllm.engine import FEATURES, Vllm, longest

SUBMIT, ABORT, ACTIVATE = "submit", "abort", "activate"


class TokenServer:
    """The link's handler; its methods are called on the link's thread."""

    def __init__(self, launch: EngineLaunch, options: Vllm) -> None:
        self.tasks: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        """(what, request or id), in the order in which they came."""
        self.current = EngineLoad()
        """How busy the engine was after its last step."""
        self._vocab = launch.model.vocab
        self._host = launch.ranks[0].host
        self.max_length = longest(launch, options.block_size)
        info = EngineInfo(
            engine_id=launch.engine_id,
            engine="vllm",
            model=launch.model.name,
            max_batch=launch.max_batch,
            max_length=self.max_length,
            features=FEATURES,
        )
        self._link = LinkServer(info, self, launch.link_token)

    def start(self) -> str:
        """Listen; returns the address."""
        return self._link.start(f"{self._host}:0")

    def announce(self, state: str) -> None:
        """Say how far the engine is."""
        self._link.announce(state)

    def send(self, outputs: list[StepOutput]) -> None:
        """Say what a step produced."""
        self._link.send_step(outputs)

    def submit(self, request: EngineRequest) -> None:
        """Take a request.  Raises `RequestRefused` for what no engine could do."""
        reason = refusal(request, self._vocab, self.max_length)
        if reason:
            raise RequestRefused(reason)
        self.tasks.put((SUBMIT, request))

    def abort(self, request_id: str) -> None:
        """Drop a request before the next step."""
        self.tasks.put((ABORT, request_id))

    def activate(self) -> None:
        """Own the KV memory as soon as it is free, and serve."""
        self.tasks.put((ACTIVATE, None))

    def load(self) -> EngineLoad:
        """As of the last step."""
        return self.current

    def stop(self) -> None:
        """End the process; may be called from a signal handler."""
        self._link.announce(STOPPING)
        self._link.stop()
        os._exit(0)


def refusal(request: EngineRequest, vocab: int, max_length: int) -> str | None:
    """Why a request is wrong, or None."""
    if not request.prompt:
        return "the prompt has no tokens"
    if len(request.prompt) >= max_length:
        return f"{len(request.prompt)} prompt tokens leave no room in {max_length}"
    sampling = request.sampling
    known = {*request.prompt, *request.output, *sampling.logit_bias, *sampling.stop_token_ids}
    if min(known) < 0 or max(known) >= vocab:
        return f"token ids must be from 0 to {vocab - 1}"
    return None


def finished(request: EngineRequest, max_length: int) -> str | None:
    """Why no token may follow those that a request has already, or None."""
    sampling, count = request.sampling, len(request.output)
    if count and request.output[-1] in sampling.stop_token_ids and count >= sampling.min_tokens:
        return "stop"
    if count >= sampling.max_tokens or len(request.prompt) + count >= max_length:
        return "length"
    return None
