"""What programs and notebooks use: `import shuntserve_core as ss`, and six names.

```python
import shuntserve_core as ss

config = ss.load_config("cluster.toml")
placement = ss.plan(config)
print(placement.throughput_rps, placement.cost_per_hour)
result = ss.simulate(config, "requests.csv", events="interruptions.csv")
with ss.serve(config) as cluster:
    print(cluster.url)
```

Every mistake of a user's is a `shuntserve_core.errors.UserError`: what, where, and the remedy.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shuntserve_core.config import Config, load_config, optimizer_from, problem_from
from shuntserve_core.registry import Registry
from shuntserve_core.types import Placement

if TYPE_CHECKING:
    from shuntserve_core.runtime.serve import Report
    from shuntserve_core.simulator.result import Result
    from shuntserve_core.traces.workload import Requests

__all__ = ["Registry", "estimate", "load_config", "plan", "serve", "simulate"]


def plan(
    config: Config, *, optimizer: str | None = None, estimator: str | None = None, **search: Any
) -> Placement:
    """Choose pipelines for the model and the cluster of a configuration.

    `optimizer` and `estimator` are names of plugins that replace the file's; `search` are fields of
    `shuntserve_core.interfaces.optimizer.Problem` that do: `objective`, `whole_instances`,
    `time_limit` (seconds), `seed`.  Raises `UserError` where no pipeline can be made.
    """
    problem = problem_from(config, estimator, **search)
    return optimizer_from(config, optimizer).place(problem)


def estimate(config: Config, *pipelines: str, estimator: str | None = None) -> Placement:
    """Predict pipelines of your own making, each as `"g6.12xlarge:40,g5.12xlarge/2:40"`.

    Stages in order, each an instance type, the GPUs that it uses of it (by default all) and its
    layers.  The instances need not be in the cluster.  Raises `UserError`.
    """
    from shuntserve_core.planning.written import estimate_pipelines, parse_pipeline

    chosen = [parse_pipeline(text, config) for text in pipelines]
    return estimate_pipelines(config, chosen, estimator)


def simulate(
    config: Config,
    requests: Requests | str | Path,
    *,
    placement: Placement | None = None,
    events: str | Path | None = None,
    strategy: str | None = None,
    profile: str = "vllm",
    seconds: float = math.inf,
) -> Result:
    """Replay requests, and interruptions, in virtual time and without a GPU.

    `requests` are a trace's file in any form that `shuntserve simulate --workload` reads, or made
    by `shuntserve_core.traces`; `placement` is searched unless given; `events` are a file of
    interruptions; `profile` says how the engine makes steps; it ends after `seconds` of virtual
    time at the latest.  Raises `UserError` for what cannot be simulated.
    """
    from shuntserve_core.simulator.files import read_profile
    from shuntserve_core.simulator.placing import place, spares_of
    from shuntserve_core.simulator.recovery import Recovery
    from shuntserve_core.simulator.run import Setting
    from shuntserve_core.simulator.run import simulate as run
    from shuntserve_core.traces.readers import read_requests
    from shuntserve_core.traces.spot import read_any_events

    if isinstance(requests, str | Path):
        requests = read_requests(Path(requests))
        longest = config.document.workload.trace_max_tokens
        requests = requests if longest is None else requests.at_most(longest)
    placement = placement or place(config)
    setting = Setting(
        profile=read_profile(profile),
        recovery=Recovery(strategy=strategy or config.document.serve.strategy),
        events=() if events is None else read_any_events(Path(events), config.cluster),
        spares=spares_of(config, placement),
        duration=seconds,
    )
    return run(config, placement, requests, setting)


@contextmanager
def serve(config: Config) -> Iterator[Report]:
    """Run the cluster, in a thread of its own, for as long as the block takes.

    Gives its addresses and placement once it has come up (`Report.waits_for` is empty where it
    serves).  Leaving the block finishes requests under way, within `serve.drain_seconds`, and ends
    every process.  Raises `UserError` where it cannot come up.
    """
    from shuntserve_core.runtime.serve import run_in_loop
    from shuntserve_core.runtime.serve import serve as run

    loop: Future[asyncio.AbstractEventLoop] = Future()
    report: Future[Report] = Future()
    stop = asyncio.Event()

    async def main() -> None:
        loop.set_result(asyncio.get_running_loop())
        await run(config, report.set_result, stop=stop)

    with ThreadPoolExecutor(1, "shuntserve") as pool:
        ended = pool.submit(run_in_loop, main())
        try:
            either: tuple[Future[Any], ...] = (report, ended)
            wait(either, return_when=FIRST_COMPLETED)
            if not ended.done():
                yield report.result()
        finally:
            with suppress(RuntimeError):  # its loop is closed: it has ended already
                loop.result().call_soon_threadsafe(stop.set)
            ended.result()
