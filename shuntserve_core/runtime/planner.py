"""Which pipelines to run on the GPUs that are free: at the start, after a loss, on return.

Optimizers know instance types and counts; the cluster has named nodes, some with a part of their
GPUs in use.  A part of a node is offered to the optimizer as a smaller instance type.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import evolve, frozen

from shuntserve_core.config.build import estimator_from, optimizer_from, problem_from
from shuntserve_core.config.loader import Config
from shuntserve_core.errors import UserError
from shuntserve_core.types import Cluster, Offer, Pipeline, Stage

REPLAN_SECONDS = 2.0
"""What a search may take while requests wait."""
_PART = "~"


@frozen
class FreeNode:
    """A node and those of its GPUs that a new pipeline may have."""

    name: str
    instance: str
    gpus: tuple[int, ...]


@frozen
class Held:
    """What a GPU's tensor store holds."""

    tensor_parallel: int
    rank: int
    layers: range


Holdings = Mapping[tuple[str, int], Held]
"""By (node, GPU)."""


def shape_of(pipeline: Pipeline) -> tuple[tuple[str, int, int], ...]:
    """A pipeline without its nodes: (instance type, tensor parallel, layers) of each stage."""
    return tuple((s.instance, s.tensor_parallel, s.layers) for s in pipeline.stages)


def gpus_of(pipeline: Pipeline) -> frozenset[tuple[str, int]]:
    """Every (node, GPU) that a pipeline uses."""
    return frozenset((stage.node, gpu) for stage in pipeline.stages for gpu in stage.gpus)


def nodes_of(pipeline: Pipeline) -> frozenset[str]:
    """Every node that a pipeline uses."""
    return frozenset(stage.node for stage in pipeline.stages)


def place_on(
    config: Config, free: Sequence[FreeNode], holdings: Holdings, *, seconds: float = REPLAN_SECONDS
) -> tuple[Pipeline, ...]:
    """The optimizer's best pipelines on these GPUs, put where most of their weights already are.

    Empty where the model does not fit.
    """
    return assign(_solve(config, free, seconds), free, holdings) or ()


def _solve(config: Config, free: Sequence[FreeNode], seconds: float) -> tuple[Pipeline, ...]:
    """Pipelines on numbered nodes, as optimizers make them."""
    cluster = _cluster_of(config, free)
    if not cluster.offers:
        return ()
    optimizer = optimizer_from(config)
    problem = evolve(
        problem_from(config),
        cluster=cluster,
        estimator=estimator_from(config, catalog=cluster.catalog),
        time_limit=min(seconds, config.document.optimizer.time_limit),
    )
    try:
        return optimizer.place(problem).pipelines
    except UserError:
        return ()


def _part_name(config: Config, node: FreeNode) -> str:
    whole = config.cluster.catalog[node.instance].gpu_count
    return node.instance if len(node.gpus) == whole else f"{node.instance}{_PART}{len(node.gpus)}"


def _cluster_of(config: Config, free: Sequence[FreeNode]) -> Cluster:
    counts = Counter(_part_name(config, node) for node in free if node.gpus)
    offers = []
    for name, count in sorted(counts.items()):
        whole_name, _, part = name.partition(_PART)
        offer = next(o for o in config.cluster.offers if o.instance.name == whole_name)
        if part:
            instance = evolve(offer.instance, name=name, gpu_count=int(part))
            share = instance.gpu_count / offer.instance.gpu_count
            offers.append(Offer(instance, count, offer.price * share, offer.market))
        else:
            offers.append(evolve(offer, count=count))
    return Cluster(tuple(offers))


def assign(
    pipelines: Sequence[Pipeline], free: Sequence[FreeNode], holdings: Holdings
) -> tuple[Pipeline, ...] | None:
    """Turn the optimizer's node numbers into nodes, those first that hold most of the layers.

    None where the free nodes do not suffice.
    """
    wanted: dict[str, list[tuple[range, Stage]]] = defaultdict(list)
    for pipeline in pipelines:
        for layers, stage in zip(pipeline.layer_ranges, pipeline.stages, strict=True):
            wanted[stage.node].append((layers, stage))
    chosen = _match(wanted, free, holdings)
    if len(chosen) < len(wanted):
        return None
    return tuple(
        evolve(
            pipeline, stages=tuple(_settle(stage, chosen[stage.node]) for stage in pipeline.stages)
        )
        for pipeline in pipelines
    )


