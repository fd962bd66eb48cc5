"""Which pipelines to run on the GPUs that are free: at the start, after a loss, on return.

Optimizers know instance types and counts; the cluster has named nodes, some with a part of their
GPUs in use.  A part of a node is offered to the optimizer as a smaller instance type.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import evolve

from shuntserve_core.config.build import estimator_from, optimizer_from, problem_from
from shuntserve_core.config.loader import Config
from shuntserve_core.control_plane.policy.capacity import (
    FreeNode,
    Holdings,
    gpus_of,
    shape_of,
    without_gpus,
)
from shuntserve_core.control_plane.policy.search import Anywhere, Better, Change, Found, Question
from shuntserve_core.control_plane.policy.spares import without_spares
from shuntserve_core.errors import UserError
from shuntserve_core.types import Cluster, Offer, Pipeline, Stage

REPLAN_SECONDS = 2.0
"""What a search may take while requests wait."""
_PART = "~"


def answer(config: Config, question: Question) -> Found:
    """Search, for as long as it may take.  Nothing is found where nothing fits, or is better."""
    match question:
        case Anywhere(free, holdings):
            return Found(question, Change(place_on(config, free, holdings)))
        case Better(running, nodes, busy, holdings):
            change = better_placement(config, running, nodes, busy, holdings)
            return Found(question, change or Change(()))


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
