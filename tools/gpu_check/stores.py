"""A tensor store as a process, and what parts ask of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from gpu_check.model import Model
from gpu_check.rows import CheckFailed
from shuntserve_core.tensorstore import ShardSpec, StoreClient


class Store:
    """A store of its own on that device, ended with the block."""

    def __init__(self, socket: Path, device: str, *arguments: str) -> None:
        self.socket, self.device = socket, device
        command = [sys.executable, "-m", "shuntserve_core.tensorstore", "--socket", str(socket)]
        self.process = subprocess.Popen(
            [*command, "--device", device, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line or json.loads(line)["event"] != "listening":
            raise CheckFailed("the tensor store did not start")

    def client(self) -> StoreClient:
        """A connection; nothing here waits for more than a minute."""
        return StoreClient(self.socket, timeout=60.0)

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
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def whole(model: Model) -> ShardSpec:
    """All layers on one rank."""
    return ShardSpec(str(model.weights), model.name, 1, 0, 0, model.size.layers, True, True)
