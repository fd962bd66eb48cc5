"""The decision: rules in their order, each of which looks at the view alone.

The first rule that has something to say is followed, and then all are asked again with what that
changes, until none has.  So a rule says one thing at a time, and does not care which event it was
that made it true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import evolve

from shuntserve_core.control_plane.policy import placing, replacement
from shuntserve_core.control_plane.policy.actions import (
    Action,
    EndNode,
    Fail,
    Forget,
    Retire,
    WakeAt,
)
from shuntserve_core.control_plane.policy.backoff import Backoff
from shuntserve_core.control_plane.policy.states import NodeState, PipelineState
from shuntserve_core.control_plane.policy.view import (
    Decision,
    Missing,
    PipelineView,
    View,
    expected,
    is_coming,
    number_of,
)

LASTING_SECONDS = 5.0
"""A pipeline that served for less has failed to start, as far as patience is concerned."""
MOST_STEPS = 10_000
"""Of one decision: more are a mistake of ours, and must not hold everything up."""

Rule = Callable[[View], Decision | None]


def decide(view: View) -> Decision:
    """What to do now, and when to look again.  Raises RuntimeError if the rules contradict."""
    actions: list[Action] = []
    for _ in range(MOST_STEPS):
        step = next((s for rule in RULES if (s := rule(view)) is not None), None)
        if step is None:
            wake = min(_times(view), default=None)
            actions += [WakeAt(wake)] if wake is not None else []
            return Decision(tuple(actions), view.memory)
        actions += step.actions
        for action in step.actions:
            view = expected(view, action)
        view = evolve(view, memory=step.memory)
    raise RuntimeError(f"no end of decisions; the last: {actions[-3:]}")


# Nodes


def notice_what_came(view: View) -> Decision | None:
    """A node that can be used, and could not before, may make a better placement possible."""
    usable = frozenset(node.name for node in view.nodes.values() if node.usable)
    memory = view.memory
    if usable == memory.usable:
        return None
    came = memory.improve or not usable <= memory.usable
    return Decision((), evolve(memory, usable=usable, improve=came))


def end_at_deadline(view: View) -> Decision | None:
    """A node whose notice we enforce ends at its deadline: no cloud will take it."""
    for node in view.nodes.values():
        waits = node.enforced and not node.ending and node.state is not NodeState.LOST
        if waits and node.deadline is not None and node.deadline <= view.now:
            return Decision((EndNode(node.name, "taken at the deadline"),), view.memory)
    return None


# Pipelines


def fail_what_comes_in_vain(view: View) -> Decision | None:
    """A pipeline that comes up where it cannot stay fails at once, unless it has its GPUs already:
    serving for a while is better than not."""
    for pipeline in view.pipelines.values():
        reason = view.leaving(pipeline)
        has_gpus = pipeline.state is PipelineState.ACTIVATING
        if reason and is_coming(pipeline) and not has_gpus:
            return Decision((Fail(pipeline.name, reason),), view.memory)
    return None


def leave_in_time(view: View) -> Decision | None:
    """Requests leave a node `switch_margin` before its deadline, to others or to the queue."""
    for pipeline in view.serving():
        deadline = replacement.deadline_of(view, [pipeline])
        if deadline is not None and deadline - view.settings.switch_margin <= view.now:
            return Decision((Retire(pipeline.name, view.leaving(pipeline)),), view.memory)
    return None


def forgive_what_lasts(view: View) -> Decision | None:
    """Failures before a pipeline that has served for a while, and can stay, count no more."""
    for name in view.memory.backoffs:
        pipeline = view.pipeline(name)
        if pipeline is None or (lasts(view, pipeline) and not view.leaving(pipeline)):
            rest = {n: b for n, b in view.memory.backoffs.items() if n != name}
            return Decision((), evolve(view.memory, backoffs=rest))
    return None


def miss_what_ended(view: View) -> Decision | None:
    """A pipeline that ended, and for which no replacement answers, is missing."""
    memory = view.memory
    for name, pipeline in view.pipelines.items():
        if pipeline.live or name in memory.ended or memory.answers_for(name):
            continue
        missing = Missing(name, pipeline.plan, _patience(view, pipeline))
        return Decision(
            (),
            evolve(memory, missing=(*memory.missing, missing), ended=memory.ended | {name}),
        )
    return None


def forget_what_is_over(view: View) -> Decision | None:
    """A pipeline that has ended and needs nothing more leaves the account."""
    for name, pipeline in view.pipelines.items():
        if pipeline.ended and name in view.memory.ended:
            number = max(view.memory.number, number_of(name))
            memory = evolve(view.memory, ended=view.memory.ended - {name}, number=number)
            return Decision((Forget(name),), memory)
    return None


def lasts(view: View, pipeline: PipelineView) -> bool:
    """Whether a pipeline has served for long enough to have started well."""
    since = pipeline.serving_since
    return since is not None and since + LASTING_SECONDS <= view.now


def _patience(view: View, pipeline: PipelineView) -> Backoff:
    if lasts(view, pipeline):
        return Backoff()
    before = view.memory.backoffs.get(pipeline.name, Backoff())
    return replacement.after_failure(view, pipeline, before)


RULES: tuple[Rule, ...] = (
    notice_what_came,
    end_at_deadline,
    fail_what_comes_in_vain,
    replacement.abandon_what_is_not_needed,
    replacement.abandon_what_failed,
    leave_in_time,
    replacement.end_first,
    replacement.start,
    replacement.switch,
    replacement.retire_replaced,
    replacement.finish,
    forgive_what_lasts,
    miss_what_ended,
    forget_what_is_over,
    placing.replace,
    placing.improve,
)


def _times(view: View) -> Iterator[float]:
    """When a rule will say something else although nothing happens."""
    memory, margin = view.memory, view.settings.switch_margin
    times = [backoff.not_before for backoff in memory.backoffs.values()]
    times += [missing.backoff.not_before for missing in memory.missing]
    if memory.improve and not (memory.missing or memory.replacements):
        times.append(memory.improving.not_before)
    for name in memory.backoffs:
        since = view.pipelines[name].serving_since if name in view.pipelines else None
        times += [since + LASTING_SECONDS] if since is not None else []
    for node in view.nodes.values():
        if node.deadline is not None and node.state is not NodeState.LOST:
            times += [node.deadline - margin, node.deadline]
    return (time for time in times if time > view.now)
