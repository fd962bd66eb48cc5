from __future__ import annotations

from collections.abc import Iterator

import pytest

from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.vllm.models import StoredModel, build


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    return build("llama", tmp_path_factory.mktemp("llama"), [1, 2, 4])


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    return build("qwen3", tmp_path_factory.mktemp("qwen3"), [1, 2])


@pytest.fixture(scope="session")
def template() -> Iterator[TemplateForTests]:
    """vLLM is imported once for all engines of a test run."""
    with TemplateForTests(Vllm()) as template:
        yield template
