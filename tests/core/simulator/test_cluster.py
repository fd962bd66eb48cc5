"""Interruptions: who serves when, what it costs, and that no request is forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuntserve_core.config import Config, load_config
from shuntserve_core.errors import UserError
from shuntserve_core.simulator.placing import place, spares_of
from shuntserve_core.simulator.recovery import Recovery
from shuntserve_core.simulator.result import Result
from shuntserve_core.simulator.run import Setting, simulate
from shuntserve_core.traces.events import TraceEvent
from shuntserve_core.traces.workload import Requests
from shuntserve_core.types import Placement
from tests.core.simulator.configs import write

QUICK = Recovery(boot_seconds=5.0, start_seconds=4.0, weight_bandwidth=1e8, switch_seconds=0.5)
STRATEGIES = ("shuntserve", "concurrent-init", "migration", "none")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(write(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def placement(config: Config) -> Placement:
    return place(config)


def requests(count: int = 1200, rate: float = 20.0, answer: int = 400) -> Requests:
    return Requests.of(np.arange(count) / rate, np.full(count, 150), np.full(count, answer))


def run(
    config: Config,
    placement: Placement,
    events: list[TraceEvent],
    strategy: str = "shuntserve",
    wanted: Requests | None = None,
) -> Result:
    setting = Setting(
        recovery=evolve(QUICK, strategy=strategy),
        events=tuple(events),
        spares=spares_of(config, placement),
    )
    return simulate(config, placement, wanted or requests(), setting)


NOTICE = [TraceEvent(5.0, "one#0", "notice", 30.0)]


def notes(result: Result, what: str) -> list[float]:
    return [note.at for note in result.notes if note.what == what]


def test_nodes_are_paid_by_the_second(config: Config, placement: Placement) -> None:
    result = run(config, placement, [])
    assert result.cost == pytest.approx(4 * 0.5 / 3600 * result.seconds)
    assert result.summary()["finished"] == 1200


def test_on_demand_pays_more_and_is_not_interrupted(config: Config, placement: Placement) -> None:
    result = run(config, placement, NOTICE, "on-demand")
    assert result.cost == pytest.approx(4 * 2.0 / 3600 * result.seconds)
    assert notes(result, "interruption notice") == []


def test_a_node_that_goes_is_paid_until_its_deadline(config: Config, placement: Placement) -> None:
    result = run(config, placement, NOTICE)
    assert result.seconds > 35.0
    assert result.cost == pytest.approx((3 * result.seconds + 35.0) * 0.5 / 3600)


def test_the_replacement_starts_beside_the_old_pipeline(
    config: Config, placement: Placement
) -> None:
    result = run(config, placement, NOTICE)
    old, new = result.pipelines[0], result.pipelines[3]
    [loading] = [note.facts["seconds"] for note in result.notes if note.what == "weights"]
    nbytes = 8 * config.model.layer_bytes + 2 * 32000 * 1024 * 2
    assert loading == pytest.approx(nbytes / 1e8)
    assert new["from"] == pytest.approx(5.0 + loading + 4.0 + 0.5)
    # The spare's GPU is its own, so the old one need not stop before.
    assert old["to"] == new["from"]
    assert result.counters["migrations"] > 0


def test_without_concurrent_initialization_nobody_serves_meanwhile(
    config: Config, placement: Placement
) -> None:
    result = run(config, placement, NOTICE, "migration")
    old, new = result.pipelines[0], result.pipelines[3]
    assert old["to"] == pytest.approx(35.0 - config.document.serve.switch_margin)
    assert new["from"] > old["to"] + 4.0


def test_a_node_without_notice(config: Config, placement: Placement) -> None:
    result = run(config, placement, [TraceEvent(5.0, "one#1", "lost")])
    ended = notes(result, "pipeline ended")
    assert ended[0] == pytest.approx(5.0 + QUICK.detection_seconds)
    assert result.summary()["finished"] == 1200


def test_a_withdrawn_notice_keeps_the_node(config: Config, placement: Placement) -> None:
    events = [*NOTICE, TraceEvent(6.0, "one#0", "withdrawn")]
    result = run(config, placement, events)
    assert result.cost == pytest.approx(4 * 0.5 / 3600 * result.seconds)


def test_nothing_left_and_nothing_comes_back(config: Config, placement: Placement) -> None:
    result = run(config, placement, [TraceEvent(5.0, "one", "lost")])
    assert 0 < result.summary()["finished"] < 1200
    assert result.seconds == pytest.approx(59.95)  # the last arrival


def test_all_lost_and_one_comes_back(config: Config, placement: Placement) -> None:
    events = [TraceEvent(5.0, "one", "lost"), TraceEvent(60.0, "one#2", "restored")]
    result = run(config, placement, events)
    assert result.summary()["finished"] == 1200
    assert min(p["from"] for p in result.pipelines[3:]) > 65.0


def test_what_is_kept_costs_less_time(config: Config, placement: Placement) -> None:
    """All at once, so that what is computed again, and nobody serving, are time lost."""
    events = [TraceEvent(6.0, "one#0", "notice", 12.0)]
    wanted = requests(1500, 1e9, 600)
    ends = {s: run(config, placement, events, s, wanted).seconds for s in STRATEGIES}
    assert sorted(ends, key=ends.__getitem__) == list(STRATEGIES)


def test_twice_the_same(config: Config, placement: Placement) -> None:
    first, second = (run(config, placement, NOTICE, "none") for _ in range(2))
    assert first.record.end == second.record.end
    assert first.notes == second.notes


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    events=st.lists(
        st.builds(
            TraceEvent,
            at=st.floats(0, 40),
            node=st.sampled_from([f"one#{i}" for i in range(5)] + ["one"]),
            kind=st.sampled_from(["notice", "rebalance", "withdrawn", "lost", "restored"]),
            notice=st.sampled_from([None, 0.0, 3.0, 30.0]),
        ),
        max_size=10,
    ),
    strategy=st.sampled_from(STRATEGIES),
)
def test_any_events_in_any_order(
    config: Config, placement: Placement, events: list[TraceEvent], strategy: str
) -> None:
    """Once nodes come back, every request ends, once, after its first token."""
    back = [TraceEvent(1000.0, f"one#{i}", "restored") for i in range(4)]
    result = run(config, placement, [*events, *back], strategy, requests(60, 5.0, 100))
    record = result.record
    assert result.summary()["finished"] == 60
    assert all(first <= end for first, end in zip(record.first, record.end, strict=True))
    assert result.cost > 0


def test_a_request_that_fits_nowhere_is_refused(config: Config, placement: Placement) -> None:
    small = evolve(
        placement,
        pipelines=tuple(
            evolve(p, estimate=evolve(p.estimate, kv_blocks=10)) for p in placement.pipelines
        ),
    )
    with pytest.raises(UserError, match="fits no pipeline"):
        simulate(config, small, requests(), Setting())


def test_without_other_shapes_each_pipeline_waits_for_its_own_nodes(
    config: Config, placement: Placement
) -> None:
    """One spare for two: the first goes on there, the second when a node comes back."""
    events = [TraceEvent(5.0, f"one#{i}", "notice", 10.0) for i in range(2)]
    events.append(TraceEvent(30.0, "one#0", "restored"))
    setting = Setting(recovery=evolve(QUICK, replan=False), events=tuple(events), spares=("one#3",))
    result = simulate(config, placement, requests(), setting)
    assert [p["nodes"] for p in result.pipelines[3:]] == [["one#3"], ["one#0"]]
    assert result.pipelines[4]["from"] > 35.0
    assert result.summary()["finished"] == 1200
