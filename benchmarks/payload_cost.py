"""What it costs a step to tell it to another rank of vLLM: our bytes, and a pickle of the same.

`python -m benchmarks.payload_cost` times packing and reading of one call of `execute_model`, for
steps in which every request makes a token, and for some in which requests of 1,000 tokens are new.
A step is packed once, whatever the number of ranks, and read by each.  Ways are timed in turn, in
time of a processor.
"""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Callable
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

from shuntserve_plugins.engines.vllm.payload import Wire

STEPS = ((1, 0), (16, 0), (64, 0), (64, 1), (64, 16))
"""Requests that make a token, and new ones."""
_PROMPT, _BLOCK = 1000, 16
_ROUNDS, _TIMES = 15, 100


def step(running: int, new: int) -> SchedulerOutput:
    """As vLLM's scheduler makes it."""
    ids = [str(1000 + number) for number in range(running)]
    output = SchedulerOutput.make_empty()
    output.scheduled_cached_reqs = CachedRequestData(
        req_ids=ids,
        resumed_req_ids=set(),
        new_token_ids=[[7 + number] for number in range(running)],
        all_token_ids={},
        new_block_ids=[None if number % _BLOCK else ([number],) for number in range(running)],
        num_computed_tokens=[500 + number for number in range(running)],
        num_output_tokens=[20 + number for number in range(running)],
    )
    for number in range(new):
        sampling = SamplingParams(max_tokens=99, stop_token_ids=[2], extra_args={"seed": 1 << 62})
        blocks = (list(range(_PROMPT // _BLOCK)),)
        prompt = list(range(_PROMPT))
        output.scheduled_new_reqs.append(
            NewRequestData(str(number), prompt, [], sampling, None, blocks, 0, None)
        )
    output.num_scheduled_tokens = dict.fromkeys(ids, 1)
    output.total_num_scheduled_tokens = running + new * _PROMPT
    return output


def microseconds(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Medians, timed in turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            start = time.thread_time()
            for _ in range(_TIMES):
                way()
            taken[name].append((time.thread_time() - start) / _TIMES * 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Print a row for each step."""
    wire = Wire()
    print("| requests | new | bytes | pack | read | pickled: bytes | pack | read |")
    for running, new in STEPS:
        call = [7, "execute_model", [step(running, new)], {}, [1]]
        ours, theirs = wire.packed(call), pickle.dumps(call)
        assert wire.unpacked(ours) == call
        took = microseconds(
            {
                "pack": lambda call=call: wire.packed(call),
                "read": lambda data=ours: wire.unpacked(data),
                "pickle": lambda call=call: pickle.dumps(call),
                "unpickle": lambda data=theirs: pickle.loads(data),
            }
        )
        us = {name: f"{value:.0f} µs" for name, value in took.items()}
        print(
            f"| {running} | {new} | {len(ours)} | {us['pack']} | {us['read']} "
            f"| {len(theirs)} | {us['pickle']} | {us['unpickle']} |"
        )


if __name__ == "__main__":
    main()
