from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from attrs import frozen

from shuntserve_core.testing.frontdoors import ScriptedBackend
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_core.text import TextTokenizer, load_tokenizer
from shuntserve_plugins.frontdoors.openai.door import OpenAIFrontDoor

MODEL = "org/tiny"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> TextTokenizer:
    return load_tokenizer(folder)


@frozen
class Served:
    """A front door that listens."""

    url: str
    door: OpenAIFrontDoor
    backend: ScriptedBackend

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def client(self, key: str = "none") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


Serve = Callable[..., Awaitable[Served]]


@pytest_asyncio.fixture
async def serve(folder: Path) -> AsyncIterator[Serve]:
    """Start front doors; `options` are the door's."""
    doors = []

    async def start(backend: ScriptedBackend | None = None, **options: Any) -> Served:
        backend = backend or ScriptedBackend()
        door = OpenAIFrontDoor(port=0, **options)
        url = await door.start(backend, str(folder), MODEL)
        doors.append(door)
        return Served(url, door, backend)

    yield start
    for door in doors:
        await door.drain(0.0)
