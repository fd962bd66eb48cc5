"""A weight store with a small random model, and store processes to ask for it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import save_file

from shuntserve_core.registry import Registry
from shuntserve_core.tensorstore import ShardSpec, StoreClient
from shuntserve_core.tensorstore.memory import HostMemory, Memory
from shuntserve_core.tensorstore.memory.cuda import CudaMemory
from shuntserve_core.tensorstore.views import KvRange
from shuntserve_core.testing.cuda import FakeCard, FakeDriver
from shuntserve_core.weights import open_store
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.sources import open_source

LAYERS = 4
CARD_CHUNK = 4 << 20


def push(model_dir: Path, target: Path, degrees: list[int]) -> str:
    """Cut a model and put it into a directory store; returns its name there."""
    target.mkdir(parents=True, exist_ok=True)
    store = open_store(str(target), Registry())
    source, name = open_source(str(model_dir))
    push_model(store, source, plan_push(source, name, degrees))
    return str(name)


def random_model(directory: Path, *, tied: bool = False) -> Path:
    """A checkpoint of the right names and shapes; no engine need make sense of it."""
    rng = np.random.default_rng(0)
    hidden, heads, kv_heads, head_dim, width, vocab = 32, 4, 2, 8, 64, 300
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (heads * head_dim, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, heads * head_dim),
            f"{prefix}mlp.gate_proj.weight": (width, hidden),
            f"{prefix}mlp.up_proj.weight": (width, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, width),
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
        }
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {n: rng.standard_normal(s).astype(np.float16) for n, s in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": width,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def shard(
    weights: str | Path, model: str, layers: range = range(LAYERS), tp: int = 1, rank: int = 0
) -> ShardSpec:
    """One rank's part of the stage with these layers."""
    first, last = layers.start == 0, layers.stop == LAYERS
    return ShardSpec(str(weights), model, tp, rank, layers.start, layers.stop, first, last)


class StoreProcess:
    """A real store process, ended with the block: on a host, or on a fake card."""

    def __init__(self, socket: Path, *arguments: str, card: FakeCard | None = None) -> None:
        self.socket, self.card = socket, card
        command = [sys.executable, "-m", "shuntserve_core.tensorstore"]
        if card is not None:
            command[-1] = "shuntserve_core.testing.cuda_store"
            command += [card.name, str(card.nbytes), str(CARD_CHUNK)]
        self.process = subprocess.Popen(
            [*command, "--socket", str(socket), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if "--dying-seconds" in arguments else None,
            text=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert json.loads(line)["event"] == "listening"

    @cached_property
    def memory(self) -> Memory:
        """The device's memory, in this process."""
        if self.card is None:
            return HostMemory()
        return CudaMemory(FakeDriver(self.card), CARD_CHUNK)

    @property
    def client_code(self) -> str:
        """The beginning of a program that has a `client`, and the device's `memory`."""
        lines = [
            "import ctypes, os, sys",
            "from shuntserve_core.tensorstore import ShardSpec, StoreClient",
            "from shuntserve_core.tensorstore.memory import HostMemory",
            f"client = StoreClient({str(self.socket)!r})",
            "memory = HostMemory()",
        ]
        if self.card is not None:
            lines += [
                "from shuntserve_core.tensorstore.memory.cuda import CudaMemory",
                "from shuntserve_core.testing.cuda import FakeCard, FakeDriver",
                f"card = FakeCard({self.card.name!r}, {self.card.nbytes})",
                f"memory = CudaMemory(FakeDriver(card), {CARD_CHUNK})",
            ]
        lines += [
            "def own(nbytes):",  # without torch, which takes long to import
            "    lease = client.kv_lease('dying', nbytes)",
            "    chunks = [memory.adopt(d.take(), d.nbytes) for d in lease.descriptors()]",
            "    addresses = memory.reserve(lease.nbytes)",
            "    addresses.back(chunks, writable=True)",
            "    return addresses",
            "def write(addresses, mark):",
            "    ctypes.memset(addresses.address, mark, addresses.nbytes)",
        ]
        return "\n".join(lines) + "\n"

    def own(self, client: StoreClient, owner: str, nbytes: int, **wait: Any) -> KvRange:
        """Lease KV memory, and map it."""
        lease = client.kv_lease(owner, nbytes, **wait)
        kv = KvRange(nbytes, memory=self.memory)
        kv.own(lease)
        return kv

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
