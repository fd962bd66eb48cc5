from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve, frozen

from shuntserve_core.interfaces.engine import Template
from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.vllm import watching
from tests.plugins.engines.vllm.models import StoredModel, build


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    return build("llama", tmp_path_factory.mktemp("llama"), [1, 2, 4])


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    return build("qwen3", tmp_path_factory.mktemp("qwen3"), [1, 2])


@frozen
class Watched:
    """The engine, as far as a template is concerned."""

    template: Template


@pytest.fixture(scope="session")
def unpickled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where it is written if any rank of any engine unpickles anything."""
    file = tmp_path_factory.mktemp("watched") / "unpickled"
    os.environ[watching.FILE] = str(file)
    yield file
    del os.environ[watching.FILE]


@pytest.fixture(scope="session")
def template(unpickled: Path) -> Iterator[TemplateForTests]:
    """vLLM is imported once for all engines of a test run."""
    module = "tests.plugins.engines.vllm.watched"
    with TemplateForTests(Watched(evolve(Vllm().template, module=module))) as template:
        yield template
    assert not unpickled.exists(), unpickled.read_text()[:4000]
