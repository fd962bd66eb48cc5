from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    with StoreProcess(tmp_path / "store.sock") as process:
        yield process
