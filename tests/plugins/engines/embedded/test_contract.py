"""What every engine must do, by two stages of unlike degree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from shuntserve_core.testing.engines import EngineContract, running
from shuntserve_plugins.engines.embedded.engine import Embedded
from tests.plugins.engines.embedded.models import build
from tests.plugins.engines.embedded.processes import Stores, launch_of


class TestEmbedded(EngineContract):
    @contextmanager
    def engine(self) -> Iterator[tuple[str, str]]:
        with TemporaryDirectory() as name, Stores(Path(name), 3) as stores:
            model = build("llama", Path(name), torch.float16)
            launch = launch_of(model, [(0, 1), (1, 4)], [2, 1], stores)
            with running(Embedded(), launch) as address:
                yield address, launch.link_token
