from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve_core.weights import Manifest, ModelName, load_manifest
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.quickstart import make_model_directory
from shuntserve_core.weights.sources import open_source
from shuntserve_plugins.storage.directory import DirectoryStore
from tests.core.weights.models import write_llama

DEGREES = (1, 2, 4, 8)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    root = tmp_path / "store"
    root.mkdir()
    return DirectoryStore(root)


@pytest.fixture
def name() -> ModelName:
    return ModelName("local", "tiny")


@pytest.fixture
def manifest(store: DirectoryStore, checkpoint: Path, name: ModelName) -> Manifest:
    """Of the tiny checkpoint, pushed into `store`."""
    source, _ = open_source(str(checkpoint))
    push_model(store, source, plan_push(source, name, DEGREES))
    return load_manifest(store, name)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a model directory, by the quickstart helper."""
    return make_model_directory(tmp_path_factory.mktemp("smollm2") / "model")
