"""A small configuration on hardware of its own."""

from __future__ import annotations

from pathlib import Path

CONFIG = """
[model]
name = "toy"
layers = 8
hidden = 1024
heads = 16
kv_heads = 16
head_dim = 64
intermediate = 4096
vocab = 32000
max_positions = 4096
dtype = "float16"
[workload]
input_tokens = 200
output_tokens = 50
max_length = 2048
[[gpu]]
name = "G"
memory_bytes = 1_000_000_000
flops = { float16 = 20e12 }
memory_bandwidth = 300e9
[[instance_type]]
name = "one"
gpu = "G"
price = 2.0
[[cluster]]
instance = "one"
count = 4
market = "spot"
price = 0.5
[estimator]
runtime_bytes = 0
max_num_batched_tokens = 256
[serve]
spares = { one = 1 }
"""


def write(folder: Path, text: str = CONFIG) -> Path:
    file = folder / "toy.toml"
    file.write_text(text)
    return file
