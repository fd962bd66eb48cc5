"""How long simulations take, how that grows, and how close they come to what was measured.

    python benchmarks/simulator_speed.py [--million] [--plot FILE.png]

All on one core; CPU seconds, as the machine may be busy with other work.  Requests are those of the
Azure conversation trace with at most 2,048 tokens each way, over ShuntServe's published pipelines.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from attrs import evolve

from shuntserve_core.config import load_config
from shuntserve_core.planning.written import estimate_pipelines, parse_pipeline
from shuntserve_core.simulator.profile import VLLM, VLLM_0_8_1
from shuntserve_core.simulator.result import Result
from shuntserve_core.simulator.run import Setting, simulate
from shuntserve_core.studies.study import read_study
from shuntserve_core.traces.readers import read_requests
from shuntserve_core.traces.workload import Requests
from shuntserve_core.types import Placement

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIG = load_config(EXAMPLES / "paper-llama-3.1-70b.toml")
STUDY = read_study(EXAMPLES / "studies" / "paper.toml")
PIPELINES = {table.name: table.pipelines for table in STUDY.placement if table.pipelines}
MEASURED = {"ShuntServe": 1.529, "even split": 1.072}


def placement(name: str) -> Placement:
    return estimate_pipelines(
        CONFIG, [parse_pipeline(text, CONFIG) for text in PIPELINES[name]], "paper"
    )


def timed(place: Placement, requests: Requests, setting: Setting) -> tuple[Result, float]:
    began = time.process_time()
    result = simulate(CONFIG, place, requests, setting)
    return result, time.process_time() - began


def repeated(place: Placement, times: int) -> Placement:
    """So many times as many pipelines."""
    return evolve(place, pipelines=place.pipelines * times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    trace = read_requests(EXAMPLES / "traces" / "azure-conversation-2023.csv")
    print(f"{len(trace):,} requests, {trace.answer.sum():,} answer tokens")
    for name, measured in MEASURED.items():
        setting = Setting(profile=VLLM_0_8_1)
        result, _ = timed(placement(name), trace.between(0, 300).scaled(0), setting)
        rate = result.summary()["requests_per_second"]
        print(f"{name}: {rate:.3f} requests/s, measured {measured} ({rate / measured - 1:+.1%})")
    own = placement("ShuntServe")
    for profile in (VLLM_0_8_1, VLLM):
        for scale in (0.0, 1.0, 6.0):
            result, seconds = timed(own, trace.scaled(scale), Setting(profile=profile))
            told = f"{profile.name}, arrivals x {scale:g}: {seconds:6.2f} s"
            print(f"{told}, {result.seconds:,.0f} simulated")
    by_requests = _grow(own, trace, (1_000, 4_000, 16_000, 64_000, 256_000))
    by_pipelines = [
        (2 * n, timed(repeated(own, n), trace.scaled(0.0), Setting())[1]) for n in (1, 2, 4, 8, 16)
    ]
    print("pipelines:", ", ".join(f"{n}: {s:.2f} s" for n, s in by_pipelines))
    if options.million:
        by_requests += _grow(own, trace, (1_000_000,))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"peak memory {peak:.2f} GiB")
    if options.plot:
        _plot(by_requests, by_pipelines, options.plot)


def _grow(own: Placement, trace: Requests, counts: tuple[int, ...]) -> list[tuple[int, float]]:
    """Requests at six times the trace's distance: the pipelines are neither idle nor overrun."""
    rows = []
    for count in counts:
        _, seconds = timed(own, trace.repeated(count).scaled(6.0), Setting())
        rows.append((count, seconds))
        print(f"{count:,} requests: {seconds:.1f} s, {1e6 * seconds / count:.0f} us each")
    return rows


def _plot(
    by_requests: list[tuple[int, float]], by_pipelines: list[tuple[int, float]], file: Path
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, rows, label in zip(
        axes, (by_requests, by_pipelines), ("requests", "pipelines"), strict=True
    ):
        axis.loglog(*zip(*rows, strict=True), "o-", color="#2f6db0")
        axis.set_xlabel(label)
        axis.set_ylabel("CPU seconds")
        axis.grid(True, which="both", color="#e6e9ec")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
