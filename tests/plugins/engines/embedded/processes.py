"""Tensor stores and worker processes of one engine, started as a node agent would."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen

from shuntserve_core.interfaces.engine import EngineLaunch, RankLaunch, WorkerCommand
from shuntserve_core.link import LinkClient, LinkPolicy
from shuntserve_core.types import ModelSpec
from shuntserve_core.types.request import EngineRequest, StepOutput
from shuntserve_plugins.engines.embedded.engine import Embedded
from shuntserve_plugins.engines.embedded.geometry import read_geometry
from tests.core.tensorstore.processes import StoreProcess
from tests.plugins.engines.embedded.forked import ForkedRank, TemplateForTests

TOKEN = "a token for tests"
HOST = "127.0.0.1"


@frozen
class Model:
    """A checkpoint, and its cut form in a weight store."""

    directory: Path
    weights: Path
    name: str


class Stores:
    """One tensor store for each rank of a placement, shared by its engines."""

    def __init__(self, directory: Path, count: int) -> None:
        self._stack = ExitStack()
        self.sockets = [directory / f"rank{index}.sock" for index in range(count)]
        self.processes = [
            self._stack.enter_context(StoreProcess(socket)) for socket in self.sockets
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


def launch_of(
    model: Model,
    layers: Sequence[tuple[int, int]],
    degrees: Sequence[int],
    stores: Stores,
    *,
    engine_id: str = "engine",
    max_batch: int = 32,
    max_length: int = 256,
    kv_bytes: int = 64 << 20,
) -> EngineLaunch:
    g = read_geometry(model.directory)
    spec = ModelSpec(
        name=model.name,
        layers=g.layers,
        hidden=g.hidden,
        heads=g.heads,
        kv_heads=g.kv_heads,
        head_dim=g.head_dim,
        intermediate=g.intermediate,
        vocab=g.vocab,
    )
    places = [(stage, rank) for stage, tp in enumerate(degrees) for rank in range(tp)]
    ranks = [
        RankLaunch("node", HOST, index, stage, rank, str(stores.sockets[index]))
        for index, (stage, rank) in enumerate(places)
    ]
    return EngineLaunch(
        engine_id=engine_id,
        model=spec,
        model_dir=str(model.directory),
        weights=str(model.weights),
        weights_model=model.name,
        layers=tuple(layers),
        tensor_parallel=tuple(degrees),
        ranks=tuple(ranks),
        rendezvous=f"{HOST}:{free_port()}",
        link_token=TOKEN,
        max_batch=max_batch,
        max_length=max_length,
        kv_bytes=kv_bytes,
    )


_PATIENT = LinkPolicy(missed=100)
"""Other tests are about how soon the loss of an engine is detected."""


class EngineProcesses:
    """Every rank of an engine, forked if there is a template; killed at the end of the block."""

    def __init__(self, launch: EngineLaunch, template: TemplateForTests | None = None) -> None:
        self.ranks: list[subprocess.Popen[str] | ForkedRank] = []
        for command in Embedded().workers(launch):
            process = template.start(command) if template else _start(command)
            self.ranks.append(process)
            assert process.stdin
            process.stdin.write(command.stdin)
            process.stdin.flush()
        self.address = self.event(0, "listening")["address"]

    def event(self, rank: int, name: str) -> dict[str, str]:
        """Wait for what a rank reports next."""
        stdout = self.ranks[rank].stdout
        assert stdout
        event: dict[str, str] = json.loads(stdout.readline())
        assert event["event"] == name
        return event

    def wait_ready(self) -> None:
        """Wait until all ranks could serve."""
        for rank in range(len(self.ranks)):
            self.event(rank, "ready")

    async def link(self) -> LinkClient:
        """Open the link."""
        return await LinkClient.connect(self.address, TOKEN, _PATIENT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.wait()
            assert process.stdin
            assert process.stdout
            process.stdin.close()
            process.stdout.close()


def _start(command: WorkerCommand) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command.argv,
        env={**os.environ, **command.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class Streams:
    """Collects what an engine says of requests."""

    def __init__(self, link: LinkClient) -> None:
        self._link = link
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, asyncio.Future[StepOutput]] = {}
        self._loop = asyncio.get_running_loop()

    def submit(self, request: EngineRequest) -> None:
        """Send a request."""
        tokens = self.outputs[request.id] = list(request.output)
        done = self.finished[request.id] = self._loop.create_future()

        def heard(step: StepOutput) -> None:
            tokens.extend(step.tokens)
            if step.finish is not None:
                done.set_result(step)

        self._link.submit(request, heard)

    async def tokens(self, request_id: str) -> list[int]:
        """The whole output, once it has ended well."""
        step = await self.finished[request_id]
        assert step.finish != "error", step.error
        return self.outputs[request_id]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port
