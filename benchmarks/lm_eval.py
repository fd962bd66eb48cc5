"""lm-evaluation-harness through a cluster, beside the same on stock vLLM.

    python -m venv HARNESS && HARNESS/bin/pip install "lm-eval[api]" transformers
    python -m benchmarks.lm_eval --harness HARNESS/bin/python --model DIR --weights STORE

The harness has an environment of its own.  Two small tasks that need no network, questions with
four answers each (log-likelihoods) and texts to continue, are run on stock vLLM and on our cluster
with each engine.  Prints the largest difference of a log-likelihood, and in how many samples the
answer or the text is another one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from shuntserve_core.testing.chaos.cluster import serving

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTIONS = """
The capital of France is|Paris|Madrid|Rome|Oslo
The capital of Japan is|Tokyo|Beijing|Seoul|Hanoi
A week has|seven days|five days|ten days|nine days
Water freezes at|zero degrees Celsius|fifty degrees Celsius|ninety degrees|two hundred degrees
The opposite of hot is|cold|warm|boiling|spicy
A triangle has|three sides|four sides|five sides|six sides
Two plus two equals|four|five|three|twenty
Bees make|honey|milk|cheese|bread
The largest ocean is the|Pacific|Atlantic|Indian|Arctic
The sun rises in the|east|west|north|south
A baby dog is called a|puppy|kitten|calf|foal
Snow is|white|green|purple|black
Cows give|milk|wool|honey|silk
The Earth goes around the|Sun|Moon|Mars|stars
Ice is frozen|water|sand|oil|air
A spider has|eight legs|six legs|four legs|two legs
The colour of grass is|green|blue|red|orange
A carpenter works with|wood|bread|fish|music
Plants need sunlight and|water|plastic|iron bars|noise
The heart pumps|blood|air|food|sand
A library lends|books|shoes|cars|houses
Romeo and Juliet was written by|William Shakespeare|Charles Dickens|Jane Austen|Mark Twain
The currency of the United States is the|dollar|euro|yen|pound
You read with your|eyes|ears|nose|knees
A clock shows the|time|weather|price|distance
The tallest animal is the|giraffe|mouse|dog|horse
Fish live in|water|trees|deserts|clouds
The month after June is|July|May|August|March
"""
BEGINNINGS = (
    "Once upon a time there was a",
    "The three primary colours are",
    "To make a cup of tea, first",
    "The seasons of the year are",
    "My favourite animal is the",
    "List of fruits: apple, banana,",
)
CONFIG = """
[model]
name = "{name}"
path = "{model}"
dtype = "float32"
weight_dtype = "float16"
kv_dtype = "float32"

[weights]
store = "{weights}"
model = "{name}"

[workload]
input_tokens = 64
output_tokens = 16
max_length = 1024

[[gpu]]
name = "process"
memory_bytes = 2_000_000_000
flops = {{ float32 = 40e9 }}
memory_bandwidth = 9e9

[[instance_type]]
name = "solo"
gpu = "process"
price = 0.01

[[cluster]]
instance = "solo"
count = 1

[estimator]
runtime_bytes = 0

[serve]
model_dir = "{model}"
model_name = "model"
state_dir = "state"
kv_bytes = 134_217_728
max_batch = 16

[engine]
name = "{engine}"
{steps}

[frontdoor]
port = 0
"""


def write_tasks(folder: Path) -> None:
    """The two tasks, as the harness reads them."""
    rows = [line.split("|") for line in QUESTIONS.strip().splitlines()]
    questions = [
        # The right answer is first above; here it is at each place in turn.
        {"question": q, "choices": c[-(i % 4) :] + c[: -(i % 4)] if i % 4 else c, "label": i % 4}
        for i, (q, *c) in enumerate(rows)
    ]
    texts = [{"text": text, "target": ""} for text in BEGINNINGS]
    for name, documents in (("questions", questions), ("texts", texts)):
        lines = [json.dumps(document) for document in documents]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    common = {"dataset_path": "json", "test_split": "test"}
    tasks: dict[str, dict[str, Any]] = {
        "questions": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}],
        },
        "texts": {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{target}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 24, "temperature": 0},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, task in tasks.items():
        data = {"data_files": {"test": str(folder / f"{name}.jsonl")}}
        whole = {"task": name, **common, "dataset_kwargs": data, **task}
        (folder / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML


HARNESS = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

model, tasks, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
found = simple_evaluate(
    model="local-completions",
    model_args=model,
    tasks=["questions", "texts"],
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
    batch_size=4,
    log_samples=True,
    bootstrap_iters=0,
)
answers = {
    name: {sample["doc_id"]: sample["filtered_resps"] for sample in samples}
    for name, samples in found["samples"].items()
}
answers["accuracy"] = found["results"]["questions"]["acc,none"]
open(out, "w").write(json.dumps(answers))
"""
"""What the command `lm_eval run` does, without reading its thousands of tasks first."""


