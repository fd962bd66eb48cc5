from __future__ import annotations

import pytest

from tests.plugins.engines.vllm.models import StoredModel, build


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    return build("llama", tmp_path_factory.mktemp("llama"), [1, 2, 4])


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    return build("qwen3", tmp_path_factory.mktemp("qwen3"), [1, 2])
