"""Requests that nobody asked for: what is slow the first time has then been done once.

Connections between ranks, NCCL's communicators of neighbours, kernels that are compiled when they
are first used, the sampler, the grammar compiler.
"""

from __future__ import annotations

import logging

from vllm.v1.engine.core import EngineCore

from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_plugins.engines.vllm.steps import Steps

_PROMPT, _ANSWER = 16, 3
log = logging.getLogger(__name__)


def practise(core: EngineCore, steps: Steps, max_length: int, *, guided: bool) -> None:
    """Compute a request or two from end to end, and leave nothing of them.

    Keys and values go to memory that this engine will not serve from.  Raises RuntimeError if vLLM
    keeps any block.
    """
    prompt = (0,) * min(_PROMPT, max(max_length - _ANSWER - 1, 1))
    sampled = SamplingParams(max_tokens=_ANSWER, temperature=1.0, top_p=0.9, seed=0)
    requests = [EngineRequest("sampled", prompt, sampled)]
    if guided:
        choice = SamplingParams(max_tokens=1, temperature=0.0, guided={"regex": "[a-z]+"})
        requests.append(EngineRequest("guided", prompt, choice))
    for request in requests:
        refused = steps.add(request)
        if refused:
            log.warning("cannot practise: %s", refused[0].error)
    while steps.busy:
        for output in steps.step():
            if output.error:
                log.warning("practising failed: %s", output.error)
    if not core.reset_prefix_cache():
        raise RuntimeError("vLLM keeps KV blocks of requests that have ended")
