"""A dispatcher that takes every request away from its engine at a given token."""

from __future__ import annotations

from attrs import frozen

from shuntserve_core.interfaces.frontdoor import Sink
from shuntserve_core.interfaces.link import EngineLink
from shuntserve_core.journal import Journal
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.types.request import StepOutput
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin

BEFORE, AFTER = "before", "after"


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