async def evaluate(options: argparse.Namespace, tasks: Path, url: str, out: Path) -> Any:
    """Run the harness; returns what it answered for each sample, by task and document."""
    arguments = {
        "model": "model",
        "base_url": f"{url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": str(Path(options.model).resolve()),
        "num_concurrent": 2,
        "max_length": 1024,
    }
    process = await asyncio.create_subprocess_exec(
        *(options.harness, "-c", HARNESS, json.dumps(arguments), str(tasks), str(out)),
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        stdout=sys.stderr,
    )
    if await process.wait():
        raise RuntimeError("the harness failed")
    return json.loads(out.read_text())


STEPS = {"vllm": "max_batched_tokens = 256", "embedded": "max_chunk = 64"}
"""What one step takes, in each engine's word for it."""


@asynccontextmanager
async def ours(options: argparse.Namespace, engine: str, folder: Path) -> AsyncIterator[str]:
    """A cluster of one pipeline."""
    config = folder / "cluster.toml"
    model, weights = (str(Path(path).resolve()) for path in (options.model, options.weights))
    config.write_text(
        CONFIG.format(name=NAME, model=model, weights=weights, engine=engine, steps=STEPS[engine])
    )
    async with serving(config, folder / "state", folder / "serve.log") as served:
        yield served.url


@asynccontextmanager
async def stock(options: argparse.Namespace, folder: Path) -> AsyncIterator[str]:
    """vLLM's own server on the same weights, with the same settings."""
    command = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    settings = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024")
    with (folder / "vllm.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(*command, "--model", options.model, "--served-model-name", "model"),
            *(*settings, "--max-num-seqs", "16", "--max-num-batched-tokens", "256"),
            *("--port", str(options.port), "--host", "127.0.0.1"),
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{options.port}"
    try:
        async with asyncio.timeout(400), aiohttp.ClientSession() as session:
            while process.returncode is None:
                try:
                    async with session.get(f"{url}/health") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.5)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def compare(one: Any, other: Any) -> dict[str, Any]:
    """How far two runs are apart."""
    differences, choices, greedy = [], 0, 0
    for document, answers in one["questions"].items():
        theirs = other["questions"][document]
        pairs = list(zip(answers, theirs, strict=True))
        differences += [abs(float(mine[0]) - float(their[0])) for mine, their in pairs]
        greedy += sum(mine[1] != their[1] for mine, their in pairs)
        best = [max(range(len(a)), key=lambda i: float(a[i][0])) for a in (answers, theirs)]
        choices += best[0] != best[1]
    return {
        "samples": len(one["questions"]),
        "loglikelihoods": len(differences),
        "largest difference": max(differences),
        "other choices": choices,
        "other greedy flags": greedy,
        "accuracies": [one["accuracy"], other["accuracy"]],
        "texts": len(one["texts"]),
        "other texts": sum(one["texts"][d] != other["texts"][d] for d in one["texts"]),
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every system in turn."""
    answers: dict[str, Any] = {}
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        tasks = Path(name) / "tasks"
        tasks.mkdir()
        write_tasks(tasks)
        for system in options.systems:
            folder = Path(name) / system
            folder.mkdir()
            server = stock(options, folder) if system == "stock" else ours(options, system, folder)
            async with server as url:
                began = time.monotonic()
                answers[system] = await evaluate(options, tasks, url, folder / "out.json")
                seconds[system] = round(time.monotonic() - began, 1)
    first, *others = options.systems
    compared = {
        f"{other} beside {first}": compare(answers[first], answers[other]) for other in others
    }
    if options.samples:
        Path(options.samples).write_text(json.dumps(answers, indent=1))
    return {**compared, "seconds": seconds}


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--harness", required=True, help="Python that has lm-eval")
    parser.add_argument("--model", default=".quickstart/SmolLM2-135M-Instruct")
    parser.add_argument("--weights", default=".quickstart/weights")
    parser.add_argument("--port", type=int, default=18471, help="of stock vLLM")
    parser.add_argument("--systems", nargs="+", default=["stock", "vllm", "embedded"])
    parser.add_argument("--samples", help="file for what was answered")
    print(json.dumps(asyncio.run(run(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