def _settle(stage: Stage, node: FreeNode) -> Stage:
    gpus = tuple(node.gpus[index] for index in stage.gpus)
    return evolve(stage, instance=node.instance, node=node.name, gpus=gpus)


def _match(
    wanted: Mapping[str, list[tuple[range, Stage]]],
    free: Sequence[FreeNode],
    holdings: Holdings,
) -> dict[str, FreeNode]:
    """A node for each of the optimizer's, by the layers that need not be read: greedy."""
    pairs = []
    for label, parts in wanted.items():
        instance = parts[0][1].instance
        whole, _, part = instance.partition(_PART)
        for node in free:
            if node.instance == whole and (not part or len(node.gpus) == int(part)):
                pairs.append((-_overlap(parts, node, holdings), label, node.name, node))
    chosen: dict[str, FreeNode] = {}
    taken: set[str] = set()
    for _, label, name, node in sorted(pairs, key=lambda pair: pair[:3]):
        needed = max(gpu for _, stage in wanted[label] for gpu in stage.gpus) + 1
        if label not in chosen and name not in taken and len(node.gpus) >= needed:
            chosen[label] = node
            taken.add(name)
    return chosen


def _overlap(parts: Iterable[tuple[range, Stage]], node: FreeNode, holdings: Holdings) -> int:
    """Layer shards that are already where a node's GPUs would need them."""
    shared = 0
    for layers, stage in parts:
        for rank, index in enumerate(stage.gpus):
            held = holdings.get((node.name, node.gpus[index])) if index < len(node.gpus) else None
            if held and (held.tensor_parallel, held.rank) == (stage.tensor_parallel, rank):
                shared += len(
                    range(max(layers[0], held.layers.start), min(layers[-1] + 1, held.layers.stop))
                )
    return shared


def replace_nodes(
    pipeline: Pipeline, gone: Collection[str], free: Sequence[FreeNode]
) -> Pipeline | None:
    """The same pipeline with a free node of the same type for each one that is gone.

    The cheapest change there is: only the new nodes read weights.  None where a type has no
    node left with enough GPUs.
    """
    available = list(free)
    substitute: dict[str, FreeNode] = {}
    for name in sorted(nodes_of(pipeline) & set(gone)):
        needed = {gpu for s in pipeline.stages if s.node == name for gpu in s.gpus}
        instance = next(s.instance for s in pipeline.stages if s.node == name)
        fitting = [n for n in available if n.instance == instance and len(n.gpus) >= len(needed)]
        if not fitting:
            return None
        substitute[name] = min(fitting, key=lambda node: (len(node.gpus), node.name))
        available.remove(substitute[name])
    stages = []
    for stage in pipeline.stages:
        node = substitute.get(stage.node)
        if node is None:
            stages.append(stage)
            continue
        used = sorted({gpu for s in pipeline.stages if s.node == stage.node for gpu in s.gpus})
        gpus = tuple(node.gpus[used.index(gpu)] for gpu in stage.gpus)
        stages.append(evolve(stage, node=node.name, gpus=gpus))
    return Pipeline(tuple(stages), pipeline.estimate)


@frozen
class Change:
    """What to do about pipelines: start these, and end those once they serve."""

    start: tuple[Pipeline, ...]
    end: tuple[str, ...]
    """Names of running pipelines."""


def successors(
    config: Config,
    doomed: Mapping[str, Pipeline],
    gone: Collection[str],
    free: Sequence[FreeNode],
    holdings: Holdings,
) -> tuple[Pipeline, ...]:
    """What to run in place of pipelines that lose a node.

    `free` are GPUs that no other pipeline has, including those of `doomed` on nodes that stay.
    Where spares of the right type suffice, every shape is kept; otherwise the free GPUs are
    placed anew.
    """
    remaining = list(free)
    kept: list[Pipeline] = []
    for pipeline in doomed.values():
        own = gpus_of(pipeline)
        spare = [node for node in remaining if node.name not in nodes_of(pipeline)]
        same = replace_nodes(pipeline, gone, spare)
        there = {(node.name, gpu) for node in remaining for gpu in node.gpus}
        stays = {pair for pair in own if pair[0] not in gone}
        if same is None or not stays <= there:
            return place_on(config, free, holdings)
        kept.append(same)
        remaining = without_gpus(remaining, gpus_of(same))
    return tuple(kept)


