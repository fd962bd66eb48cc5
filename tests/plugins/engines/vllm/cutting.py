"""The front door over an engine, from which every request is taken away at a given token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
from attrs import frozen

from shuntserve_core.interfaces.frontdoor import Sink
from shuntserve_core.interfaces.link import EngineLink
from shuntserve_core.journal import Journal
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.types.request import StepOutput
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin
from shuntserve_plugins.frontdoors.openai.door import OpenAIFrontDoor
from tests.plugins.engines.vllm.models import StoredModel

BEFORE, AFTER = "before", "after"
CHARACTERS = "🙂🎉𝄞é"
"""The tokenizer knows their bytes only, so that each is as many tokens as it has bytes."""
WRITTEN = {"type": "string", "pattern": f"^[{CHARACTERS}]{{9}}$"}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


class CuttingDispatcher(Dispatcher):
    """Every request begins on one pipeline, and goes on at the other after `cut` tokens.

    One engine may be both: what it was told of a request is forgotten with the abort.
    """

    def __init__(self, link: EngineLink) -> None:
        super().__init__(WeightedRoundRobin())
        self.cut = 0
        for name in (BEFORE, AFTER):
            self.add_pipeline(name, link, 1.0, 8)

    def submit(self, journal: Journal, sink: Sink) -> None:
        self.admit_pipeline(BEFORE)
        self.drain_pipeline(AFTER)
        super().submit(journal, _CuttingSink(self, journal, sink))

    def move(self) -> None:
        """Take what there is from the one pipeline to the other."""
        self.admit_pipeline(AFTER)
        self.migrate(BEFORE)


@frozen
class _CuttingSink:
    dispatcher: CuttingDispatcher
    journal: Journal
    sink: Sink

    def on_output(self, output: StepOutput) -> None:
        self.sink.on_output(output)
        if len(self.journal.output) == self.dispatcher.cut and output.finish is None:
            self.dispatcher.move()


@frozen
class Answer:
    pieces: tuple[str, ...]
    finish: str | None
    tokens: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@frozen
class Door:
    """The front door over an engine, cut where one likes."""

    client: openai.AsyncOpenAI
    dispatcher: CuttingDispatcher

    async def ask(self, cut: int = 0, **options: Any) -> Answer:
        """A streamed answer, interrupted after `cut` tokens if there are so many."""
        self.dispatcher.cut = cut
        stream = await self.client.chat.completions.create(
            model="model",
            messages=[{"role": "user", "content": "import sys"}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "written", "schema": WRITTEN},
            },
            max_tokens=60,
            temperature=1.0,
            seed=5,
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        chunks = [chunk async for chunk in stream]
        choices = [choice for chunk in chunks for choice in chunk.choices]
        usage = chunks[-1].usage
        assert usage
        return Answer(
            tuple(choice.delta.content or "" for choice in choices),
            choices[-1].finish_reason,
            usage.completion_tokens,
        )


@asynccontextmanager
async def door(link: EngineLink, model: StoredModel, tmp_path: Path) -> AsyncIterator[Door]:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    dispatcher = CuttingDispatcher(link)
    served = OpenAIFrontDoor(port=0, chat_template=str(template))
    url = await served.start(dispatcher, str(model.directory), "model")
    try:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            yield Door(client, dispatcher)
    finally:
        await served.drain(0.0)
