"""How long `exact` takes: default cluster, 15 types and 600 instances, 46 types and 1,200.

Each plan runs in a Python of its own, and wall and processor time of the whole process are printed.
Usage: python benchmarks/plan_time.py [--large]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

from attrs import evolve

from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.registry import Registry
from shuntserve_core.types import Cluster, ModelSpec, Objective, Offer, Workload

MODELS = {
    "llama-3.1-70b": ModelSpec("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256),
    "qwen3-32b": ModelSpec("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936, family="qwen3"),
}
DEFAULT = {"g5.12xlarge": 2, "g6.12xlarge": 3, "g6e.xlarge": 4}


def default_cluster() -> Cluster:
    catalog = Registry().instance_types
    return Cluster(
        tuple(Offer(catalog[n], c, catalog[n].spot_price or 0.0) for n, c in DEFAULT.items())
    )


def varied_cluster(types: int, instances: int) -> Cluster:
    """Real instance types, then variations of them: 8 % faster, 10 % larger and 5 % dearer."""
    catalog = list(Registry().instance_types.values())
    offers = []
    for number in range(types):
        round_, index = divmod(number, len(catalog))
        base = catalog[index]
        gpu = evolve(
            base.gpu,
            name=f"{base.gpu.name}-{round_}",
            flops={name: rate * (1 + 0.08 * round_) for name, rate in base.gpu.flops.items()},
            memory_bandwidth=base.gpu.memory_bandwidth * (1 + 0.08 * round_),
            memory_bytes=int(base.gpu.memory_bytes * (1 + 0.1 * round_)),
        )
        count = instances // types + (number < instances % types)
        instance = evolve(base, name=f"{base.name}-{round_}", gpu=gpu)
        offers.append(Offer(instance, count, base.price * (1 + 0.05 * round_)))
    return Cluster(tuple(offers))


def plan(case: str, model: str) -> None:
    """One plan, in a process of its own."""
    from shuntserve_plugins.estimators.paper import Paper
    from shuntserve_plugins.optimizers.exact import Exact

    kind, _, size = case.partition(":")
    if kind == "varied":
        types, instances = size.split("x")
        cluster = varied_cluster(int(types), int(instances))
    else:
        cluster = default_cluster()
    workload = Workload(763, 232, 8192)
    problem = Problem(
        cluster,
        Objective(),
        Paper().bind(MODELS[model], workload, cluster.catalog),
        "paper",
        whole_instances=kind == "whole",
    )
    placement = Exact().place(problem)
    bound = placement.bound_rps or 0.0
    gap = 1 - placement.throughput_rps / bound
    print(
        f"{placement.throughput_rps:10.4f} req/s, bound {bound:10.4f}, gap {gap:6.1%}, "
        f"{len(placement.pipelines):4d} pipelines, search {placement.seconds:6.2f} s",
        end="",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="also the two large clusters")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        plan(*arguments.one)
        return
    cases = ["whole", "split"]
    if arguments.large:
        cases += ["varied:15x600", "varied:46x1200"]
    spent = 0.0
    for case in cases:
        for model in MODELS:
            start = time.perf_counter()
            command = [sys.executable, __file__, "--one", case, model]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            wall = time.perf_counter() - start
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            before, spent = spent, usage.ru_utime + usage.ru_stime
            times = f"{wall:6.2f} s wall, {spent - before:6.2f} s processor"
            print(f"{case:16} {model:14} {times}  {done.stdout}")


if __name__ == "__main__":
    main()
