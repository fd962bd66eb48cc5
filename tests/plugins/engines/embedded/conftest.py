from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.plugins.engines.embedded.models import build
from tests.plugins.engines.embedded.processes import Model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build("llama", tmp_path_factory.mktemp("llama"), torch.float16)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")
