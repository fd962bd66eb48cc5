"""The chaos run in short: every stream ends, and says what it says undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from shuntserve_core.testing.chaos.campaign import Campaign, run
from shuntserve_core.testing.chaos.cluster import serving
from shuntserve_core.testing.chaos.disturbances import KINDS
from shuntserve_core.testing.models import write_tokenizer
from tests.core.runtime.clusters import write_config
from tests.plugins.engines.embedded.models import build

pytestmark = pytest.mark.timeout(240)

EMBEDDED = """
[model]
path = "llama"
dtype = "float32"
weight_dtype = "float16"
kv_dtype = "float32"

[weights]
store = "store"
model = "{name}"

[workload]
input_tokens = 64
output_tokens = 32
max_length = 256

[[gpu]]
name = "part"
memory_bytes = 1_400_000
flops = {{ float32 = 2e9 }}
memory_bandwidth = 2e9

[[instance_type]]
name = "duo"
gpu = "part"
gpu_count = 2
price = 2.0

[[instance_type]]
name = "solo"
gpu = "part"
price = 1.0

[[cluster]]
instance = "duo"
count = 1

[[cluster]]
instance = "solo"
count = 3

[estimator]
runtime_bytes = 0

[optimizer]
whole_instances = true

[serve]
state_dir = "state"
spares = {{ solo = 1 }}
max_batch = 8

[engine]
name = "embedded"

[frontdoor]
port = 0
"""

CAMPAIGN = Campaign(
    modes=("greedy",),
    kinds=KINDS,
    streams=0,
    minutes=0.4,
    tokens=24,
    concurrency=8,
    every=(2.0, 4.0),
    notice=4.0,
    away=2.0,
    seed=1,
)


async def survives(config: Path, directory: Path, campaign: Campaign) -> dict[str, Any]:
    async with serving(config, directory / "state", directory / "serve.log") as served:
        report = await run(served, campaign)
    log = (directory / "serve.log").read_text()
    assert report["passed"], (report["modes"], log[-5000:])
    assert "Traceback" not in log, log[log.index("Traceback") :][:5000]
    return report


async def test_embedded_engines(tmp_path: Path) -> None:
    model = build("llama", tmp_path, torch.float16)
    write_tokenizer(model.directory, vocab_size=1100)
    config = tmp_path / "cluster.toml"
    config.write_text(EMBEDDED.format(name=model.name))
    campaign = evolve(CAMPAIGN, modes=("greedy", "seeded", "penalties"), minutes=0.7)
    report = await survives(config, tmp_path, campaign)
    assert all(mode["streams"] > 8 for mode in report["modes"].values())
    before, after = (report["resources"][when]["of"] for when in ("before", "after"))
    for kind in ("agent", "control plane"):
        assert after[kind]["processes"] == before[kind]["processes"]
    # One for each GPU at most: a spare that has served keeps its store, with the weights.
    assert max(after["store"]["processes"], after["engine"]["processes"]) <= 5


async def test_simulated_engines(tmp_path: Path) -> None:
    engine = "tpot = 0.02\nttft = 0.02\nthroughput = 0"
    config = write_config(tmp_path, engine=engine)
    config.write_text(config.read_text() + "\n[frontdoor]\nport = 0\n")
    write_tokenizer(tmp_path / "model", vocab_size=512)
    kinds = tuple(kind for kind in KINDS if kind != "store")
    campaign = evolve(CAMPAIGN, modes=("seeded",), kinds=kinds, concurrency=24, every=(1.0, 3.0))
    report = await survives(config, tmp_path, campaign)
    assert report["modes"]["seeded"]["streams"] > 100
