"""A small configuration for tests of the runtime: fast to plan, with hardware of its own."""

from __future__ import annotations

from pathlib import Path

from shuntserve_core.config import load_config
from shuntserve_core.config.loader import Config
from shuntserve_core.registry import Registry

TOML = """
[model]
name = "tiny"
layers = 12
hidden = 64
heads = 4
kv_heads = 2
head_dim = 16
intermediate = 128
vocab = 512
tied_embeddings = true
max_positions = 4096
dtype = "float32"
weight_dtype = "float32"
kv_dtype = "float32"

[workload]
input_tokens = 64
output_tokens = 32
max_length = 512

[[gpu]]
name = "fast"
memory_bytes = {memory}
flops = {{ float32 = 2e9 }}
memory_bandwidth = 2e9

[[gpu]]
name = "slow"
memory_bytes = {memory}
flops = {{ float32 = 1e9 }}
memory_bandwidth = 1e9

[[instance_type]]
name = "big"
gpu = "fast"
gpu_count = 2
price = 2.0

[[instance_type]]
name = "small"
gpu = "slow"
price = 1.0

[[cluster]]
instance = "big"
count = 2
market = "on-demand"

[[cluster]]
instance = "small"
count = 3
market = "on-demand"

[estimator]
name = "paper"

[optimizer]
name = "beam-search"
whole_instances = true

[serve]
state_dir = "state"
model_dir = "model"
spares = {{ small = 1 }}
switch_margin = 0.2
{serve}

[engine]
name = "simulated"
{engine}
"""


def write_config(
    directory: Path, *, memory: int = 3_000_000, serve: str = "", engine: str = ""
) -> Path:
    """The configuration as a file."""
    file = directory / "cluster.toml"
    file.write_text(TOML.format(memory=memory, serve=serve, engine=engine))
    return file


def tiny_config(directory: Path, **changes: str) -> Config:
    """The configuration, loaded."""
    return load_config(write_config(directory, **changes), Registry())  # type: ignore[arg-type]
