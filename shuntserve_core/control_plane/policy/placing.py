"""The rules on what runs in place of what is lost, and on when all is placed anew."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from shuntserve_core.control_plane.policy.actions import Action, Create, Report, Search
from shuntserve_core.control_plane.policy.backoff import Backoff, longest
from shuntserve_core.control_plane.policy.capacity import nodes_of
from shuntserve_core.control_plane.policy.search import Anywhere, Better
from shuntserve_core.control_plane.policy.spares import keep_shapes
from shuntserve_core.control_plane.policy.view import (
    Decision,
    Memory,
    Missing,
    PipelineView,
    Replacement,
    View,
    number_of,
)
from shuntserve_core.types import Pipeline


def replace(view: View) -> Decision | None:
    """Pipelines that cannot stay, or are missing, are replaced once it is time for another try.

    In their shapes, where spares suffice; else all of them together by whatever fits.  If nothing
    does, what is missing is forgotten, and a placement of everything is looked for instead.
    """
    memory = view.memory
    orphans = [pipeline for pipeline in view.serving() if _needs_replacement(view, pipeline)]
    missing = [one for one in memory.missing if one.backoff.is_over(view.now)]
    if not (orphans or missing):
        return None
    wanted = [*(one.plan for one in missing), *(pipeline.plan for pipeline in orphans)]
    free = view.free(leaving=[pipeline.name for pipeline in orphans])
    question = Anywhere(tuple(free), view.holdings())
    if question == memory.unplaced and not missing:
        return None
    kept = keep_shapes(wanted, memory.usable, free)
    if None not in kept or not view.settings.other_shapes:
        return _in_their_shapes(view, question, missing, orphans, kept)
    if question == memory.unplaced:
        return _nowhere(view, question, missing, orphans)
    if view.found is None or view.found.question != question:
        return _ask(view, question)
    if not view.found.change.start:
        return _nowhere(view, question, missing, orphans)
    plans = view.found.change.start
    decision = begin(view, "replacement of another shape", plans, orphans, missing)
    # All together may now be placed better still.
    return evolve(decision, memory=evolve(decision.memory, improve=True))


def _needs_replacement(view: View, pipeline: PipelineView) -> bool:
    memory = view.memory
    return (
        bool(view.leaving(pipeline))
        and memory.answers_for(pipeline.name) is None
        and memory.backoffs.get(pipeline.name, Backoff()).is_over(view.now)
    )


def _in_their_shapes(
    view: View,
    question: Anywhere,
    missing: Sequence[Missing],
    orphans: Sequence[PipelineView],
    kept: Sequence[Pipeline | None],
) -> Decision | None:
    """Begin with the first that can be replaced; the others' turn comes with the next question."""
    for one, plan in zip(missing, kept, strict=False):
        if plan is not None:
            why = "replacement" if one.name else "first placement"
            return begin(view, why, [plan], [], [one])
    for pipeline, plan in zip(orphans, kept[len(missing) :], strict=True):
        if plan is not None:
            return begin(view, "replacement", [plan], [pipeline], [])
    if question == view.memory.unplaced:
        return None
    left = evolve(view.memory, unplaced=question)
    return Decision((_nothing_fits(missing, orphans),), left)


def _nowhere(
    view: View, question: Anywhere, missing: Sequence[Missing], orphans: Sequence[PipelineView]
) -> Decision:
    memory = view.memory
    rest = tuple(one for one in memory.missing if one not in missing)
    left = evolve(memory, missing=rest, unplaced=question, improve=True)
    return Decision((_nothing_fits(missing, orphans),), left)


def _nothing_fits(missing: Sequence[Missing], orphans: Sequence[PipelineView]) -> Report:
    names = [*(one.name for one in missing), *(pipeline.name for pipeline in orphans)]
    return Report("no replacement fits", {"pipelines": names})


def improve(view: View) -> Decision | None:
    """When capacity came back or shapes changed, and nothing is missing or under way, a better
    placement of everything is looked for."""
    memory = view.memory
    if not memory.improve or memory.replacements or memory.missing:
        return None
    if not view.settings.other_shapes:
        return Decision((), evolve(memory, improve=False))
    if not memory.improving.is_over(view.now):
        return None
    running = {p.name: p for p in view.serving() if not view.leaving(p)}
    live = [nodes_of(pipeline.plan) for pipeline in view.pipelines.values() if pipeline.live]
    question = Better(
        {name: pipeline.plan for name, pipeline in running.items()},
        tuple(view.usable()),
        frozenset[str]().union(*live),
        view.holdings(),
    )
    if view.found is None or view.found.question != question:
        return _ask(view, question)
    done = evolve(view, memory=evolve(memory, improve=False))
    change = view.found.change
    if not change.start:
        return Decision((), done.memory)
    old = [running[name] for name in change.end]
    return begin(done, "better placement", change.start, old, [], optional=bool(running))


def _ask(view: View, question: Anywhere | Better) -> Decision | None:
    """One search at a time; while another goes on, this one waits for its end."""
    return Decision((Search(question),), view.memory) if view.searching is None else None


def begin(
    view: View,
    why: str,
    plans: Sequence[Pipeline],
    old: Sequence[PipelineView],
    fills: Sequence[Missing],
    *,
    optional: bool = False,
) -> Decision:
    """Take new pipelines into the account, in place of old ones and of missing ones."""
    memory = view.memory
    first = max([memory.number, *map(number_of, view.pipelines)]) + 1
    new = {f"p{first + index}": plan for index, plan in enumerate(plans)}
    names = tuple(pipeline.name for pipeline in old)
    backoffs = [memory.backoffs.get(name, Backoff()) for name in names]
    backoff = longest(*backoffs, *(one.backoff for one in fills))
    begun = Replacement(why, tuple(new), names, tuple(fills), optional, backoff)
    facts = {
        "start": {name: sorted(nodes_of(plan)) for name, plan in new.items()},
        "end": [*(one.name for one in fills if one.name), *names],
    }
    actions: list[Action] = [Report(why, facts)]
    actions += [Create(name, plan) for name, plan in new.items()]
    return Decision(tuple(actions), _remembering(memory, begun, first + len(new) - 1))


def _remembering(memory: Memory, begun: Replacement, number: int) -> Memory:
    return evolve(
        memory,
        replacements=(*memory.replacements, begun),
        missing=tuple(one for one in memory.missing if one not in begun.fills),
        unplaced=None,
        number=number,
    )
