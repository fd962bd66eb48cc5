"""`python -m tests.plugins.engines.vllm.peak`: what vLLM's largest step takes beside weights.

Reads a `WorkerSpec` as one line on standard input; writes one line of JSON: most bytes that tensors
made in the step held at the same time, of a forward pass and of the sampler after it.
"""

from __future__ import annotations

import json
import os
import sys
import weakref
from dataclasses import replace
from typing import Any

import cattrs
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Counts the storages that operators make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self._now = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._live:
                    self._keep(storage)
        return result

    def _keep(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        self._live[key] = nbytes
        self._now += nbytes
        self.bytes = max(self.bytes, self._now)
        weakref.finalize(storage, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        if self._live.pop(key, None) is not None:
            self._now -= nbytes


class Demanding:
    """A sampler whose requests all want penalties and log-probabilities too."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.logprobs_mode = sampler.logprobs_mode

    def __call__(self, logits: torch.Tensor, sampling_metadata: Any) -> Any:
        prompts = torch.zeros(logits.shape[0], 8, dtype=torch.int64)
        wanted = replace(
            sampling_metadata, no_penalties=False, prompt_token_ids=prompts, max_num_logprobs=20
        )
        return self._sampler(logits=logits, sampling_metadata=wanted)


def main() -> None:
    """The process."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from shuntserve_plugins.engines.vllm.engine import WorkerSpec
    from shuntserve_plugins.engines.vllm.payload import vocabulary
    from shuntserve_plugins.engines.vllm.rank import PREPARE, Rank

    spec = cattrs.structure(json.loads(sys.stdin.readline()), WorkerSpec)
    rank = Rank(spec, HashStore())  # alone: there is nobody to meet
    rank.run(PREPARE, ("peak", vocabulary()), {})
    runner = rank._worker.model_runner
    with Peak() as forward:
        _, last = runner._dummy_run(runner.max_num_tokens, is_profile=True)
    runner._dummy_sampler_run(last)  # makes tables and tiles for noise, which stay
    with Peak() as sampling:
        runner._dummy_sampler_run(last)
    with Peak() as both:
        runner.profile_run()
    plain = runner.sampler
    runner.sampler = Demanding(plain)
    with Peak() as demanding:
        runner._dummy_sampler_run(last)
    peaks = {
        "forward": forward.bytes,
        "sampler": sampling.bytes,
        "all": both.bytes,
        "demanding": demanding.bytes,
    }
    out.write(json.dumps(peaks) + "\n")
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
