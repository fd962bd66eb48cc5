from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuntserve_core.runtime.states import (
    COMING,
    LIVE,
    NODE_TRANSITIONS,
    PIPELINE_TRANSITIONS,
    Machine,
    NodeState,
    PipelineState,
)


@given(st.lists(st.sampled_from(PipelineState)))
def test_only_the_ways_of_the_diagram_can_be_gone(wishes: list[PipelineState]) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    machine = Machine("p1", PipelineState.LOADING, PIPELINE_TRANSITIONS, counts)
    gone = 0
    for wish in wishes:
        before = machine.state
        if wish is before or wish in PIPELINE_TRANSITIONS[before]:
            machine.to(wish, "test")
            assert machine.state is wish
            gone += wish is not before
        else:
            with pytest.raises(ValueError, match="no way from"):
                machine.to(wish, "test")
            assert machine.state is before
    assert sum(counts.values()) == gone


def test_every_state_is_reached_and_every_way_ends() -> None:
    for table, start, end in (
        (PIPELINE_TRANSITIONS, PipelineState.LOADING, PipelineState.STOPPED),
        (NODE_TRANSITIONS, NodeState.JOINING, NodeState.LOST),
    ):
        reached, todo = {start}, [start]
        while todo:
            for state in table[todo.pop()] - reached:  # type: ignore[index]
                reached.add(state)
                todo.append(state)
        assert reached == set(table)
        assert all(end in table[s] or s is end for s in table if s != PipelineState.FAILED)  # type: ignore[comparison-overlap, index]
        assert not table[end]  # type: ignore[index]


def test_a_pipeline_that_comes_is_alive() -> None:
    assert COMING < LIVE
    assert PipelineState.FAILED not in LIVE
