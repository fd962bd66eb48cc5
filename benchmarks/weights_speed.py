"""How fast a stage is read, next to the tools that people would use instead.

Starts SeaweedFS, pushes a model of random numbers cut for two ranks, and reads rank 0 of it in
turns with every contender, the best of several rounds each.  All of it is on this machine, so the
figures compare programs and say nothing of a network.

    python benchmarks/weights_speed.py [--megabytes 800] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from shuntserve_core.registry import Registry
from shuntserve_core.testing.s3_servers import S3Server, seaweedfs
from shuntserve_core.weights import (
    ReadReport,
    TensorEntry,
    load_manifest,
    open_store,
    read_stage,
    region_bytes,
    whole_model,
)
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.sources import open_source

BUCKET = "bench"
PART = 8 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=800, help="of the stage that is read")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        checkpoint = make_checkpoint(root / "model", arguments.megabytes)
        print_checksums()
        with seaweedfs(root / "server") as server:
            os.environ.update(server.environment)
            server.client().create_bucket(Bucket=BUCKET)
            bench_s3(server, checkpoint, root, arguments.rounds)
        bench_directory(checkpoint, root, arguments.rounds)


def make_checkpoint(directory: Path, megabytes: int) -> Path:
    """A Llama of as many layers as make two ranks of that size, its numbers random."""
    hidden, intermediate, vocab, heads, kv_heads = 2048, 5632, 32000, 16, 8
    kv = hidden * kv_heads // heads
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    layer_bytes = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    layers = max(1, round((2e6 * megabytes - 4 * vocab * hidden) / layer_bytes))
    random = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        return np.frombuffer(random.bytes(2 * int(np.prod(shape))), np.float16).reshape(shape)

    tensors = {"model.embed_tokens.weight": numbers(vocab, hidden)}
    for layer in range(layers):
        for kind, shape in shapes.items():
            tensors[f"model.layers.{layer}.{kind}.weight"] = numbers(*shape)
    tensors["model.norm.weight"] = numbers(hidden)
    tensors["lm_head.weight"] = numbers(vocab, hidden)
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def pushed(checkpoint: Path, url: str) -> tuple[object, list[TensorEntry]]:
    store = open_store(url, Registry())
    source, name = open_source(str(checkpoint))
    started = time.perf_counter()
    report = push_model(store, source, plan_push(source, name, [2]))
    row("push", report.nbytes, time.perf_counter() - started)
    return store, whole_model(load_manifest(store, name), 2, 0)


def bench_s3(server: S3Server, checkpoint: Path, root: Path, rounds: int) -> None:
    print("\nS3 (SeaweedFS), one rank's stage")
    store, entries = pushed(checkpoint, server.url(BUCKET))
    total = sum(entry.record.size for entry in entries)
    prefix = entries[0].key.rpartition("/")[0] + "/"
    client = server.client()
    buffers = {entry.key: bytearray(entry.record.size) for entry in entries}
    region = memoryview(bytearray(region_bytes(entries)))
    reports: list[ReadReport] = []

    def ours() -> None:
        reports.append(read_stage(store, entries, lambda e: region[e.offset : e.offset + e.nbytes]))

    def s5cmd() -> None:
        command = ["s5cmd", "--endpoint-url", server.endpoint, "cp"]
        target = f"{root}/s5cmd/"
        subprocess.run(
            [*command, f"s3://{BUCKET}/{prefix}*", target], check=True, stdout=subprocess.DEVNULL
        )

    def download_file() -> None:
        for entry in entries:
            client.download_file(BUCKET, entry.key, f"{root}/downloaded")

    contenders = {
        "shuntserve into memory, checksums": ours,
        "s5cmd to files": s5cmd,
        "boto3 download_file": download_file,
        "boto3 get_object into memory, 8 threads": lambda: with_boto3(client, buffers),
        "obstore get_range, 8 threads": lambda: with_obstore(server, buffers),
    }
    best = in_turns(contenders, rounds)
    for name, seconds in best.items():
        row(name, total, seconds)
    fastest = best["shuntserve into memory, checksums"]
    print(f"  ratio to s5cmd: {best['s5cmd to files'] / fastest:.2f}")
    print(f"  ratio to boto3 download_file: {best['boto3 download_file'] / fastest:.2f}")
    first = min(r.first_layer_seconds or 0 for r in reports)
    print(f"  time to first layer: {1000 * first:.0f} ms")


def with_boto3(client: object, buffers: dict[str, bytearray]) -> None:
    def read(key: str, start: int, stop: int) -> None:
        body = client.get_object(Bucket=BUCKET, Key=key, Range=f"bytes={start}-{stop - 1}")["Body"]
        view = memoryview(buffers[key])[start:stop]
        while view:
            view = view[body.readinto(view) :]

    in_parts(read, buffers)


def with_obstore(server: S3Server, buffers: dict[str, bytearray]) -> None:
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=server.endpoint,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )

    def read(key: str, start: int, stop: int) -> None:
        buffers[key][start:stop] = memoryview(obstore.get_range(store, key, start=start, end=stop))

    in_parts(read, buffers)


def in_parts(read: Callable[[str, int, int], None], buffers: dict[str, bytearray]) -> None:
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(read, key, start, min(start + PART, len(buffer)))
            for key, buffer in buffers.items()
            for start in range(0, len(buffer), PART)
        ]
        for future in futures:
            future.result()


def bench_directory(checkpoint: Path, root: Path, rounds: int) -> None:
    print("\nlocal directory, one rank's stage, in the page cache")
    (root / "store").mkdir()
    store, entries = pushed(checkpoint, str(root / "store"))
    total = sum(entry.record.size for entry in entries)
    region = memoryview(bytearray(region_bytes(entries)))
    tensors = {e.name: np.zeros(e.shape, np.float16) for e in entries}
    save_file(tensors, root / "stage.safetensors")
    contenders: dict[str, Callable[[], object]] = {
        "shuntserve into memory, checksums": lambda: read_stage(
            store, entries, lambda e: region[e.offset : e.offset + e.nbytes]
        ),
        "shuntserve into fresh memory, checksums": lambda: read_stage(
            store, entries, lambda e: memoryview(np.empty(e.nbytes, np.uint8))
        ),
        "safetensors load_file (numpy)": lambda: load_file(root / "stage.safetensors"),
    }
    best = in_turns(contenders, rounds)
    for name, seconds in best.items():
        row(name, total, seconds)
    reference = best.pop("safetensors load_file (numpy)")
    for name, seconds in best.items():
        print(f"  ratio to load_file, {name}: {reference / seconds:.2f}")


def in_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best seconds of each; in turns, so that a busy moment of the machine hits all alike."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def row(name: str, nbytes: int, seconds: float) -> None:
    print(f"  {name:<42} {nbytes / 1e6 / seconds:8.0f} MB/s  {seconds:7.3f} s")


def print_checksums() -> None:
    import hashlib
    import zlib

    import xxhash

    data = np.random.default_rng(0).bytes(256 << 20)
    print("checksums, one core")
    for name, digest in {
        "XXH3-128": xxhash.xxh3_128,
        "CRC-32 (zlib)": zlib.crc32,
        "SHA-256": hashlib.sha256,
        "MD5": hashlib.md5,
    }.items():
        started = time.perf_counter()
        digest(data)
        row(name, len(data), time.perf_counter() - started)


if __name__ == "__main__":
    main()
