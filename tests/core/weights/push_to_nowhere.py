"""Pushes a large, sparse checkpoint into a store that keeps nothing, and prints its peak memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from shuntserve_core.interfaces.store import Pieces
from shuntserve_core.weights import ModelName, pushing
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.sources.safetensors import SafetensorsDirectory
from shuntserve_plugins.storage.directory import DirectoryStore

HIDDEN, INTERMEDIATE, VOCAB = 2048, 8192, 8192

LARGEST = 4 * VOCAB * HIDDEN


class Forgetful(DirectoryStore):
    def put(
        self, key: str, pieces: Pieces, checksum: str, on_sent: Callable[[int], None] | None = None
    ) -> None:
        pass


def write_checkpoint(directory: Path, layers: int) -> int:
    """Nothing but zeros that take no disk; returns bytes of all tensors."""
    kinds = {
        **{f"self_attn.{kind}_proj": [HIDDEN, HIDDEN] for kind in "qkvo"},
        "mlp.gate_proj": [INTERMEDIATE, HIDDEN],
        "mlp.up_proj": [INTERMEDIATE, HIDDEN],
        "mlp.down_proj": [HIDDEN, INTERMEDIATE],
        "input_layernorm": [HIDDEN],
        "post_attention_layernorm": [HIDDEN],
    }
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{kind}.weight": shape for kind, shape in kinds.items()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return offset


def main() -> None:
    directory, layers, held = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    pushing.TENSOR_BYTES = pushing.SHARD_BYTES = held
    total = write_checkpoint(directory, layers)
    source = SafetensorsDirectory(directory)
    plan = plan_push(source, ModelName("local", "large"), [2])
    (directory / "store").mkdir()
    push_model(Forgetful(directory / "store"), source, plan)
    # Not getrusage: its peak begins with what the parent had when it started this process.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    sys.stdout.write(json.dumps({"total": total, "peak": peak}))


if __name__ == "__main__":
    main()
