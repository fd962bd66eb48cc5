"""`[serve]`, `[weights]`, `[engine]`, `[frontdoor]`, `[balancer]`, `[launcher]`, `[[spot]]`: what
`shuntserve serve` needs beyond a placement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, optional

from shuntserve_core.config.fields import Name
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.errors import did_you_mean
from shuntserve_core.types import Cluster

STRATEGIES = ("shuntserve", "migration", "concurrent-init", "none")
_SECONDS = [ge(0.0), le(1e6)]


@frozen
class ServeTable:
    """How the cluster is run, and how it answers interruptions."""

    model_dir: str | None = None
    """Directory with the model's `config.json` and tokenizer, relative to this file; by default
    the one that `[model] path` names."""
    model_name: str | None = None
    """What clients call the model; by default its name in `[model]`."""
    state_dir: str | None = None
    """Where addresses, logs and secrets of this cluster are kept, relative to this file; by
    default a directory of the user's own, by the name of this file."""
    spares: Mapping[str, int] = field(factory=dict)
    """Instances to keep ready beside the pipelines, by instance type: `{ "g6e.xlarge" = 1 }`."""
    strategy: str = field(default="shuntserve", validator=in_(STRATEGIES))
    """What happens at an interruption.  `shuntserve`: the next engine starts beside the old one,
    and requests move with their tokens; `concurrent-init`: only the former; `migration`: only the
    latter; `none`: stop, wait, start anew."""
    switch_margin: float = field(default=2.0, validator=_SECONDS)
    """Seconds before a deadline at which requests leave a node, ready or not."""
    improve: float = field(default=1.1, validator=[ge(1.0), le(100.0)])
    """A new placement is taken, when capacity comes back, if it has so many times the
    throughput."""
    max_batch: int | None = field(default=None, validator=optional([ge(1), le(100_000)]))
    """Most requests that a pipeline runs at once; by default what the estimate says."""
    max_length: int | None = field(default=None, validator=optional([ge(1), le(10_000_000)]))
    """Longest prompt and answer together, tokens; by default `workload.max_length`."""
    kv_bytes: int | None = field(default=None, validator=optional([ge(1), le(10**15)]))
    """KV memory of each GPU, bytes; by default what the estimate's batch needs."""
    queue: int = field(default=1024, validator=[ge(0), le(10**7)])
    """Requests of one key (without keys: of one client address) that may wait when all pipelines
    are full or gone."""
    queue_seconds: float = field(default=60.0, validator=_SECONDS)
    """Seconds that a request may wait before it fails with 503."""
    drain_seconds: float = field(default=30.0, validator=_SECONDS)
    """Seconds that requests under way have to finish after SIGTERM or SIGINT; what is left then
    ends with an error.  A second signal ends everything at once."""


def check_spares(table: ServeTable, cluster: Cluster, mistakes: Mistakes) -> None:
    """Note every spare that the cluster has not got."""
    counts = cluster.counts
    for name, count in table.spares.items():
        key = f"serve.spares.{name}"
        if name not in counts:
            mistakes.add(key, f'"{name}" is not in the cluster', did_you_mean(name, counts))
        elif not 0 <= count <= counts[name]:
            remedy = f"give 0 to {counts[name]}, or raise the count in [[cluster]]"
            mistakes.add(key, f"{count} of {name} cannot be kept: there are {counts[name]}", remedy)
    if any(counts.values()) and all(table.spares.get(n, 0) == c for n, c in counts.items()):
        mistakes.add("serve.spares", "nothing is left to serve on", "keep fewer instances")


@frozen
class WeightsTable:
    """Where the pre-cut weights are."""

    store: str
    """URL of the weight store: `s3://bucket/prefix`, `file:///path`, or a path relative to this
    file."""
    model: str
    """`BASE/MODEL`: what the model is called in the store."""


@frozen
class EngineTable:
    """What runs the pipelines."""

    name: Annotated[str, Name("engine")] = "vllm"
    """Which one, of those that `shuntserve plugins` shows."""
    options: Mapping[str, Any] = field(factory=dict)
    """Every other key is an option of that engine."""


@frozen
class FrontDoorTable:
    """What clients talk to."""

    name: Annotated[str, Name("frontdoor")] = "openai"
    """Which one, of those that `shuntserve plugins` shows."""
    options: Mapping[str, Any] = field(factory=dict)
    """Every other key is an option of that front door."""


@frozen
class BalancerTable:
    """What chooses the pipeline for a request."""

    name: Annotated[str, Name("balancer")] = "weighted-round-robin"
    """Which one, of those that `shuntserve plugins` shows."""
    options: Mapping[str, Any] = field(factory=dict)
    """Every other key is an option of that balancer."""


@frozen
class LauncherTable:
    """How node agents come to be."""

    name: Annotated[str, Name("launcher")] = "local"
    """Which one, of those that `shuntserve plugins` shows."""
    options: Mapping[str, Any] = field(factory=dict)
    """Every other key is an option of that launcher."""


@frozen
class SpotTable:
    """A source of interruption notices."""

    name: Annotated[str, Name("spot-source")]
    """Which one, of those that `shuntserve plugins` shows."""
    default_notice: float = field(default=120.0, validator=[gt(0.0), le(1e6)])
    """Seconds that a notice without a deadline is taken to leave."""
    options: Mapping[str, Any] = field(factory=dict)
    """Every other key is an option of that source."""
