"""Greedy tokens of every placement against stock vLLM in one process, and transformers.

    python -m benchmarks.vllm_placements llama qwen3 smollm2 [--smollm2 MODEL_DIR]

Small random models, and SmolLM2-135M; float32; 8 requests at once; weights from a TRAW store, with
the safetensors out of reach.  Prints how many requests are equal, and how long each engine took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shuntserve_core.types.request import EngineRequest
from shuntserve_core.weights.quickstart import make_model_directory
from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.processes import Stores
from tests.plugins.engines.vllm.models import StoredModel, build, launch_of, stored
from tests.plugins.engines.vllm.serving import (
    Reference,
    greedy_requests,
    reference,
    serving,
    together,
)

Placement = tuple[list[tuple[int, int]], list[int]]
SMALL: list[Placement] = [
    ([(0, 8)], [1]),
    ([(0, 5), (5, 8)], [2, 1]),
    ([(0, 3), (3, 8)], [1, 2]),
    ([(0, 2), (2, 6), (6, 8)], [1, 2, 1]),
    ([(0, 6), (6, 8)], [4, 1]),
    ([(0, 3), (3, 8)], [2, 2]),
]
LARGE: list[Placement] = [([(0, 8), (8, 30)], [1, 3]), ([(0, 20), (20, 30)], [3, 1])]
STOCK = """
import json, sys
from vllm import LLM, SamplingParams
model, prompts, tokens = json.loads(sys.argv[1])
llm = LLM(model=model, dtype="float32", max_model_len=512, enforce_eager=True,
          skip_tokenizer_init=True, kv_cache_memory_bytes=64 << 20)
params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
print("TOKENS", json.dumps([list(o.outputs[0].token_ids) for o in outputs]))
"""


def stock(model: StoredModel, requests: list[EngineRequest]) -> list[list[int]]:
    """What vLLM as it comes says, in one process, from the safetensors."""
    prompts = [list(request.prompt) for request in requests]
    tokens = requests[0].sampling.max_tokens
    argument = json.dumps([str(model.checkpoint), prompts, tokens])
    result = subprocess.run(
        [sys.executable, "-c", STOCK, argument],
        env={**os.environ, **Vllm().template.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(one for one in result.stdout.splitlines() if one.startswith("TOKENS "))
    said: list[list[int]] = json.loads(line.removeprefix("TOKENS "))
    return said


async def compare(
    model: StoredModel,
    placement: Placement,
    template: TemplateForTests,
    expected: Reference,
    said: list[list[int]],
) -> None:
    """One placement."""
    layers, degrees = placement
    requests = greedy_requests(8, min(model.spec.vocab, 500))
    with tempfile.TemporaryDirectory() as name, Stores(Path(name), sum(degrees)) as stores:
        began = time.perf_counter()
        async with serving(launch_of(model, layers, degrees, stores), template) as (_, link):
            started = time.perf_counter()
            outputs = await together(link, requests)
            ended = time.perf_counter()
    equal = sum(list(o.tokens) == tokens for o, tokens in zip(outputs, said, strict=True))
    agree = sum(expected.agrees(r, o) for r, o in zip(requests, outputs, strict=True))
    print(
        f"{model.directory.name} TP {degrees} layers {layers}: {equal}/8 as stock vLLM, "
        f"{agree}/8 as transformers; started in {started - began:.1f} s, "
        f"8 x 24 tokens in {ended - started:.2f} s",
        flush=True,
    )


def made(kind: str, directory: Path, smollm2: Path | None) -> tuple[StoredModel, list[Placement]]:
    """A model, and where it is tried."""
    if kind == "smollm2":
        there = directory / "SmolLM2-135M"
        if smollm2 is None:
            make_model_directory(there)
        else:
            _link(smollm2, there)
        return stored(there, directory, "llama", [1, 3]), LARGE
    return build(kind, directory, [1, 2, 4]), SMALL


def _link(there: Path, here: Path) -> None:
    """The same files by other names, which can be taken away."""
    here.mkdir()
    for file in there.iterdir():
        (here / file.name).symlink_to(file.resolve())


def main(kinds: list[str], smollm2: Path | None) -> None:
    """Every kind in every placement."""
    with TemplateForTests(Vllm()) as template:
        for kind in kinds:
            with tempfile.TemporaryDirectory() as name:
                model, placements = made(kind, Path(name), smollm2)
                expected = reference(model)
                said = stock(model, greedy_requests(8, min(model.spec.vocab, 500)))
                for placement in placements:
                    asyncio.run(compare(model, placement, template, expected, said))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=["llama", "qwen3", "smollm2"])
    parser.add_argument("--smollm2", type=Path, help="its directory, if it is there already")
    arguments = parser.parse_args()
    main(arguments.kinds, arguments.smollm2)
