"""The whole engine in one process: the ranks of a stage are threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from shuntserve_core.registry import Registry
from shuntserve_core.types.request import EngineRequest, StepOutput
from shuntserve_core.weights import (
    load_manifest,
    open_store,
    parse_model_name,
    read_stage,
    region_bytes,
    stage_tensors,
)
from shuntserve_plugins.engines.embedded.arithmetic import settle
from shuntserve_plugins.engines.embedded.engine import arithmetic_environment
from shuntserve_plugins.engines.embedded.geometry import read_geometry
from shuntserve_plugins.engines.embedded.group import Alone, Group
from shuntserve_plugins.engines.embedded.plan import Choice, Plan, Scores
from shuntserve_plugins.engines.embedded.rank import Rank, cache_of
from shuntserve_plugins.engines.embedded.scheduler import Limits, Scheduler
from shuntserve_plugins.engines.embedded.stage import Stage
from tests.plugins.engines.embedded.processes import Model

_CUDA = torch.cuda.is_available()
DEVICES = [
    "cpu",
    pytest.param("cuda:0", marks=pytest.mark.skipif(not _CUDA, reason="there is no GPU")),
]
"""Where engines are tested."""
if _CUDA:
    os.environ.update(arithmetic_environment(1))


class Threads:
    """Ranks that are threads of one process."""

    def __init__(self, size: int) -> None:
        self._parts: list[Tensor | None] = [None] * size
        self._barrier = threading.Barrier(size)
        self.members = [_Thread(self, rank, size) for rank in range(size)]

    def exchange(self, rank: int, part: Tensor) -> Tensor:
        """Meet the others."""
        self._parts[rank] = part
        self._barrier.wait()
        together = torch.stack([p for p in self._parts if p is not None])
        self._barrier.wait()
        return together


class _Thread:
    def __init__(self, threads: Threads, rank: int, size: int) -> None:
        self._threads, self.rank, self.size = threads, rank, size

    def gather(self, part: Tensor) -> Tensor:
        return self._threads.exchange(self.rank, part)


class Mailbox:
    """Hidden states on their way from a stage to the next."""

    def __init__(self) -> None:
        self.hidden: Tensor | None = None

    def receive(self, rows: int) -> Tensor:
        assert self.hidden is not None
        assert self.hidden.shape[0] == rows
        return self.hidden

    def send(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Neighbours:
    """A stage's two mailboxes."""

    def __init__(self, before: Mailbox, after: Mailbox) -> None:
        self.receive, self.send = before.receive, after.send


class LocalEngine:
    """All stages of a placement, and a scheduler."""

    def __init__(
        self,
        model: Model,
        layers: Sequence[tuple[int, int]],
        degrees: Sequence[int],
        *,
        blocks: int = 64,
        max_batch: int = 32,
        max_length: int = 256,
        max_chunk: int = 64,
        device: str = "cpu",
    ) -> None:
        torch.set_num_threads(1)
        settle(torch.device(device))
        geometry = read_geometry(model.directory)
        self.stages: list[list[Rank]] = []
        boxes = [Mailbox() for _ in range(len(layers) + 1)]
        for index, ((start, stop), degree) in enumerate(zip(layers, degrees, strict=True)):
            members: Sequence[Group] = Threads(degree).members if degree > 1 else [Alone()]
            ranks = []
            for group in members:
                tensors = tensors_of(model, degree, group.rank, range(start, stop), device)
                stage = Stage(geometry, tensors, range(start, stop), group, max_length)
                neighbours = Neighbours(boxes[index], boxes[index + 1])
                rank = Rank(stage, neighbours, samples=stage.last and group.rank == 0)
                rank.cache = cache_of(stage, blocks)
                ranks.append(rank)
            self.stages.append(ranks)
        self.scheduler = Scheduler(Limits(blocks, max_batch, max_length, max_chunk))
        self._pool = ThreadPoolExecutor(max(degrees))

    def close(self) -> None:
        self._pool.shutdown()

    def step(self) -> Sequence[StepOutput]:
        plan = self.scheduler.plan()
        return self.scheduler.apply(plan, self.compute(plan))

    def compute(self, plan: Plan) -> list[Choice | Scores]:
        choices: list[Choice | Scores] = []
        for ranks in self.stages:
            for chosen in self._pool.map(lambda rank: rank.step(plan), ranks):
                choices += chosen
        return choices

    def run(self, requests: Sequence[EngineRequest]) -> dict[str, list[StepOutput]]:
        """Serve the requests together; what was said of each."""
        said: dict[str, list[StepOutput]] = {request.id: [] for request in requests}
        for request in requests:
            self.scheduler.submit(request)
        while self.scheduler.busy:
            for output in self.step():
                said[output.id].append(output)
        return said

    def tokens(self, request: EngineRequest, *others: EngineRequest) -> list[int]:
        """The tokens that a request adds, computed beside others."""
        return [t for step in self.run([*others, request])[request.id] for t in step.tokens]


def tensors_of(
    model: Model, degree: int, rank: int, layers: range, device: str = "cpu"
) -> dict[str, Tensor]:
    store = open_store(str(model.weights), Registry())
    manifest = load_manifest(store, parse_model_name(model.name))
    first, last = layers.start == 0, layers.stop == manifest.geometry.layers
    entries = stage_tensors(manifest, degree, rank, layers, first=first, last=last)
    region = memoryview(bytearray(region_bytes(entries)))
    read_stage(store, entries, lambda e: region[e.offset : e.offset + e.nbytes])
    return {
        e.name: torch.frombuffer(
            region[e.offset : e.offset + e.nbytes], dtype=getattr(torch, e.dtype)
        )
        .view(e.shape)
        .to(device)
        for e in entries
    }
