"""What commands share: the registry, the configuration, options of a search, and JSON."""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from shuntserve_core.cli.output import reserve_stdout, write_document
from shuntserve_core.errors import UserError
from shuntserve_core.registry import Registry

if TYPE_CHECKING:
    from shuntserve_core.config import Config
    from shuntserve_core.types import Objective

OBJECTIVES = ("throughput", "throughput-per-dollar", "cost")

config_argument = click.argument("config_file", metavar="CONFIG", type=click.Path())


class FiniteRange(click.FloatRange):
    """A number within a range, and neither infinite nor none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Fails for `nan`, which is in every range, and for `inf`."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def _reserve(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        reserve_stdout(ctx)
    return value


json_option = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_reserve, help="Print JSON."
)
estimator_option = click.option(
    "--estimator", metavar="NAME", help="Predict with this one instead of the file's."
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that change what is asked of an optimizer; the command takes them as `Asked`."""

    @click.option(
        "--objective", type=click.Choice(OBJECTIVES), help="Ask for this instead of the file's."
    )
    @click.option(
        "--rate", type=float, metavar="RPS", help="Requests per second demanded, for cost."
    )
    @click.option("--budget", type=float, metavar="USD", help="Most that may be spent, $ per hour.")
    @click.option(
        "--whole-instances/--split-instances",
        "whole_instances",
        default=None,
        help="Forbid or allow stages on part of an instance's GPUs.",
    )
    @click.option(
        "--time-limit", type=float, metavar="SECONDS", help="Take the best found by then."
    )
    @click.option("--seed", type=int, help="For optimizers that draw random numbers.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        objective: str | None,
        rate: float | None,
        budget: float | None,
        whole_instances: bool | None,
        time_limit: float | None,
        seed: int | None,
        **kwargs: Any,
    ) -> Any:
        for flag, value, least in (
            ("--rate", rate, 0),
            ("--budget", budget, 0),
            ("--time-limit", time_limit, 0),
            ("--seed", seed, -1),
        ):
            if value is not None and not least < value < 1e300:
                raise UserError(f"{value:g} is out of range", where=flag, remedy="give more than 0")
        wanted = {"kind": objective, "rate": rate, "budget": budget}
        search = {"whole_instances": whole_instances, "time_limit": time_limit, "seed": seed}
        asked = Asked(_given(wanted), _given(search))
        return command(*args, asked=asked, **kwargs)

    return wrapped


class Asked:
    """Flags that replace what the file says."""

    def __init__(self, objective: dict[str, Any], search: dict[str, Any]) -> None:
        self._objective = objective
        self._search = search

    def changes(self, config: Config) -> dict[str, Any]:
        """Changes to the `Problem` that the file describes."""
        return {"objective": self._objective_of(config), **self._search}

    def _objective_of(self, config: Config) -> Objective:
        from attrs import evolve

        objective = evolve(config.objective, **self._objective)
        if objective.kind == "cost" and objective.rate is None:
            raise UserError(
                "the objective cost needs a rate", where="--rate", remedy="add --rate RPS"
            )
        return objective


def registry_of(ctx: click.Context) -> Registry:
    """The plugins of this invocation, less the disabled ones."""
    return Registry(disabled=ctx.find_root().obj or ())


def config_of(ctx: click.Context, file: str) -> Config:
    """The configuration that a command was given."""
    from shuntserve_core.config import load_config

    return load_config(file, registry_of(ctx))


def suited(config: Config) -> None:
    """Refuse a model that the engine does not run; of a study of one, say so beside its figures."""
    from shuntserve_core.config.suited import refuse_or_note

    if unsuited := refuse_or_note(config):
        click.echo(f"note: for planning only, it cannot be served: {unsuited}", err=True)


@contextmanager
def naming(file: object) -> Iterator[None]:
    """Name the configuration file in errors that do not say where they are from.

    Figures that no arithmetic holds (a GPU of 10^15 bytes and a model one element wide) are a
    mistake of the file too.
    """
    try:
        yield
    except ArithmeticError as error:
        raise UserError(
            f"the figures are too extreme to calculate with ({str(error).lower()})",
            where=str(file),
            remedy="check the units in [model], [workload], [[gpu]] and [[instance_type]]",
        ) from error
    except UserError as error:
        if error.where.startswith((str(file), "--")):
            raise
        where = f"{file}: {error.where}" if error.where else str(file)
        raise UserError(error.message, where=where, remedy=error.remedy) from error


def print_json(value: Any) -> None:
    """Print JSON that a program can read: keys in their order, numbers in full."""
    write_document(json.dumps(value, indent=2, allow_nan=False))


def output_folder(folder: str | None, flag: str = "--out") -> None:
    """Make the folder for results before the work that leads to them.  Raises `UserError`."""
    from pathlib import Path

    if not folder:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or "failed").lower()
        raise UserError(
            f"cannot write {folder}: {reason}", where=flag, remedy="name a folder"
        ) from error


def output_file(file: str | None, flag: str = "--out") -> None:
    """Raise `UserError` where a file for results cannot be there, before the work for them."""
    from pathlib import Path

    if not file:
        return
    above, reason = Path(file).parent, ""
    try:
        if Path(file).is_dir():
            reason = "is a directory"
        elif not above.is_dir():
            reason = "not a directory" if above.exists() else "no such file or directory"
        elif not os.access(file if Path(file).exists() else above, os.W_OK):
            reason = "permission denied"
    except OSError as error:
        reason = (error.strerror or "failed").lower()
    if reason:
        raise UserError(
            f"cannot write {file}: {reason}", where=flag, remedy="name a file in a folder that is"
        )


def write_text(file: str, text: str, flag: str = "--out") -> None:
    """Write a file that the user named with a flag."""
    from pathlib import Path

    path = Path(file)
    new = not path.exists()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        if new:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        reason = (error.strerror or "failed").lower()
        raise UserError(
            f"cannot write {file}: {reason}", where=flag, remedy="name a file in a folder that is"
        ) from error


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
