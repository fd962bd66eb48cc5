"""Every rule of `docs/explanation/interruptions.md`, and those that go without saying, as a table:
what the view holds, what is said, and what follows."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from shuntserve_core.control_plane.policy.actions import (
    Action,
    Create,
    EndNode,
    Fail,
    Forget,
    Join,
    Notice,
    Release,
    Report,
    Retire,
    Search,
    Start,
    Stop,
    Switch,
    WakeAt,
    Withdraw,
)
from shuntserve_core.control_plane.policy.backoff import Backoff
from shuntserve_core.control_plane.policy.decide import decide
from shuntserve_core.control_plane.policy.notices import hear
from shuntserve_core.control_plane.policy.search import Anywhere, Better, Change, Found
from shuntserve_core.control_plane.policy.states import PipelineState
from shuntserve_core.control_plane.policy.view import View, expected
from shuntserve_core.types.spot import SpotEvent
from tests.core.control_plane.policy.views import (
    MARGIN,
    NOW,
    done,
    ended,
    later,
    missing,
    node,
    pipeline,
    plan,
    replacing,
    reports,
    told,
    view,
    wakes,
)

A0, A1, A2 = node("a#0"), node("a#1"), node("a#2")
B0 = node("b#0")
P1, P1_AND_B = pipeline("p1", "a#0"), pipeline("p1", "a#0", "b#0")
NOTICED = node("a#0", "noticed", deadline=60.0)


def rule(what: str, picture: View, *follows: Action) -> object:
    return pytest.param(picture, list(follows), id=what)


def started(name: str, *nodes: str) -> list[Action]:
    return [Create(name, plan(*nodes)), Start(name)]


@pytest.mark.parametrize(
    ("picture", "follows"),
    [
        rule("nothing happens: nothing follows", view(A0, A1, P1)),
        rule(
            "a notice: the replacement starts beside it, on a spare of the type",
            told(view(A0, A1, B0, P1), "a#0", "notice", 60.0),
            *started("p2", "a#1"),
        ),
        rule(
            "a notice for one of two nodes: the other one stays",
            told(view(A0, A1, B0, P1_AND_B), "a#0", "notice", 60.0),
            *started("p2", "a#1", "b#0"),
        ),
        rule(
            "a notice that names the type: for every node of it",
            told(view(A0, A1, A2, B0, P1, pipeline("p2", "b#0")), "b", "notice", 60.0),
            Search(Anywhere((A1.free, A2.free))),
        ),
        rule(
            "a notice without a spare of the type: the GPUs that are left are placed anew",
            told(view(A0, B0, P1), "a#0", "notice", 60.0),
            Search(Anywhere((B0.free,))),
        ),
        rule(
            "two notices and two spares: each keeps its own nodes that stay",
            told(
                view(A0, A1, A2, node("a#3"), B0, node("b#1"), P1_AND_B,
                     pipeline("p2", "a#1", "b#1")),
                "a#0", "notice", 60.0,
            ),
            *started("p3", "a#2", "b#0"),
        ),
        rule(
            "two notices at once: no pipeline is given a node that another one keeps",
            told(
                told(
                    view(A0, A1, A2, B0, node("b#1"), node("b#2"), P1_AND_B,
                         pipeline("p2", "a#1", "b#1")),
                    "a#0", "notice", 60.0,
                ),
                "b#1", "notice", 60.0,
            ),
            *started("p3", "a#2", "b#0"), *started("p4", "a#1", "b#2"),
        ),
        rule(
            "a node that is being ended cannot be stayed on",
            view(node("a#0", ending=True), A1, P1),
            *started("p2", "a#1"),
        ),
        rule(
            "and nothing is put there",
            view(node("a#0", ending=True), A1, missing=(missing("p1", "a#0"),)),
            *started("p1", "a#1"),
        ),
        rule(
            "a notice with other shapes not allowed, and no spare: it waits for its own type",
            told(view(A0, B0, P1, shapes=False), "a#0", "notice", 60.0),
        ),
        rule(
            "a loss: what is missing starts elsewhere at once",
            view(node("a#0", "lost"), A1, ended("p1", "a#0", served=9.0)),
            Forget("p1"), *started("p2", "a#1"),
        ),
        rule(
            "a loss while processes of it are left: it is replaced, and not forgotten yet",
            view(node("a#0", "lost"), A1, evolve(ended("p1", "a#0", served=9.0), gone=False)),
            *started("p2", "a#1"),
        ),
        rule(
            "an engine fails after it has served: again at once, where it was",
            view(A0, A1, ended("p1", "a#0", served=5.0)),
            Forget("p1"), *started("p2", "a#0"),
        ),
        rule(
            "an engine fails before it has served for 5 s: as a start that failed",
            view(A0, A1, ended("p1", "a#0", served=4.9)),
            Forget("p1"),
        ),
        rule(
            "a tensor store ends: replaced as if it had had a notice, on the same GPUs",
            view(A0, pipeline("p1", "a#0", fault="its store ended")),
            *started("p2", "a#0"),
        ),
        rule(
            "what is missing waits for its time",
            view(A0, missing=(missing("p1", "a#0", wait=0.1),)),
        ),
        rule(
            "what is missing is tried when it is time",
            view(A0, missing=(missing("p1", "a#0", failures=3),), number=7),
            *started("p8", "a#0"),
        ),
        rule(
            "names are never used twice: neither those of earlier control planes",
            view(A0, A1, pipeline("p4", "a#1"), missing=(missing("p1", "a#0"),), number=2),
            *started("p5", "a#0"),
        ),
        rule(
            "what is missing has its own GPU only while nobody else has it",
            view(A0, A1, pipeline("p2", "a#0"), missing=(missing("p1", "a#0"),)),
            Search(Anywhere((A1.free,))),
        ),
        rule(
            "a replacement comes up where it cannot stay: it fails at once",
            view(NOTICED, A1, pipeline("p2", "a#0", state="starting"),
                 replacements=(replacing("p2", fills="a#1"),)),
            Fail("p2", "loses a#0"), *started("p3", "a#1"),
        ),
        rule(
            "one that activates there has the GPUs already, and goes on",
            view(NOTICED, pipeline("p2", "a#0", state="activating"),
                 replacements=(replacing("p2", fills="a#0", switched={"p2"}),)),
        ),
        rule(
            "the deadline is nearer than the start takes: requests leave before it",
            view(node("a#0", "noticed", deadline=MARGIN), A1, P1,
                 pipeline("p2", "a#1", state="loading"), replacements=(replacing("p2", "p1"),)),
            Retire("p1", "loses a#0"),
        ),
        rule(
            "until then the old pipeline serves",
            view(node("a#0", "noticed", deadline=MARGIN + 0.1), A1, P1,
                 pipeline("p2", "a#1", state="loading"), replacements=(replacing("p2", "p1"),)),
        ),
        rule(
            "an enforced notice: the node is ended at its deadline",
            view(node("a#0", "noticed", deadline=0.0, enforced=True)),
            EndNode("a#0", "taken at the deadline"),
        ),
        rule(
            "not before, although there was an earlier deadline",
            view(node("a#0", "noticed", deadline=0.1, enforced=True)),
        ),
        rule(
            "a notice that a cloud enforces: the cloud ends it",
            view(node("a#0", "noticed", deadline=0.0)),
        ),
        rule(
            "a node that is being ended is not ended again",
            view(node("a#0", "noticed", deadline=0.0, enforced=True, ending=True)),
        ),
    ],
)  # fmt: skip
def test_what_follows(picture: View, follows: list[Action]) -> None:
    assert done(picture) == follows


STANDBY = pipeline("p2", "a#1", state="standby")
SAME_GPU = pipeline("p2", "a#0", state="standby")


@pytest.mark.parametrize(
    ("picture", "follows"),
    [
        rule(
            "a replacement that loads is waited for",
            view(NOTICED, A1, P1, pipeline("p2", "a#1", state="loading"),
                 replacements=(replacing("p2", "p1"),)),
        ),
        rule(
            "a replacement on other GPUs stands by: it serves first",
            view(NOTICED, A1, P1, STANDBY, replacements=(replacing("p2", "p1"),)),
            Switch("p2"),
        ),
        rule(
            "and once it serves, the old one ends",
            view(NOTICED, A1, P1, pipeline("p2", "a#1"),
                 replacements=(replacing("p2", "p1", switched={"p2"}),)),
            Retire("p1", "its replacement serves"),
        ),
        rule(
            "a replacement on the same GPUs takes them when the old one is gone",
            view(A0, pipeline("p1", "a#0", fault="store"), SAME_GPU,
                 replacements=(replacing("p2", "p1"),)),
            Switch("p2", ("p1",)),
        ),
        rule(
            "weights make room before KV memory grows",
            view(A0, pipeline("p1", "a#0", fault="store", kv_bytes=5), evolve(SAME_GPU, kv_bytes=6),
                 replacements=(replacing("p2", "p1"),)),
            Switch("p2", ("p1",), release_first=True),
        ),
        rule(
            "and stay where it does not",
            view(A0, pipeline("p1", "a#0", fault="store", kv_bytes=6), evolve(SAME_GPU, kv_bytes=6),
                 replacements=(replacing("p2", "p1"),)),
            Switch("p2", ("p1",)),
        ),
        rule(
            "GPUs of an engine that failed are free when no process of it is left",
            view(A0, evolve(ended("p1", "a#0", served=9.0), gone=False), SAME_GPU,
                 ended={"p1"}, replacements=(replacing("p2", fills="a#0"),)),
            Switch("p2", ("p1",)),
        ),
        rule(
            "of two replacements, the first to stand by waits for the other",
            view(NOTICED, A1, A2, P1, STANDBY, pipeline("p3", "a#2", state="starting"),
                 replacements=(replacing("p2 p3", "p1"),)),
        ),
        rule(
            "but not for one that failed",
            view(NOTICED, A1, A2, P1, STANDBY, ended("p3", "a#2"),
                 replacements=(replacing("p2 p3", "p1"),)),
            Switch("p2"),
        ),
        rule(
            "it is told to serve once",
            view(NOTICED, A1, P1, STANDBY, replacements=(replacing("p2", "p1", switched={"p2"}),)),
        ),
        rule(
            "at the end, layers that nobody needs any more are dropped",
            view(A1, evolve(P1, state=PipelineState.STOPPED, gone=True), pipeline("p2", "a#1"),
                 replacements=(replacing("p2", "p1", switched={"p2"}),)),
            Release(), Forget("p1"),
        ),
        rule(
            "it is not over while processes of the old one are left",
            view(A1, evolve(P1, state=PipelineState.STOPPED), pipeline("p2", "a#1"),
                 replacements=(replacing("p2", "p1", switched={"p2"}),)),
        ),
        rule(
            "a notice is withdrawn before the switch: the replacement is given up",
            told(view(NOTICED, A1, P1, pipeline("p2", "a#1", state="starting"),
                      replacements=(replacing("p2", "p1"),)), "a#0", "withdrawn"),
            Stop("p2", "what it was to replace can stay"),
        ),
        rule(
            "a notice is withdrawn after it: the old one ends, the node is capacity",
            told(view(NOTICED, A1, P1, pipeline("p2", "a#1", state="activating"),
                      replacements=(replacing("p2", "p1", switched={"p2"}),)), "a#0", "withdrawn"),
        ),
        rule(
            "a better placement fails to start: the old ones go on",
            view(A0, A1, A2, P1, STANDBY, ended("p3", "a#2"),
                 replacements=(replacing("p2 p3", "p1", optional=True),)),
            Stop("p2", "p3 failed"), Forget("p3"),
        ),
        rule(
            "a replacement of what must go fails: the others are used",
            view(NOTICED, A1, A2, P1, STANDBY, ended("p3", "a#2"),
                 replacements=(replacing("p2 p3", "p1", optional=False),)),
            Switch("p2"),
        ),
        rule(
            "a better placement is switched to, and one of it fails then: the others are used",
            view(A0, A1, A2, P1, pipeline("p2", "a#1"), ended("p3", "a#2"),
                 replacements=(replacing("p2 p3", "p1", optional=True, switched={"p2", "p3"}),)),
            Retire("p1", "its replacement serves"),
        ),
    ],
)  # fmt: skip
def test_the_way_of_a_replacement(picture: View, follows: list[Action]) -> None:
    assert done(picture) == follows


NEW = pipeline("p2", "a#1", state="loading")
WAITING = replacing("p2", "p1", started=False)
GONE = evolve(P1, state=PipelineState.STOPPED, gone=True)


@pytest.mark.parametrize("strategy", ["migration", "none"])
@pytest.mark.parametrize(
    ("things", "follows"),
    [
        pytest.param((NOTICED, P1), [], id="the old one serves to the last"),
        pytest.param(
            (node("a#0", "noticed", deadline=MARGIN), P1),
            [Retire("p1", "loses a#0")],
            id="it ends before the deadline",
        ),
        pytest.param(
            (A0, evolve(P1, fault="its store ended")),
            [Retire("p1", "its replacement is to start")],
            id="it ends at once where there is no deadline",
        ),
        pytest.param(
            (A0, evolve(GONE, gone=False)), [], id="the next waits for the last of its processes"
        ),
        pytest.param((A0, GONE), [Start("p2", afresh=True)], id="and reads all weights anew"),
    ],
)
def test_without_concurrent_initialization(
    strategy: str, things: tuple[object, ...], follows: list[Action]
) -> None:
    picture = view(*things, A1, NEW, strategy=strategy, replacements=(WAITING,))  # type: ignore[arg-type]
    assert done(picture) == follows


@pytest.mark.parametrize("strategy", ["shuntserve", "concurrent-init"])
def test_with_it_the_next_starts_beside_the_old_one(strategy: str) -> None:
    assert done(view(NOTICED, P1, A1, NEW, strategy=strategy, replacements=(WAITING,))) == [
        Start("p2", afresh=False)
    ]


LOST = node("a#0", "lost")
JOINING = node("a#0", "joining")


@pytest.mark.parametrize(
    ("before", "said", "follows"),
    [
        (A0, ("notice", 30.0), [Notice("a#0", NOW + 30.0, False)]),
        (A0, ("notice", None), [Notice("a#0", NOW + 120.0, False)]),
        (A0, ("notice", -1.0), [Notice("a#0", NOW - 1.0, False)]),
        (NOTICED, ("notice", 60.0), []),
        (NOTICED, ("notice", 61.0), []),
        (NOTICED, ("notice", None), []),
        (NOTICED, ("notice", 59.0), [Notice("a#0", NOW + 59.0, False)]),
        (JOINING, ("notice", 30.0), [Notice("a#0", NOW + 30.0, False)]),
        (NOTICED, ("withdrawn", None), [Withdraw("a#0")]),
        (NOTICED, ("restored", None), [Withdraw("a#0")]),
        (A0, ("withdrawn", None), []),
        (A0, ("restored", None), []),
        (A0, ("rebalance", None), []),
        (A0, ("lost", None), [EndNode("a#0", "lost without notice (test)")]),
        (LOST, ("restored", None), [Join("a#0")]),
        (LOST, ("notice", 30.0), []),
        (LOST, ("lost", None), []),
        (LOST, ("withdrawn", None), []),
    ],
)
def test_what_is_said_about_a_node(
    before: object, said: tuple[str, float | None], follows: list[Action]
) -> None:
    kind, notice = said
    deadline = None if notice is None else NOW + notice
    for name in ("a#0", "a"):  # a trace may name only the type
        event = SpotEvent(name, kind, deadline, "test")
        actions = hear({"a#0": before, "b#0": B0}, event, NOW, ["a", "b"])  # type: ignore[dict-item]
        assert [action for action in actions if not isinstance(action, Report)] == follows


def test_a_type_is_all_of_its_nodes() -> None:
    nodes = {one.name: one for one in (A0, node("a#1", "lost"), B0)}
    assert hear(nodes, SpotEvent("a", "lost", None, "test"), NOW, ["a", "b"]) == (
        EndNode("a#0", "lost without notice (test)"),
    )
    restored = hear(nodes, SpotEvent("a", "restored", None, "test"), NOW, ["a", "b"])
    assert [action for action in restored if isinstance(action, Join)] == [Join("a#1")]


def test_a_rehearsal_stays_one_when_the_cloud_says_the_same() -> None:
    noticed = {"a#0": node("a#0", "noticed", deadline=60.0, enforced=True)}
    [_, notice] = hear(noticed, SpotEvent("a#0", "notice", NOW + 9.0), NOW, ["a"])
    assert notice == Notice("a#0", NOW + 9.0, enforced=True)


def test_a_source_may_have_a_default_notice_of_its_own() -> None:
    [report, notice] = hear({"a#0": A0}, SpotEvent("a#0", "notice"), NOW, ["a"], 30.0)
    assert notice == Notice("a#0", NOW + 30.0, enforced=False)
    assert report == Report("interruption notice", {"node": "a#0", "seconds": 30.0, "source": ""})


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [
        ("rebalance", "a#0", "rebalance recommended"),
        ("restored", "c#0", "restored node is of no offered type"),
        ("restored", "b#7", "restored"),
    ],
)
def test_what_is_told_of_what_is_said(kind: str, name: str, what: str) -> None:
    first, *_ = hear({"a#0": A0}, SpotEvent(name, kind, None, "test"), NOW, ["a", "b"])
    assert isinstance(first, Report)
    assert first.what == what


# Patience


@pytest.mark.parametrize("failures", range(8))
def test_a_start_fails_on_nodes_that_are_well_again_later_each_time(failures: int) -> None:
    """2, 4, 8 ... 60 seconds."""
    picture = view(
        A0, ended("p2", "a#0"),
        replacements=(replacing("p2", fills="a#0", backoff=Backoff(failures)),),
    )  # fmt: skip
    pause = min(2.0 ** (failures + 1), 60.0)
    [left] = decide(picture).memory.missing
    assert left.backoff == Backoff(failures + 1, NOW + pause)
    assert wakes(picture) == pause
    assert done(picture) == [Forget("p2")]
    after = evolve(later(picture, pause), memory=decide(picture).memory, pipelines={})
    assert done(after) == started("p3", "a#0")


@pytest.mark.parametrize("failures", [0, 3])
def test_a_start_fails_with_its_node_again_at_once_elsewhere(failures: int) -> None:
    picture = view(
        LOST, A1, ended("p2", "a#0"),
        replacements=(replacing("p2", fills="a#0", backoff=Backoff(failures)),), number=2,
    )  # fmt: skip
    assert done(picture) == [Forget("p2"), *started("p3", "a#1")]
    [under_way] = decide(picture).memory.replacements
    assert under_way.backoff.failures == failures


def test_a_node_that_came_back_by_its_name_is_another_node() -> None:
    """The start failed with the first; nobody waits for that."""
    failed = ended("p2", "a#0", lost=frozenset({"a#0"}))
    picture = view(A0, failed, replacements=(replacing("p2", fills="a#0"),), number=2)
    assert done(picture) == [Forget("p2"), *started("p3", "a#0")]


def test_a_replacement_fails_and_what_it_was_to_replace_serves_on() -> None:
    picture = view(NOTICED, A1, P1, ended("p2", "a#1"), replacements=(replacing("p2", "p1"),))
    memory = decide(picture).memory
    assert memory.backoffs == {"p1": Backoff(1, NOW + 2.0)}
    assert not memory.missing
    again = later(evolve(picture, memory=memory, pipelines={"p1": P1}), 2.0)
    assert done(again) == started("p3", "a#1")


def test_nobody_is_to_blame_for_what_was_given_up() -> None:
    """Though the old pipeline has not served for long enough to be forgiven anything."""
    one = replacing("p2 p3", "p1", optional=True, abandoned=True)
    serves = pipeline("p1", "a#0", serving_since=NOW - 1.0)
    failed = (ended("p2", "a#1"), ended("p3", "a#2"))
    memory = decide(view(A0, A1, A2, serves, *failed, replacements=(one,))).memory
    assert memory.backoffs == {}
    assert memory.improving.failures == 1


def test_failures_are_counted_on_to_the_replacement_of_what_has_just_started() -> None:
    serves = pipeline("p2", "a#0", serving_since=NOW)
    picture = view(A0, serves, replacements=(replacing("p2", fills="a#0", backoff=Backoff(3)),))
    memory = decide(picture).memory
    assert memory.backoffs == {"p2": Backoff(3)}
    fails = evolve(picture, memory=memory, pipelines={"p2": ended("p2", "a#0", served=1.0)})
    [left] = decide(fails).memory.missing
    assert left.backoff == Backoff(4, NOW + 16.0)


@pytest.mark.parametrize(("seconds", "kept"), [(4.9, True), (5.0, False)])
def test_and_forgotten_when_it_lasts(seconds: float, *, kept: bool) -> None:
    serves = pipeline("p1", "a#0", serving_since=NOW - seconds)
    picture = view(A0, serves, backoffs={"p1": Backoff(3)})
    assert ("p1" in decide(picture).memory.backoffs) == kept
    assert (wakes(picture) is not None) == kept


@pytest.mark.parametrize(("served", "failures"), [(True, 0), (False, 3)])
def test_better_placements_are_tried_with_patience_until_one_serves(
    served: bool, failures: int
) -> None:
    new = pipeline("p2", "a#1") if served else ended("p2", "a#1")
    one = replacing("p2", optional=True, switched={"p2"} if served else set())
    picture = view(A0, A1, P1, new, replacements=(one,), improving=Backoff(2))
    memory = decide(picture).memory
    assert memory.improving.failures == failures
    assert memory.improve == (not served)
    assert wakes(picture) == (None if served else 8.0)


# Placing anew

FOUND = Found(Anywhere((B0.free,)), Change((plan("b#0"),)))
NOTHING = Found(Anywhere((B0.free,)))


def test_another_shape_is_what_the_planner_finds() -> None:
    picture = told(view(A0, B0, P1), "a#0", "notice", 60.0)
    found = evolve(picture, found=FOUND)
    assert done(found) == started("p2", "b#0")
    assert decide(found).memory.improve  # all together may now be placed better still


def test_an_answer_to_another_question_is_none() -> None:
    """Something has changed while the planner searched."""
    picture = evolve(told(view(A0, B0, A1, P1_AND_B), "b#0", "notice", 60.0), found=FOUND)
    assert done(picture) == [Search(Anywhere((A0.free, A1.free)))]


def test_one_search_at_a_time() -> None:
    picture = told(view(A0, B0, P1), "a#0", "notice", 60.0)
    assert done(evolve(picture, searching=Anywhere((A1.free,)))) == []


def test_nothing_fits_and_nobody_asks_again_until_that_may_have_changed() -> None:
    picture = evolve(told(view(A0, B0, P1), "a#0", "notice", 60.0), found=NOTHING)
    assert reports(picture) == ["no replacement fits"]
    better = Search(Better({}, (B0.free,), frozenset({"a#0"})))
    assert done(picture) == [better]  # everything together may do better
    told_nothing = evolve(picture, memory=decide(picture).memory, found=Found(better.question))
    assert done(told_nothing) == []
    calm = evolve(told_nothing, memory=decide(told_nothing).memory, found=None)
    assert done(calm) == []
    assert reports(calm) == []
    spare = evolve(calm, nodes={**calm.nodes, "a#1": A1})
    assert done(spare) == started("p2", "a#1")


def test_it_is_asked_again_once_something_has_begun() -> None:
    """It may end as it was, but for what tensor stores hold, and for what the planner says."""
    picture = view(A0, A1, missing=(missing("p1", "a#0"),), unplaced=Anywhere((A0.free,)))
    assert done(picture) == started("p1", "a#0")
    assert decide(picture).memory.unplaced is None


def test_what_is_missing_and_fits_nowhere_is_forgotten() -> None:
    picture = evolve(view(LOST, B0, missing=(missing("p1", "a#0"),)), found=NOTHING)
    assert decide(picture).memory.missing == ()
    assert decide(picture).memory.improve


def test_without_other_shapes_it_waits() -> None:
    picture = view(LOST, B0, missing=(missing("p1", "a#0"),), shapes=False)
    memory = decide(picture).memory
    assert done(picture) == []
    assert reports(picture) == ["no replacement fits"]
    assert reports(evolve(picture, memory=memory)) == []
    back = evolve(picture, memory=memory, nodes={"a#0": A0, "b#0": B0})
    assert done(back) == started("p1", "a#0")


BETTER = Better({"p1": plan("a#0")}, (A0.free, A1.free), frozenset({"a#0"}))


@pytest.mark.parametrize(
    ("picture", "asked"),
    [
        pytest.param(view(A0, A1, P1, usable={"a#0"}), True, id="a node joined"),
        pytest.param(view(A0, A1, P1), False, id="nothing came"),
        pytest.param(view(A0, A1, P1, improve=True), True, id="there may be a better one"),
        pytest.param(
            view(A0, A1, P1, improve=True, improving=Backoff(1, NOW + 1.0)), False, id="too early"
        ),
        pytest.param(
            view(A0, A1, P1, improve=True, missing=(missing("p9", "b#0", wait=1.0),)),
            False, id="something is missing",
        ),
        pytest.param(
            view(A0, A1, P1, NEW, improve=True, replacements=(replacing("p2", fills="a#1"),)),
            False, id="something is under way",
        ),
        pytest.param(view(A0, A1, P1, improve=True, shapes=False), False, id="it must not be"),
    ],
)  # fmt: skip
def test_when_a_better_placement_is_looked_for(picture: View, *, asked: bool) -> None:
    assert done(picture) == ([Search(BETTER)] if asked else [])


def test_a_better_placement_comes_up_beside_the_old_one() -> None:
    change = Change((plan("a#1"),), ("p1",))
    picture = evolve(view(A0, A1, P1, improve=True), found=Found(BETTER, change))
    assert done(picture) == started("p2", "a#1")
    [under_way] = decide(picture).memory.replacements
    assert under_way.old == ("p1",)
    assert under_way.optional
    assert not decide(picture).memory.improve


def test_a_node_goes_while_a_better_placement_is_looked_for() -> None:
    change = Change((plan("a#1"),), ("p1",))
    picture = evolve(view(A0, A1, P1, improve=True), found=Found(BETTER, change))
    assert done(told(picture, "a#1", "notice", 60.0)) == [
        Search(Better({"p1": plan("a#0")}, (A0.free,), frozenset({"a#0"})))
    ]


def test_no_better_one_is_not_asked_for_again() -> None:
    picture = evolve(view(A0, A1, P1, improve=True), found=Found(BETTER))
    assert done(picture) == []
    assert not decide(picture).memory.improve


def test_the_first_placement_is_what_is_missing_at_the_start() -> None:
    first = tuple(missing("", name) for name in ("a#0", "a#1"))
    picture = view(A0, A1, missing=first)
    assert done(picture) == [*started("p1", "a#0"), *started("p2", "a#1")]
    assert reports(picture) == ["first placement", "first placement"]


# Whatever is there

NAMES = ("a#0", "a#1", "b#0")
NODES = st.fixed_dictionaries(
    {
        name: st.builds(
            node,
            st.just(name),
            st.sampled_from(("joining", "up", "up", "noticed", "lost")),
            deadline=st.sampled_from((None, -1.0, 0.0, 1.0, 60.0)),
            enforced=st.booleans(),
        )
        for name in NAMES
    }
)
RUNS = st.lists(
    st.builds(
        lambda nodes, state, gone, since: (nodes, state, gone, since),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        st.sampled_from([str(state) for state in PipelineState]),
        st.booleans(),
        st.sampled_from((0.0, NOW - 1.0)),
    ),
    max_size=4,
)


@given(
    NODES, RUNS, st.data(), st.sampled_from(("shuntserve", "none")), st.booleans(), st.booleans()
)
def test_every_decision_ends_and_leaves_nothing_undone(
    nodes: dict[str, object],
    runs: list[tuple[list[str], str, bool, float]],
    data: st.DataObject,
    strategy: str,
    shapes: bool,
    improve: bool,
) -> None:
    """Asked again when all has been carried out, there is nothing more to do."""
    seen = [
        pipeline(f"p{number}", *on, state=state, gone=gone, serving_since=since)
        for number, (on, state, gone, since) in enumerate(runs, 1)
    ]
    names = [one.name for one in seen]
    old = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    new = [name for name in names if name not in old][:2]
    one = replacing(" ".join(new), " ".join(old), optional=data.draw(st.booleans()),
                    started=data.draw(st.booleans()))  # fmt: skip
    under_way = (one,) if new else ()
    picture = view(*nodes.values(), *seen, strategy=strategy, shapes=shapes, improve=improve,
                   replacements=under_way, missing=(missing("p9", "a#0"),))  # type: ignore[arg-type]  # fmt: skip
    decision = decide(picture)
    for action in decision.actions:
        picture = expected(picture, action)
    again = decide(evolve(picture, memory=decision.memory))
    assert again.memory == decision.memory
    assert all(isinstance(action, WakeAt) for action in again.actions)
    for name in decision.memory.ended:
        assert name in picture.pipelines
