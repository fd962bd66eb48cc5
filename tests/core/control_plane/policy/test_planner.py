from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuntserve_core.config.loader import Config
from shuntserve_core.control_plane.policy import planner
from shuntserve_core.control_plane.policy.capacity import (
    FreeNode,
    Held,
    gpus_of,
    nodes_of,
    shape_of,
    without_gpus,
)
from shuntserve_core.control_plane.policy.spares import keep_shapes, replace_nodes, without_spares
from shuntserve_core.types import Pipeline
from tests.core.runtime.clusters import tiny_config

NODES = [FreeNode(f"big#{i}", "big", (0, 1)) for i in range(2)] + [
    FreeNode(f"small#{i}", "small", (0,)) for i in range(3)
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("planner"))


def check_fits(config: Config, pipelines: tuple[Pipeline, ...], free: list[FreeNode]) -> None:
    there = {(node.name, gpu) for node in free for gpu in node.gpus}
    used: list[tuple[str, int]] = []
    for pipeline in pipelines:
        assert sum(stage.layers for stage in pipeline.stages) == config.model.layers
        for stage in pipeline.stages:
            assert len(stage.gpus) == stage.tensor_parallel
            assert stage.node.rpartition("#")[0] == stage.instance
            used += [(stage.node, gpu) for gpu in stage.gpus]
    assert len(used) == len(set(used))
    assert set(used) <= there


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(NODES), unique=True))
def test_pipelines_use_only_what_is_free(config: Config, free: list[FreeNode]) -> None:
    check_fits(config, planner.place_on(config, free, {}), free)


def test_nothing_free_gives_no_pipeline(config: Config) -> None:
    assert planner.place_on(config, [], {}) == ()


def test_nodes_that_hold_the_layers_are_chosen(config: Config) -> None:
    free = [FreeNode("big#0", "big", (0, 1)), FreeNode("big#1", "big", (0, 1))]
    (first, *_) = planner.place_on(config, free, {})
    node, layers = first.stages[0].node, first.layer_ranges[0]
    degree = first.stages[0].tensor_parallel
    other = next(n.name for n in free if n.name != node)
    holdings = {(other, gpu): Held(degree, gpu, layers) for gpu in range(degree)}
    moved = planner.place_on(config, free, holdings)
    assert moved[0].stages[0].node == other


def test_layers_cut_otherwise_are_no_help(config: Config) -> None:
    """Of a node that holds all layers in parts of another size, nothing can be used."""
    free = [FreeNode("big#0", "big", (0, 1)), FreeNode("big#1", "big", (0, 1))]
    (first, *_) = planner.place_on(config, free, {})
    node, layers = first.stages[0].node, first.layer_ranges[0]
    degree = first.stages[0].tensor_parallel
    other = next(n.name for n in free if n.name != node)
    cut = {(node, gpu): Held(degree + 1, gpu, layers) for gpu in range(2)}
    swapped = {(node, gpu): Held(degree, gpu + 1, layers) for gpu in range(2)}
    few = {(other, gpu): Held(degree, gpu, layers[:1]) for gpu in range(degree)}
    for useless in (cut, swapped):
        moved = planner.place_on(config, free, {**useless, **few})
        assert moved[0].stages[0].node == other


def test_a_lost_node_is_replaced_by_a_spare_of_its_type(config: Config) -> None:
    pipelines = planner.place_on(config, NODES[:3], {})
    pipeline = pipelines[0]
    gone = next(s.node for s in pipeline.stages)
    instance = gone.rpartition("#")[0]
    spare = FreeNode(f"{instance}#9", instance, (0, 1) if instance == "big" else (0,))
    new = replace_nodes(pipeline, {gone}, [spare])
    assert new is not None
    assert shape_of(new) == shape_of(pipeline)
    assert gone not in nodes_of(new)
    assert nodes_of(new) - {spare.name} == nodes_of(pipeline) - {gone}
    assert replace_nodes(pipeline, {gone}, []) is None


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sets(st.sampled_from([n.name for n in NODES]), min_size=1))
def test_replacements_avoid_what_is_gone(config: Config, gone: set[str]) -> None:
    running = planner.place_on(config, NODES[:4], {})
    leaving = [p for p in running if nodes_of(p) & gone]
    staying = [p for p in running if not nodes_of(p) & gone]
    used = {pair for p in staying for pair in gpus_of(p)}
    free = without_gpus([n for n in NODES if n.name not in gone], used)
    usable = {n.name for n in NODES} - gone
    kept = [p for p in keep_shapes(leaving, usable, free) if p is not None]
    check_fits(config, tuple(kept), free)
    assert not {node for p in kept for node in nodes_of(p)} & gone


def test_a_better_placement_leaves_equal_pipelines_alone(config: Config) -> None:
    running = {"p1": planner.place_on(config, NODES[2:], {})[0]}
    change = planner.improvement(config, running, NODES, {}, 1.1)
    assert change is not None
    kept = [p for name, p in running.items() if name not in change.end]
    check_fits(config, (*change.start, *kept), NODES)
    total = sum(p.estimate.throughput_rps for p in (*change.start, *kept))
    assert total > running["p1"].estimate.throughput_rps


def test_the_best_placement_is_not_changed(config: Config) -> None:
    best = planner.place_on(config, NODES, {})
    running = {f"p{i}": p for i, p in enumerate(best)}
    change = planner.improvement(config, running, NODES, {}, 1.1)
    assert change is None or not change.end


def fewest_small(config: Config) -> list[FreeNode]:
    """As many small nodes as a pipeline needs."""
    return next(some for n in (1, 2, 3) if planner.place_on(config, some := NODES[2 : 2 + n], {}))


def test_a_spare_is_kept_while_something_runs(config: Config) -> None:
    nodes = fewest_small(config)
    (pipeline,) = planner.place_on(config, nodes, {})
    idle = next(node for node in NODES[2:] if node not in nodes)
    busy = nodes_of(pipeline)
    assert without_spares([idle, *nodes], busy, {"small": 1}) == nodes
    assert planner.better_placement(config, {"p": pipeline}, [idle, *nodes], busy, {}) is None


def test_while_nothing_runs_nothing_is_spare(config: Config) -> None:
    assert config.document.serve.spares == {"small": 1}
    nodes = fewest_small(config)
    change = planner.better_placement(config, {}, nodes, set(), {})
    assert change is not None
    check_fits(config, change.start, nodes)
