from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from shuntserve_core.testing.cuda import FakeCard
from tests.core.tensorstore.processes import StoreProcess, push, random_model


@frozen
class Model:
    weights: Path
    name: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("weights")
    name = push(random_model(directory / "tiny"), directory / "store", [1, 2])
    return Model(directory / "store", name)


@pytest.fixture(params=["host", "card"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StoreProcess]:
    card = FakeCard() if request.param == "card" else None
    with StoreProcess(tmp_path / "store.sock", card=card) as process:
        yield process
    if card is not None and "memory" in vars(process):
        del process.memory
        gc.collect()
        assert card.used() == 0
