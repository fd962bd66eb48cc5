"""Node agents on the machines of a Ray cluster.

Ray says which machines are there, and ends an agent with its machine's Ray.  A machine joins with
`ray start`, and says what it is by a custom resource named like its instance type; see
docs/how-to/many-machines.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from attrs import define, field

from shuntserve_core.errors import UserError
from shuntserve_core.files import file_name, open_log, private_dir, write_private
from shuntserve_core.interfaces.launcher import AgentAddress, NodeSpec
from shuntserve_core.node.logs import quoted
from shuntserve_core.node.processes import die_with_parent
from shuntserve_core.node.starting import AgentOptions
from shuntserve_core.runtime.places import default_state_root
from shuntserve_core.surfaces import AGENTS, ENGINES, RANKS, RAY, STORES

_NAMESPACE = "shuntserve"
_END_SECONDS = 10.0


@define
class RayLauncher:
    """One agent a machine, in a detached actor that outlives the control plane."""

    address: str = "auto"
    """Of the Ray cluster, `HOST:PORT`; `auto` is the one that this machine has joined."""
    device: str = "cuda"
    """`cpu`, or `cuda` to give each node its machine's GPUs."""
    join_seconds: float = 60.0
    """Seconds that a machine with a node's instance type may take to appear."""
    orphan_seconds: float = 600.0
    """Seconds after which an agent without a control plane ends."""

    _state_dir: Path = field(init=False, factory=Path)

    async def open(self, state_dir: Path) -> None:
        """Join the cluster.  Raises `UserError` where there is none."""
        import ray

        self._state_dir = state_dir
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        try:
            await asyncio.to_thread(
                ray.init,
                address=self.address,
                namespace=_NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster answers at {self.address}: {error}",
                where="launcher",
                remedy="start one with `ray start --head`, with the same token",
            ) from error

    async def launch(self, node: NodeSpec) -> AgentAddress:
        """Start an agent on a machine of the node's instance type that has none yet."""
        import ray

        token = secrets.token_urlsafe(32)
        await self.terminate(node.name)
        actor = ray.remote(_Host).options(
            name=_actor_name(node.name),
            lifetime="detached",
            num_cpus=0,
            resources={node.instance: 1},
        )
        handle = actor.remote()
        options = (node.name, node.gpus, token, self.device, self.orphan_seconds)
        start = handle.start.remote(*options, self._state_dir.name)
        try:
            url, host, said = await asyncio.wait_for(start, self.join_seconds)
        except (TimeoutError, ray.exceptions.RayError) as error:
            ray.kill(handle)
            raise UserError(
                f"no machine took {node.name}: {type(error).__name__}",
                where="launcher",
                remedy=f"""have one join with --resources='{{"{node.instance}": 1}}'""",
            ) from error
        if not url:
            ray.kill(handle)
            raise UserError(
                f"the agent of {node.name} did not start on {host}", remedy=f"see there {said}"
            )
        address = {"url": url, "token": token, "host": host}
        write_private(self._file(node.name), json.dumps(address))
        return AgentAddress(node.name, url, token, host)

    async def adopt(self) -> list[AgentAddress]:
        """Agents whose actors an earlier control plane left alive."""
        import ray

        alive = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
        found = []
        for path in sorted(self._state_dir.glob("nodes/*.json")):
            name, address = unquote(path.stem), json.loads(path.read_text())
            if _actor_name(name) in alive:
                found.append(AgentAddress(name, address["url"], address["token"], address["host"]))
        return found

    async def terminate(self, node: str) -> None:
        """Kill the actor; the kernel ends the agent and everything that it started.

        Ray forgets an actor before its process has ended: what counts is that nothing listens.
        """
        import ray

        try:
            handle = ray.get_actor(_actor_name(node), namespace=_NAMESPACE)
        except ValueError:
            return
        ray.kill(handle)
        for _ in range(int(_END_SECONDS / 0.05)):
            try:
                ray.get_actor(_actor_name(node), namespace=_NAMESPACE)
            except ValueError:
                if not await _listens(self._file(node)):
                    break
            await asyncio.sleep(0.05)
        self._file(node).unlink(missing_ok=True)

    def security_posture(self) -> list[str]:
        """What listens on every machine."""
        own = "each machine's own address; use a private network"
        return [*(one.line(own) for one in (AGENTS, ENGINES, RANKS)), STORES.line(), RAY.line()]

    def _file(self, node: str) -> Path:
        return private_dir(self._state_dir / "nodes") / f"{file_name(node)}.json"


async def _listens(file: Path) -> bool:
    """Whether anything does where that file says that an agent is."""
    try:
        parts = urlsplit(json.loads(file.read_text())["url"])
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except (OSError, ValueError, KeyError, TimeoutError):
        return False
    writer.close()
    return True


def _actor_name(node: str) -> str:
    return f"agent {node}"


class _Host:
    """The actor: starts an agent on its machine, which dies with it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(
        self,
        name: str,
        gpus: int,
        token: str,
        device: str,
        orphan_seconds: float,
        cluster: str,
    ) -> tuple[str, str, str]:
        """URL and address of the agent; without a URL, its log, and what that says last."""
        import ray

        host: str = ray.util.get_node_ip_address()
        short = re.sub(r"[^A-Za-z0-9._-]", "-", name)
        directory = Path(tempfile.mkdtemp(prefix=f"shuntserve-{short}-"))
        logs = _log_dir(cluster, name) or directory
        write_private(logs / "token", token)
        options = AgentOptions(
            name, gpus, token, logs, directory, host, device=device, orphan_seconds=orphan_seconds
        )
        with open_log(logs / "agent.log") as log:
            self._process = subprocess.Popen(
                options.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - Ray's node has no fence of its own
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:  # it has ended
            return "", host, quoted(logs / "agent.log")
        return str(json.loads(line)["url"]), host, ""


def _log_dir(cluster: str, node: str) -> Path | None:
    """Where the logs of a node stay on its machine; None where nothing can be kept there."""
    try:
        return private_dir(default_state_root() / cluster / "nodes" / file_name(node))
    except UserError:
        return None
