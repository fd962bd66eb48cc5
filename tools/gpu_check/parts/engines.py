"""(e) vLLM: two engines in turn on one store: lent weights, its KV memory, exact resumption.

Results of a batch depend on its size where kernels choose by it; so equality is asked for in
vLLM's batch-invariant mode, and only counted without (part `plain`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

import torch

from gpu_check import model, vllm_engines
from gpu_check.place import Place
from gpu_check.rows import Figures, Record, expect
from gpu_check.vllm_engines import ENVIRONMENT, Node, RunningEngine, Streams, requests, resumed
from shuntserve_core.tensorstore import StoreClient, StoreStats
from shuntserve_core.types.request import EngineRequest
from shuntserve_plugins.engines.vllm.engine import Vllm

STREAMS = 16
INVARIANT = {"VLLM_BATCH_INVARIANT": "1"}


def run(record: Record, place: Place) -> None:
    """In batch-invariant mode."""
    switch(record, place, invariant=True)


def switch(record: Record, place: Place, *, invariant: bool) -> None:
    """Two engines in turn."""
    vllm_engines.need_vllm()
    on_gpu = place.on_gpu
    size = model.Size(8, 1024, 16, 4, 64, 2816, 8192) if on_gpu else model.SMALL
    dtype = torch.bfloat16 if on_gpu else torch.float32
    made = model.make(place.scratch, size, dtype, device=place.device)
    extra = {**ENVIRONMENT, **(INVARIANT if invariant and on_gpu else {})}
    asyncio.run(_switch(record, place, made, Vllm(environment=extra), exact=invariant))


async def _switch(
    record: Record, place: Place, made: model.Model, options: Vllm, *, exact: bool
) -> None:
    kv_bytes = (2 << 30) if place.on_gpu else (64 << 20)
    node = Node(made, place.scratch / "run", place.device, kv_bytes=kv_bytes)
    node.agent.run_dir.mkdir()
    dtype = "bfloat16" if place.on_gpu else "float32"
    length = 128 if place.on_gpu else 48
    asked = requests(STREAMS, 64, length, made.size.vocab)
    undisturbed: dict[str, list[int]] = {}
    began = time.monotonic()
    await node.agent.prepare(options.template)
    running: list[RunningEngine] = []
    with record.check("the first engine starts on lent weights and answers") as figures:
        old = await node.start(node.launch("old", max_batch=STREAMS, dtype=dtype), options)
        running.append(old)
        figures["from nothing to standing by, s"] = time.monotonic() - began
        await asyncio.wait_for(old.link.activate(), 60.0)
        undisturbed = await _alone(old, asked)
        stats = _stats(node)
        figures["weights in the store, bytes"] = stats.weight_bytes
        figures["KV memory leased, bytes"] = sum(lease.nbytes for lease in stats.leases)
    if not undisturbed:
        return
    with record.check("the second stands by beside it, and nothing is read again") as figures:
        before = _stats(node)
        new = await node.start(node.launch("new", max_batch=STREAMS, dtype=dtype), options)
        running.append(new)
        figures["to standing by, s"] = new.start_seconds
        expect(_stats(node).bytes_read == before.bytes_read, "weights were read again")
    if len(running) == 2:
        with record.check(f"{STREAMS} streams go on in it where the first is killed") as figures:
            await _kill_and_resume(running[0], running[1], asked, undisturbed, figures, exact=exact)
        with record.check("the KV memory is the second engine's alone") as figures:
            owners = [lease.owner for lease in _stats(node).leases]
            expect(owners == ["new"], f"it is owned by {owners}")
    for engine in running:
        engine.link.close()
    await node.agent.close()


async def _alone(engine: RunningEngine, asked: list[EngineRequest]) -> dict[str, list[int]]:
    streams = Streams(engine.link)
    streams.submit(asked)
    return await streams.all(60.0)


async def _kill_and_resume(
    old: RunningEngine,
    new: RunningEngine,
    asked: list[EngineRequest],
    undisturbed: dict[str, list[int]],
    figures: Figures,
    *,
    exact: bool,
) -> None:
    before = Streams(old.link)
    before.submit(asked)
    await before.have(8, 60.0)
    activating = asyncio.create_task(new.link.activate())
    await asyncio.sleep(0.2)  # it waits for the memory by now
    at = time.monotonic()
    os.kill(old.pid, signal.SIGKILL)
    had = {name: list(tokens) for name, tokens in before.tokens.items()}
    after = Streams(new.link)
    await asyncio.wait_for(activating, 60.0)
    figures["kill to serving, ms"] = 1e3 * (time.monotonic() - at)
    open_still = [request for request in asked if not before.ended[request.id].done()]
    # What the old engine still said between the kill and now has been heard: take it along.
    had = {name: list(tokens) for name, tokens in before.tokens.items()}
    unfinished = [r for r in asked if len(had[r.id]) < r.sampling.max_tokens]
    after.submit(resumed(unfinished, had))
    said = {**had, **await after.all(60.0)}
    figures["kill to the first token of the new engine, ms"] = 1e3 * (
        min(after.first_at.values()) - at
    )
    figures["streams that moved"] = len(unfinished)
    expect(bool(unfinished), f"all streams had ended before the kill ({len(open_still)} open)")
    same = [name for name, tokens in said.items() if tokens == undisturbed[name]]
    figures["streams equal to their undisturbed twins"] = len(same)
    for name, tokens in said.items():
        expect(tokens[: len(had[name])] == had[name], f"{name} has lost tokens")
        expect(len(tokens) == len(undisturbed[name]), f"{name} has {len(tokens)} tokens")
    if exact:
        expect(len(same) == len(asked), f"{len(asked) - len(same)} streams differ")


def _stats(node: Node) -> StoreStats:
    with StoreClient(node.agent.store_socket(0), timeout=30.0) as client:
        return client.stats()
