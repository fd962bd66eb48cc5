"""The rules on replacements under way: from their start to the end of what they replace."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from shuntserve_core.control_plane.policy.actions import (
    Action,
    Release,
    Report,
    Retire,
    Start,
    Stop,
    Switch,
)
from shuntserve_core.control_plane.policy.backoff import Backoff, longest
from shuntserve_core.control_plane.policy.capacity import gpus_of
from shuntserve_core.control_plane.policy.states import PREPARING, PipelineState
from shuntserve_core.control_plane.policy.view import (
    Decision,
    Memory,
    Missing,
    PipelineView,
    Replacement,
    View,
    is_coming,
)


def abandon_what_is_not_needed(view: View) -> Decision | None:
    """If everything that it was to replace can stay after all, and nothing has been switched yet,
    the new pipelines are stopped and the old ones go on."""
    for one in view.memory.replacements:
        stays = all(p.serves and not view.leaving(p) for p in _seen(view, one.old))
        if one.old and stays and not (one.optional or one.fills or one.switched or one.abandoned):
            return _abandon(view, one, "what it was to replace can stay")
    return None


def abandon_what_failed(view: View) -> Decision | None:
    """If any pipeline of a better placement fails to start, all that is old goes on."""
    for one in view.memory.replacements:
        failed = [p.name for p in _seen(view, one.new) if not p.live]
        if failed and one.optional and not (one.switched or one.abandoned):
            return _abandon(view, one, f"{failed[0]} failed")
    return None


def end_first(view: View) -> Decision | None:
    """Without concurrent initialization, old pipelines serve to the last and end before new ones
    start."""
    waiting = [] if view.settings.strategy.concurrent else _waiting(view)
    for one in waiting:
        serving = [p for p in _seen(view, one.old) if p.serves]
        deadline = deadline_of(view, serving)
        left = deadline is not None and view.now < deadline - view.settings.switch_margin
        if serving and not left:
            reason = "its replacement is to start"
            return Decision(tuple(Retire(p.name, reason) for p in serving), view.memory)
    return None


def start(view: View) -> Decision | None:
    """New pipelines start beside the old ones, or after them and from nothing, as the strategy
    says."""
    afresh = not view.settings.strategy.concurrent
    for one in _waiting(view):
        if not afresh or all(pipeline.ended for pipeline in _seen(view, one.old)):
            actions = tuple(Start(p.name, afresh) for p in _seen(view, one.new) if p.live)
            return Decision(actions, _with(view.memory, evolve(one, started=True)))
    return None


def switch(view: View) -> Decision | None:
    """Once every new pipeline stands by or has failed, those that stand by take over."""
    for one in view.memory.replacements:
        new = _seen(view, one.new)
        if not one.started or one.abandoned or any(p.state in PREPARING for p in new):
            continue
        ready = [p for p in new if p.state is PipelineState.STANDBY and p.name not in one.switched]
        if ready:
            actions = tuple(_switch(view, pipeline) for pipeline in ready)
            switched = one.switched | {pipeline.name for pipeline in ready}
            return Decision(actions, _with(view.memory, evolve(one, switched=switched)))
    return None


def _switch(view: View, new: PipelineView) -> Switch:
    """A GPU's memory has one owner at a time, and so has the room that weights leave."""
    gpus = gpus_of(new.plan)
    sharing = [
        p
        for p in view.pipelines.values()
        if not (is_coming(p) or p.ended) and gpus_of(p.plan) & gpus
    ]
    grows = any(new.kv_bytes > old.kv_bytes for old in sharing)
    return Switch(new.name, tuple(old.name for old in sharing), grows)


def retire_replaced(view: View) -> Decision | None:
    """Once the new pipelines serve, or those that can, the old ones end."""
    for one in view.memory.replacements:
        serving = [p for p in _seen(view, one.old) if p.serves]
        if serving and _settled(view, one) and _served(view, one):
            reason = "its replacement serves"
            return Decision(tuple(Retire(p.name, reason) for p in serving), view.memory)
    return None


