"""Two raylets on this machine, and what the launcher makes of them, as one line of JSON.

A process of its own: Ray leaves threads and sockets behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

TOKEN = "a-token-for-tests-of-forty-characters-00"
GONE_SECONDS = 60.0


async def _contract(address: str, state_dir: Path) -> list[str]:
    """Run every test of the contract that plugin authors are given; names of those that passed."""
    import ray

    from shuntserve_core.interfaces.launcher import Launcher, NodeSpec
    from shuntserve_core.testing.launchers import LauncherContract
    from shuntserve_plugins.launchers.ray import RayLauncher

    class Contract(LauncherContract):
        def make_launcher(self) -> Launcher:
            return RayLauncher(address=address, device="cpu", join_seconds=90.0)

        def nodes(self) -> tuple[NodeSpec, NodeSpec]:
            return NodeSpec("solo#0", "solo", 1), NodeSpec("trio#0", "trio", 3)

        async def opened(self, state_dir: Path) -> Launcher:
            ray.shutdown()  # a control plane is a process, and joins once
            return await super().opened(state_dir)

    tests = Contract()
    passed = []
    for name in dir(tests):
        if name.startswith("test_"):
            folder = state_dir / name
            folder.mkdir(parents=True)
            await getattr(tests, name)(folder)
            passed.append(name)
    ray.shutdown()
    return passed


async def main(state_dir: Path) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    from shuntserve_core.errors import UserError
    from shuntserve_core.interfaces.launcher import NodeSpec
    from shuntserve_core.runtime.places import default_state_root
    from shuntserve_plugins.launchers.ray import RayLauncher

    head = {"num_cpus": 1, "resources": {"solo": 1}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    machine = cluster.add_node(num_cpus=1, resources={"trio": 1})
    facts: dict[str, Any] = {}
    try:
        facts["contract"] = await _contract(cluster.address, state_dir / "contract")
        launcher = RayLauncher(address=cluster.address, device="cpu", join_seconds=90.0)
        await launcher.open(state_dir)
        trio = await launcher.launch(NodeSpec("trio#0", "trio", 3))
        await launcher.launch(NodeSpec("solo#0", "solo", 1))
        headers = {"Authorization": f"Bearer {trio.token}"}
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{trio.url}/v1/node", headers=headers) as answer:
                described = await answer.json()
            async with session.get(f"{trio.url}/v1/node") as answer:
                facts["without the secret"] = answer.status
        facts["gpus"] = described["gpus"]
        facts["logs stay"] = (default_state_root() / "state" / "nodes" / "trio#0").is_dir()
        facts["agent that ends"] = await _refusal(cluster, launcher)
        facts["adopted"] = [address.node for address in await launcher.adopt()]
        await launcher.terminate("solo#0")
        facts["after terminate"] = [address.node for address in await launcher.adopt()]
        launcher.join_seconds = 3.0
        try:
            await launcher.launch(NodeSpec("huge#0", "huge", 8))
        except UserError as error:
            facts["no such machine"] = str(error)
        cluster.remove_node(machine, allow_graceful=False)
        facts["agent dies with its machine"] = _gone(described["pid"])
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()
    return facts


async def _refusal(cluster: Any, launcher: Any) -> str:
    """What is said of an agent that ends at once: here for want of a number."""
    from shuntserve_core.errors import UserError
    from shuntserve_core.interfaces.launcher import NodeSpec

    machine = cluster.add_node(num_cpus=1, resources={"odd": 1})
    many: Any = "many"
    try:
        await launcher.launch(NodeSpec("odd#0", "odd", many))
    except UserError as error:
        return str(error)
    finally:
        cluster.remove_node(machine, allow_graceful=False)
    return ""


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


if __name__ == "__main__":
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, RAY_USAGE_STATS_ENABLED="0")
    print("FACTS " + json.dumps(asyncio.run(main(Path(sys.argv[1])))))  # noqa: T201
