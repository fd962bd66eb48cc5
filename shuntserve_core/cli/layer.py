"""`shuntserve layer`: predicted, and on demand measured, milliseconds of one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shuntserve_core.cli.common import (
    config_argument,
    config_of,
    estimator_option,
    json_option,
    naming,
    print_json,
    suited,
)
from shuntserve_core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from shuntserve_core.config import Config
    from shuntserve_core.types import InstanceType

_MOST = 10_000_000


class _Counts(click.ParamType[tuple[int, ...]]):
    """Positive whole numbers, separated by commas."""

    name = "counts"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        parts = [part.strip() for part in str(value).split(",")]
        if not all(p.isascii() and p.isdigit() and len(p) < 9 for p in parts):
            self.fail(f"{value!r} is not a list of whole numbers like 1,16,256", param, ctx)
        counts = tuple(int(part) for part in parts)
        if not all(0 < count <= _MOST for count in counts):
            self.fail(f"{value!r} has a number that is not in 1 to {_MOST:,}", param, ctx)
        return counts


@click.command()
@config_argument
@click.option("--gpu", required=True, metavar="NAME", help="Any registered GPU, or one of CONFIG.")
@click.option(
    "--tp",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="GPUs that share the layer.",
)
@click.option(
    "--prefill",
    type=_Counts(),
    default="250,1000,7500",
    show_default=True,
    metavar="TOKENS",
    help="Lengths of a prompt that is computed in one go.",
)
@click.option(
    "--decode",
    type=_Counts(),
    default="1,16,256",
    show_default=True,
    metavar="BATCH",
    help="Requests in a decode step.",
)
@click.option(
    "--context",
    type=click.IntRange(0, _MOST),
    default=512,
    show_default=True,
    help="Tokens that each request in a decode step has in its cache.",
)
@click.option("--measure", is_flag=True, help="Time the same on this machine's device (PyTorch).")
@estimator_option
@json_option
@click.pass_context
def layer(
    ctx: click.Context,
    config_file: str,
    gpu: str,
    tp: int,
    prefill: tuple[int, ...],
    decode: tuple[int, ...],
    context: int,
    measure: bool,
    estimator: str | None,
    as_json: bool,
) -> None:
    """Predict the time of one layer of the model in CONFIG on a GPU.

    The GPU need not be in the file's cluster.
    """
    config = config_of(ctx, config_file)
    with naming(config.file):
        suited(config)
    rows = _predictions(config, estimator, _instance(config, gpu, tp), tp, prefill, decode, context)
    device = _measure(config, rows, tp) if measure else ""
    if as_json:
        print_json(rows)
        return
    _show(rows, config.model.name, gpu, tp, device)


def _instance(config: Config, gpu: str, tp: int) -> InstanceType:
    """The smallest instance type with `tp` such GPUs; one made up where a single GPU will do."""
    from shuntserve_core.types import InstanceType, Link

    if gpu not in config.gpus:
        raise UserError(
            f'unknown GPU "{gpu}"', where="--gpu", remedy=did_you_mean(gpu, config.gpus)
        )
    if reason := config.model.refuse_tensor_parallel(tp):
        raise UserError(
            f"{config.model.name} cannot use {tp} GPUs: {reason}",
            where="--tp",
            remedy="give a degree that divides its heads",
        )
    having = [kind for kind in config.instance_types.values() if kind.gpu.name == gpu]
    enough = [kind for kind in having if kind.gpu_count >= tp]
    if enough:
        return min(enough, key=lambda kind: kind.gpu_count)
    if tp > 1:
        most = max((kind.gpu_count for kind in having), default=1)
        raise UserError(
            f"no instance type has {tp} {gpu} GPUs", where="--tp", remedy=f"give at most {most}"
        )
    link = Link(bandwidth=1e9)
    return InstanceType(f"one {gpu}", config.gpus[gpu], 1, link, link)


def _predictions(
    config: Config,
    estimator: str | None,
    instance: InstanceType,
    tp: int,
    prefill: tuple[int, ...],
    decode: tuple[int, ...],
    context: int,
) -> list[dict[str, Any]]:
    from shuntserve_core.config import estimator_from
    from shuntserve_core.interfaces.layer import LayerPredictor
    from shuntserve_core.types import StageKind

    name = estimator or config.document.estimator.name
    with naming(config.file):
        predictor = estimator_from(config, estimator, catalog={instance.name: instance})
    if not isinstance(predictor, LayerPredictor):
        raise UserError(
            f'the estimator "{name}" does not predict single layers',
            where="--estimator",
            remedy="use --estimator roofline",
        )
    kind = StageKind(instance.name, tp)
    rows: list[dict[str, Any]] = []
    for tokens in prefill:
        time = predictor.prefill_layer(kind, tokens)
        rows.append({"phase": "prefill", "tokens": tokens, **_result(time)})
    for batch in decode:
        time = predictor.decode_layer(kind, batch, context)
        rows.append({"phase": "decode", "batch": batch, "context": context, **_result(time)})
    return rows


def _result(time: Any) -> dict[str, Any]:
    return {"milliseconds": time.seconds * 1e3, "bound": time.bound}


def _measure(config: Config, rows: list[dict[str, Any]], tp: int) -> str:
    """Add `measured_milliseconds` to every row; returns the device's name."""
    if tp > 1:
        raise UserError(
            "only a layer on one GPU can be measured", where="--measure", remedy="leave out --tp"
        )
    try:
        from shuntserve_core.measure.layer import LayerBench, describe_device
    except ImportError as error:
        raise UserError(
            "PyTorch is not installed",
            where="--measure",
            remedy="pip install 'shuntserve[measure]'",
        ) from error
    bench = LayerBench(config.model)
    for row in rows:
        if row["phase"] == "prefill":
            seconds = bench.prefill(row["tokens"])
        else:
            seconds = bench.decode(row["batch"], row["context"])
        row["measured_milliseconds"] = seconds * 1e3
    return describe_device(bench.device)


def _show(rows: list[dict[str, Any]], model: str, gpu: str, tp: int, device: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"one layer of [bold]{model}[/bold] on {tp} × {gpu}")
    table = Table(box=None)
    table.add_column("phase")
    for name in ("tokens or batch", "context", "ms"):
        table.add_column(name, justify="right")
    if device:
        table.add_column("measured ms", justify="right")
        table.add_column("ratio", justify="right")
    table.add_column("bound by")
    for row in rows:
        measured = row.get("measured_milliseconds")
        cells = [
            row["phase"],
            str(row.get("tokens", row.get("batch"))),
            str(row.get("context", "")),
            f"{row['milliseconds']:.3f}",
        ]
        if measured is not None:
            cells += [f"{measured:.3f}", f"{row['milliseconds'] / measured:.2f}"]
        table.add_row(*cells, row["bound"])
    console.print(table)
    if device:
        console.print(f"measured on: {device}")