def without_gpus(nodes: Sequence[FreeNode], used: Collection[tuple[str, int]]) -> list[FreeNode]:
    """The nodes with those GPUs that are not used; nodes without any are left out."""
    rest = [
        evolve(node, gpus=tuple(gpu for gpu in node.gpus if (node.name, gpu) not in used))
        for node in nodes
    ]
    return [node for node in rest if node.gpus]


def without_spares(
    nodes: Sequence[FreeNode], busy: Collection[str], spares: Mapping[str, int]
) -> list[FreeNode]:
    """All but as many nodes of each type as are to be kept as spares: first those not `busy`."""
    left = Counter(dict(spares))
    kept = []
    for node in sorted(nodes, key=lambda node: (node.name in busy, node.name)):
        if left[node.instance] > 0:
            left[node.instance] -= 1
        else:
            kept.append(node)
    return kept


def improvement(
    config: Config,
    running: Mapping[str, Pipeline],
    nodes: Sequence[FreeNode],
    holdings: Holdings,
    factor: float,
) -> Change | None:
    """A better placement over all `nodes`, if it has `factor` times the throughput of `running`
    with what can be added to it; else that addition, if there is any.

    Pipelines whose shape the new placement has too are left alone.
    """
    current = _throughput(running.values())
    used = frozenset[tuple[str, int]]().union(*(gpus_of(p) for p in running.values()))
    added = place_on(config, without_gpus(nodes, used), holdings)
    best = _solve(config, nodes, REPLAN_SECONDS)
    if _throughput(best) >= factor * (current + _throughput(added)):
        return _fewest_changes(running, best, nodes, holdings)
    return Change(added, ()) if added else None


def better_placement(
    config: Config,
    running: Mapping[str, Pipeline],
    nodes: Sequence[FreeNode],
    busy: Collection[str],
    holdings: Holdings,
) -> Change | None:
    """The `improvement` over all nodes but the spares.  While nothing runs, nothing is spare."""
    serve = config.document.serve
    kept = without_spares(nodes, busy, serve.spares)
    change = improvement(config, running, kept, holdings, serve.improve)
    if change is None and not running:
        change = improvement(config, running, nodes, holdings, serve.improve)
    return change


def _throughput(pipelines: Iterable[Pipeline]) -> float:
    return sum(pipeline.estimate.throughput_rps for pipeline in pipelines)


def _fewest_changes(
    running: Mapping[str, Pipeline],
    best: Sequence[Pipeline],
    nodes: Sequence[FreeNode],
    holdings: Holdings,
) -> Change | None:
    """Keep running pipelines that `best` has in the same shape, and give the others' GPUs away."""
    missing = list(best)
    ended = []
    kept: set[tuple[str, int]] = set()
    for name, pipeline in running.items():
        twin = next((p for p in missing if shape_of(p) == shape_of(pipeline)), None)
        if twin is None:
            ended.append(name)
        else:
            missing.remove(twin)
            kept |= gpus_of(pipeline)
    if not missing:
        return None
    start = assign(_compact(missing), without_gpus(nodes, kept), holdings)
    if start is not None:
        return Change(start, tuple(ended))
    start = assign(best, nodes, holdings)
    return Change(start, tuple(running)) if start is not None else None


def _compact(pipelines: Sequence[Pipeline]) -> list[Pipeline]:
    """Number the GPUs of each node anew, without the gaps that kept pipelines leave."""
    used: dict[str, set[int]] = defaultdict(set)
    for pipeline in pipelines:
        for stage in pipeline.stages:
            used[stage.node] |= set(stage.gpus)
    number = {node: {gpu: i for i, gpu in enumerate(sorted(gpus))} for node, gpus in used.items()}
    return [
        evolve(
            pipeline,
            stages=tuple(
                evolve(stage, gpus=tuple(number[stage.node][gpu] for gpu in stage.gpus))
                for stage in pipeline.stages
            ),
        )
        for pipeline in pipelines
    ]
