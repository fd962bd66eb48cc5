"""Placements in the terminal: a summary, each pipeline as a picture and a table, what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shuntserve_core.placement_json import cost_per_million_tokens

if TYPE_CHECKING:
    from shuntserve_core.config import Config
    from shuntserve_core.types import Pipeline, Placement, Stage, StageEstimate

BOUND_STYLES = {
    "compute": "green",
    "memory bandwidth": "cyan",
    "communication": "yellow",
    "overhead": "magenta",
}


def show_placement(placement: Placement, config: Config) -> None:
    """Print a placement for a person."""
    console = Console(highlight=False)
    console.print(_headline(placement, config))
    gpu_counts = {name: kind.gpu_count for name, kind in config.instance_types.items()}
    for number, pipeline in enumerate(placement.pipelines, start=1):
        console.print()
        console.print(_pipeline_title(number, pipeline))
        console.print(Padding(_picture(pipeline, console.width - 4), (0, 2)))
        console.print(Padding(_stage_table(pipeline, gpu_counts), (0, 1)))
    console.print()
    console.print(_unused(placement))


def _headline(placement: Placement, config: Config) -> RenderableType:
    workload = config.workload
    names = (placement.optimizer, placement.estimator)
    search = " on ".join(names) if placement.optimizer else f"estimator {names[1]}"
    about = Text.assemble(
        (placement.model, "bold"),
        f", {workload.input_tokens} tokens in, {workload.output_tokens} out, {search}",
    )
    cost = cost_per_million_tokens(placement, workload)
    result = Text.assemble(
        (f"{placement.throughput_rps:.4g} requests/s", "bold green"),
        f", ${placement.cost_per_hour:.2f}/h, ",
        ("nothing served" if cost is None else f"${cost:.3g} per 1M tokens", "bold"),
        f", {placement.kv_blocks:,} KV blocks",
    )
    proof = _proof(placement)
    return Group(about, result, proof) if proof else Group(about, result)


def _proof(placement: Placement) -> Text | None:
    if not placement.optimizer:
        return None
    took = f"found in {placement.seconds:.2f} s"
    if placement.optimal:
        return Text(f"{took}, proved to be the best", style="dim")
    if placement.bound_rps and placement.throughput_rps:
        gap = placement.bound_rps / placement.throughput_rps - 1
        bound = f"no placement exceeds {placement.bound_rps:.4g} requests/s ({gap:.1%} more)"
        return Text(f"{took}; {bound}", style="dim")
    return Text(took, style="dim")


def _pipeline_title(number: int, pipeline: Pipeline) -> Text:
    estimate = pipeline.estimate
    title = Text(f"Pipeline {number}", style="bold")
    if not estimate.feasible:
        return title.append(f"  does not fit: {estimate.reason}", style="red")
    facts = (
        f"  {estimate.throughput_rps:.4g} requests/s, batch {estimate.batch:,}, "
        f"TTFT {duration(estimate.ttft)}, TPOT {duration(estimate.tpot)}, "
        f"alone {duration(estimate.latency)}"
    )
    return title.append(facts, style="not bold")


def _picture(pipeline: Pipeline, width: int) -> Text:
    """One line: a bar a stage, as wide as its share of the layers, with their number in it."""
    total = sum(stage.layers for stage in pipeline.stages)
    width = min(width, 96)
    estimates = pipeline.estimate.stages or (None,) * len(pipeline.stages)
    line, drawn, done = Text("├", style="dim"), 0, 0
    for index, (stage, estimate) in enumerate(zip(pipeline.stages, estimates, strict=True)):
        done += stage.layers
        end = round(done / total * (width - 1))
        room = max(end - drawn - 1, len(str(stage.layers)))
        style = BOUND_STYLES.get(estimate.bound, "") if estimate else "red"
        line.append(f"{stage.layers}".center(room, "━"), style=style)
        line.append("┤" if index == len(pipeline.stages) - 1 else "┼", style="dim")
        drawn = end
    return line


def _stage_table(pipeline: Pipeline, gpu_counts: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for name in ("layers", "on", "GPUs", "bound by", "busy", "fits", "weights"):
        table.add_column(name, justify="right" if name in ("busy", "fits", "weights") else "left")
    estimates = pipeline.estimate.stages
    if not estimates:
        for stage, layers in zip(pipeline.stages, pipeline.layer_ranges, strict=True):
            table.add_row(f"{layers.start}-{layers.stop - 1}", *_place(stage, gpu_counts))
        return table
    slowest = max(_busy(part) for part in estimates)
    smallest = min(part.batch_limit for part in estimates)
    for stage, layers, part in zip(pipeline.stages, pipeline.layer_ranges, estimates, strict=True):
        busy = _busy(part) / slowest if slowest else 0.0
        gpu_bytes = part.memory_bytes / stage.tensor_parallel
        table.add_row(
            f"{layers.start}-{layers.stop - 1}",
            *_place(stage, gpu_counts),
            Text(part.bound, style=BOUND_STYLES.get(part.bound, "")),
            Text(f"{busy:.0%}", style="bold" if _busy(part) == slowest else ""),
            Text(f"{part.batch_limit:,}", style="bold" if part.batch_limit == smallest else ""),
            f"{gpu_bytes / 1e9:.1f} GB/GPU",
        )
    return table


def _busy(part: StageEstimate) -> float:
    return part.prefill_seconds + part.decode_seconds


def _place(stage: Stage, gpu_counts: Mapping[str, int]) -> tuple[str, str]:
    where = stage.node or stage.instance
    count = gpu_counts.get(stage.instance, stage.tensor_parallel)
    if stage.tensor_parallel == count:
        return where, f"{count}"
    which = f" ({','.join(str(gpu) for gpu in stage.gpus)})" if stage.gpus else ""
    return where, f"{stage.tensor_parallel} of {count}{which}"


def _unused(placement: Placement) -> Text:
    left = [f"{count} × {name}" for name, count in placement.unused.items() if count]
    return Text(f"Unused: {', '.join(left) if left else 'nothing'}")


def duration(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    if not math.isfinite(seconds):
        return "∞"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
