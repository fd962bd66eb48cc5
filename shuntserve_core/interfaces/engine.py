"""What runs a pipeline.

An engine plugin says which processes a pipeline needs; node agents start them.  Rank 0 of stage 0
opens a link (`shuntserve_core.link.server`) that takes `EngineRequest`s and yields `StepOutput`s,
one frame a step.  Nothing else is known of an engine: the same manager, dispatcher and tensor
stores serve all.

Every worker process reports on its standard output, one JSON object a line:

* `{"event": "listening", "address": "host:port"}` once its link is open (rank 0 only);
* `{"event": "ready"}` when it has its weights and could serve if it owned KV memory; with
  `"weights": {"lent": bytes, "copied": bytes}`, how much of them is the tensor store's own memory,
  and `"working_bytes"`, what it measured that it takes while it computes, where it did;
* `{"event": "active", "waited": seconds, "mapped": seconds}` once all its ranks own KV memory
  (rank 0 only, optional): how long the last of them waited for it, and took to put it in its place;
* `{"event": "failed", "reason": "..."}` when it ends because of something that a person can change.

It ends on SIGTERM, and when its standard input closes (its agent has died).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from attrs import field, frozen

from shuntserve_core.interfaces import optional
from shuntserve_core.tensorstore.spec import ShardSpec
from shuntserve_core.types.engine import EngineFacts
from shuntserve_core.types.model import ModelSpec


@frozen
class RankLaunch:
    """One GPU's part of a stage."""

    node: str
    host: str
    """Address that the other ranks reach this node by."""
    gpu: int
    """Index of the GPU on its node."""
    stage: int
    tp_rank: int
    store_socket: str
    """Unix socket of the tensor store that owns this GPU's memory; empty if none is needed."""
    device: str = "cpu"
    """Where that memory is, and where to compute, as PyTorch calls it: `cpu` or `cuda:N`."""


@frozen
class EngineLaunch:
    """Everything that the processes of one engine must know."""

    engine_id: str
    model: ModelSpec
    model_dir: str
    """Directory with `config.json` and the tokenizer, present on every node."""
    weights: str
    """URL of the weight store."""
    weights_model: str
    """`BASE/MODEL`: what the model is called in it."""
    layers: tuple[tuple[int, int], ...]
    """First layer and end of each stage."""
    tensor_parallel: tuple[int, ...]
    """Degree of each stage."""
    ranks: tuple[RankLaunch, ...]
    """Stage by stage, and within a stage by rank; global rank is the index."""
    rendezvous: str
    """`host:port` free on rank 0's node, for the ranks to find each other."""
    link_token: str
    """Secret that whoever opens the link must present."""
    max_batch: int
    max_length: int
    kv_bytes: int
    """KV memory in bytes that each rank of the stage that needs most of it may own; see
    `kv_bytes_on`."""
    working_bytes: tuple[int, ...] = ()
    """For each stage what the plan leaves on each GPU for what an engine takes while it computes,
    beside weights and KV memory, in bytes; empty where the estimator does not say."""
    stage_seconds: Mapping[str, float] = field(factory=dict)
    """The estimate (`ttft`, `tpot`, `throughput_rps`), for engines that only pretend."""

    def kv_bytes_on(self, rank: int) -> int:
        """KV memory in bytes that a global rank may own: its part of as many tokens as `kv_bytes`
        hold on the rank that needs most for each."""
        shares = kv_shares(self.model, self.layers, self.tensor_parallel)
        return -(-self.kv_bytes * shares[self.ranks[rank].stage] // max(shares))

    def shard(self, rank: int) -> ShardSpec:
        """What the tensor store of a global rank holds for this engine."""
        place = self.ranks[rank]
        start, stop = self.layers[place.stage]
        return ShardSpec(
            weights=self.weights,
            model=self.weights_model,
            tp=self.tensor_parallel[place.stage],
            rank=place.tp_rank,
            start=start,
            stop=stop,
            first=place.stage == 0,
            last=place.stage == len(self.layers) - 1,
        )


def kv_shares(
    model: ModelSpec, layers: Sequence[tuple[int, int]], tensor_parallel: Sequence[int]
) -> list[int]:
    """Key heads, over all layers, on each rank of each stage: what KV memory is proportional to."""
    return [
        (stop - start) * max(model.kv_heads // degree, 1)
        for (start, stop), degree in zip(layers, tensor_parallel, strict=True)
    ]


@frozen
class Template:
    """A process that has imported what workers need, and is forked for each of them.

    Its imports must start no thread and open no GPU: a fork would not have them, and is refused.
    """

    module: str
    """Imported once; its `main()` is called in every worker."""
    environment: Mapping[str, str] = field(factory=dict)
    """On top of the agent's, and set before anything is imported."""


@frozen
class WorkerCommand:
    """A process that a node agent starts."""

    node: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(factory=dict)
    """On top of the agent's environment."""
    stdin: str = ""
    """Written to its standard input, which then stays open for as long as the agent lives."""
    ranks: tuple[int, ...] = ()
    """Global ranks that run in it."""
    template: Template | None = None
    """What to fork it from; where that cannot be, `argv` does the same from nothing."""


class Engine(Protocol):
    """An engine plugin; its attrs fields are the options of the `[engine]` table."""

    needs_weights: bool
    """Whether each rank wants a tensor store."""
    features: frozenset[str]
    """As in `EngineInfo.features`: known before any engine runs, to refuse requests by."""

    def workers(self, launch: EngineLaunch) -> Sequence[WorkerCommand]:
        """Processes of this engine, rank 0's first."""
        ...

    @optional
    def facts(self) -> EngineFacts:
        """How it makes its steps with these options: what estimators predict it by."""
        return EngineFacts()


@runtime_checkable
class SelectiveEngine(Engine, Protocol):
    """An engine that says before anything is rented which models it does not run."""

    def refuse(self, model: ModelSpec, config: Mapping[str, Any]) -> None:
        """Raise `UserError` for a model that it cannot run, with the reason and the way out.

        `config` is the content of the model's `config.json` with what companions of it say of
        quantised weights; empty where there is no model directory yet.
        """
        ...


@runtime_checkable
class ForkingEngine(Engine, Protocol):
    """An engine whose workers are forked: nodes can get ready for it before it has any."""

    @property
    def template(self) -> Template:
        """What its workers are forked from, on every node."""
        ...
