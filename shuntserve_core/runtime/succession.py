"""What takes the place of what: vacancies, and the successions that fill them."""

from __future__ import annotations

import asyncio

from attrs import define, evolve, field, frozen

from shuntserve_core.control_plane.policy.backoff import Backoff
from shuntserve_core.runtime.run import PipelineRun
from shuntserve_core.runtime.states import PipelineState
from shuntserve_core.types import Pipeline

LASTING_SECONDS = 5.0
"""A pipeline that served for less has failed to start, as far as patience is concerned."""


@frozen
class Vacancy:
    """A pipeline that should run and does not."""

    name: str
    """What was there."""
    plan: Pipeline
    retry: Backoff = field(factory=Backoff)

    @classmethod
    def left_by(cls, run: PipelineRun, now: float) -> Vacancy:
        """After a failure that no succession was prepared for."""
        served = run.seconds_served
        if served is not None and served >= LASTING_SECONDS:
            return cls(run.name, run.plan)
        return cls(run.name, run.plan, run.retry_after_failure(now))


@define(eq=False)
class Succession:
    """New pipelines that come up to replace old ones, or to fill vacancies.

    It is under way from the decision until the old ones have ended, and answers for all of its
    pipelines that long; what it leaves undone is `vacated` at its end.
    """

    why: str
    new: tuple[PipelineRun, ...]
    old: tuple[PipelineRun, ...] = ()
    fills: tuple[Vacancy, ...] = ()
    optional: bool = False
    """Whether it only makes things better: then the old ones go on if anything fails."""
    abandoned: asyncio.Event = field(factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        before = [*(run.retry for run in self.old), *(vacancy.retry for vacancy in self.fills)]
        for run in self.new:
            run.retry = max(before, key=lambda retry: retry.failures, default=Backoff())

    def concerns(self, run: PipelineRun) -> bool:
        """Whether it answers for a pipeline."""
        return run in self.new or run in self.old

    @property
    def standing_by(self) -> bool:
        """Whether every new pipeline could serve."""
        return all(run.state is PipelineState.STANDBY for run in self.new)

    @property
    def served(self) -> bool:
        """Whether any new pipeline serves."""
        return any(run.state is PipelineState.SERVING for run in self.new)

    @property
    def pointless(self) -> bool:
        """Whether what it replaces can stay after all, and nothing has been switched yet."""
        return (
            bool(self.old)
            and not (self.optional or self.fills)
            and all(run.state is PipelineState.SERVING and not run.leaving for run in self.old)
            and not any(
                run.state in (PipelineState.ACTIVATING, PipelineState.SERVING) for run in self.new
            )
        )

    def vacated(self, now: float) -> list[Vacancy]:
        """At the end: what should run and does not.  Old pipelines that serve on are told when
        they may be tried to be replaced again."""
        failed = [run for run in self.new if not run.live]
        if self.served:
            return [Vacancy(run.name, run.plan, run.retry_after_failure(now)) for run in failed]
        retry = max(
            (run.retry_after_failure(now) for run in failed if not self.abandoned.is_set()),
            key=lambda retry: retry.failures,
            default=Backoff(),
        )
        for run in self.old:
            run.retry = retry
        ended = [Vacancy(run.name, run.plan, retry) for run in self.old if not run.serves]
        return [*(evolve(vacancy, retry=retry) for vacancy in self.fills), *ended]