def finish(view: View) -> Decision | None:
    """A replacement is over when its new pipelines serve or have failed, and, where one serves, no
    process of the old ones is left.  What should run then and does not is missing."""
    for one in view.memory.replacements:
        if not _settled(view, one):
            continue
        if not _served(view, one):
            return Decision((), _failed(view, one))
        if all(pipeline.ended for pipeline in _seen(view, one.old)):
            return Decision((Release(),), _succeeded(view, one))
    return None


def _succeeded(view: View, one: Replacement) -> Memory:
    """New pipelines inherit the failures before them; those that failed are missing."""
    new = _seen(view, one.new)
    failed = [p for p in new if not p.live]
    backoffs = {p.name: one.backoff for p in new if p.live and one.backoff.failures}
    missing = [Missing(p.name, p.plan, after_failure(view, p, one.backoff)) for p in failed]
    memory = _over(view, one, missing)
    return evolve(memory, backoffs={**memory.backoffs, **backoffs}, improving=Backoff())


def _failed(view: View, one: Replacement) -> Memory:
    """Old pipelines that serve on are tried to be replaced later; others are missing, and so is
    what was missing before.  Nobody is to blame for what was abandoned."""
    failed = [p for p in _seen(view, one.new) if not p.live]
    backoff = longest(*(after_failure(view, p, one.backoff) for p in failed if not one.abandoned))
    old = _seen(view, one.old)
    names = [*one.new, *(fill.name for fill in one.fills)]
    missing = [
        evolve(fill, name=fill.name or name, backoff=backoff)
        for fill, name in zip(one.fills, names, strict=False)
    ]
    missing += [Missing(p.name, p.plan, backoff) for p in old if not p.serves]
    memory = _over(view, one, missing)
    backoffs = {p.name: backoff for p in old if p.serves and backoff.failures}
    rest = {name: b for name, b in memory.backoffs.items() if name not in one.old}
    return evolve(
        memory,
        backoffs={**rest, **backoffs},
        improving=memory.improving.after_failure(view.now),
        improve=True,
    )


def _over(view: View, one: Replacement, missing: Sequence[Missing]) -> Memory:
    memory = view.memory
    ended = [p.name for p in _seen(view, [*one.new, *one.old]) if not p.serves]
    return evolve(
        memory,
        replacements=tuple(other for other in memory.replacements if other != one),
        missing=(*memory.missing, *missing),
        ended=memory.ended | set(ended),
    )


def after_failure(view: View, pipeline: PipelineView, before: Backoff) -> Backoff:
    """Later each time, but at once, and elsewhere, if a pipeline failed for want of a node."""
    return before if view.going(pipeline) else before.after_failure(view.now)


def deadline_of(view: View, pipelines: Sequence[PipelineView]) -> float | None:
    """When the first node of these pipelines will be taken."""
    names = {stage.node for pipeline in pipelines for stage in pipeline.plan.stages}
    nodes = [view.nodes[name] for name in names if name in view.nodes]
    return min((node.deadline for node in nodes if node.deadline is not None), default=None)


def _abandon(view: View, one: Replacement, reason: str) -> Decision:
    facts = {"start": list(one.new), "reason": reason}
    actions: list[Action] = [Report("given up", facts)]
    actions += [Stop(p.name, reason) for p in _seen(view, one.new) if p.live]
    return Decision(tuple(actions), _with(view.memory, evolve(one, abandoned=True)))


def _waiting(view: View) -> list[Replacement]:
    """Replacements whose new pipelines have not been started."""
    return [one for one in view.memory.replacements if not (one.started or one.abandoned)]


def _settled(view: View, one: Replacement) -> bool:
    """Whether each new pipeline serves, or never will."""
    return all(p.serves or not p.live for p in _seen(view, one.new))


def _served(view: View, one: Replacement) -> bool:
    return any(p.serves for p in _seen(view, one.new))


def _seen(view: View, names: Sequence[str]) -> list[PipelineView]:
    return [view.pipelines[name] for name in names if name in view.pipelines]


def _with(memory: Memory, one: Replacement) -> Memory:
    """With a replacement as it is now."""
    others = tuple(one if other.new == one.new else other for other in memory.replacements)
    return evolve(memory, replacements=others)
