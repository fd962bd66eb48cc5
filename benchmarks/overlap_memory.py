"""What the overlap of two engines costs a node that stays: memory, and weights read.

    python benchmarks/overlap_memory.py [examples/quickstart.toml] [--json]

Serves the file, gives notice to one node of a pipeline on several, and watches another one of its
nodes until the successor serves.  Memory is the proportional set size of all processes of the node,
so that what two of them share counts once; the growth is the most that was seen above what was
there before the notice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from attrs import asdict

from shuntserve_core.testing.chaos.__main__ import own_config
from shuntserve_core.testing.chaos.cluster import Resources, Served, resources, serving
from shuntserve_core.testing.chaos.disturbances import settled

DEADLINE = 600.0


def taken(served: Served, node: str) -> dict[str, Resources]:
    """By kind of process, on one node."""
    agent = psutil.Process(served.agent_pid(node))
    return resources([agent, *agent.children(recursive=True)])


def total(parts: dict[str, Resources]) -> int:
    return sum(part.memory_bytes for part in parts.values())


def of(status: dict[str, Any], node: str) -> int:
    return int(next(n for n in status["nodes"] if n["name"] == node)["weights_read_bytes"])


async def measure(served: Served) -> dict[str, Any]:
    await settled(served, 300.0)
    status = await served.status()
    run = next(r for r in status["pipelines"] if len({s["node"] for s in r["stages"]}) > 1)
    leaves, stays = run["stages"][-1]["node"], run["stages"][0]["node"]
    before, weights = taken(served, stays), of(status, stays)
    await served.tell(leaves, "notice", DEADLINE)
    most, began = before, time.time()
    while time.time() - began < DEADLINE:
        now = taken(served, stays)
        most = max(most, now, key=total)
        status = await served.status()
        if any(line["what"] == "pipeline ended" for line in status["history"]):
            break
        await asyncio.sleep(0.05)
    growth = total(most) - total(before)
    return {
        "node": stays,
        "weights_bytes": weights,
        "weights_read_in_overlap_bytes": of(status, stays) - weights,
        "before": {kind: asdict(part) for kind, part in before.items()},
        "most": {kind: asdict(part) for kind, part in most.items()},
        "growth_bytes": growth,
        "growth_of_weights": growth / weights,
        "seconds": time.time() - began,
    }


async def run(config: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="overlap-") as scratch:
        directory = Path(scratch)
        own = own_config(config, directory)
        async with serving(own, directory / "state", directory / "serve.log") as served:
            return await measure(served)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).parent.parent / "examples/quickstart.toml"
    parser.add_argument("config", type=Path, nargs="?", default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = asyncio.run(run(options.config))
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{report['node']} holds {report['weights_bytes'] / 1e6:.0f} MB of weights")
    for kind, after in report["most"].items():
        was = report["before"].get(kind, {"memory_bytes": 0, "processes": 0})
        print(
            f"  {kind:8} {was['processes']} -> {after['processes']} processes, "
            f"{was['memory_bytes'] / 1e6:.1f} -> {after['memory_bytes'] / 1e6:.1f} MB"
        )
    print(
        f"grew by {report['growth_bytes'] / 1e6:.1f} MB, {report['growth_of_weights']:.1%} of the "
        f"weights; read {report['weights_read_in_overlap_bytes']:,} bytes in the overlap"
    )


if __name__ == "__main__":
    main()
