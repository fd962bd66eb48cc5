"""The command line `shuntserve`: one file a command, imported only when that command runs."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import click

from shuntserve_core import __version__
from shuntserve_core.errors import UserError, UserErrorGroup
from shuntserve_core.files import users_own  # now: later there may be no file descriptor left


class _Command(NamedTuple):
    target: str
    summary: str


COMMANDS = {
    "plan": _Command("shuntserve_core.cli.plan:plan", "Choose pipelines for a model."),
    "estimate": _Command("shuntserve_core.cli.estimate:estimate", "Predict given pipelines."),
    "compare": _Command("shuntserve_core.cli.compare:compare", "Compare optimizers, or a study."),
    "simulate": _Command("shuntserve_core.cli.simulate:simulate", "Replay a workload, no GPUs."),
    "layer": _Command("shuntserve_core.cli.layer:layer", "Predict or measure one layer."),
    "serve": _Command("shuntserve_core.cli.serve:serve", "Run a cluster and its endpoint."),
    "status": _Command("shuntserve_core.cli.status:status", "Show a running cluster."),
    "interrupt": _Command("shuntserve_core.cli.interrupt:interrupt", "Take a node away."),
    "restore": _Command("shuntserve_core.cli.interrupt:restore", "Give a node back."),
    "node": _Command("shuntserve_core.cli.node:node", "Make this machine a part of a cluster."),
    "ticket": _Command("shuntserve_core.cli.ticket:ticket", "Let machines join a cluster."),
    "bench": _Command("shuntserve_core.cli.bench:bench", "Load an endpoint and measure it."),
    "weights": _Command("shuntserve_core.cli.weights:weights", "Cut, store and check weights."),
    "doctor": _Command("shuntserve_core.cli.doctor:doctor", "Check this machine."),
    "check": _Command("shuntserve_core.cli.check:check", "Check a configuration."),
    "schema": _Command("shuntserve_core.cli.schema:schema", "Print the configuration's schema."),
    "plugins": _Command("shuntserve_core.cli.plugins:plugins", "Show what is installed."),
}
"""Every command, where it lives, and its line in `shuntserve --help`."""


class _LazyGroup(click.Group):
    """Lists commands from the table above, and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shuntserve")
@click.option(
    "--disable-plugin",
    "disabled",
    multiple=True,
    metavar="NAME",
    help="Leave a plugin out (repeatable; also SHUNTSERVE_DISABLE_PLUGINS=a,b).",
)
@click.pass_context
def cli(ctx: click.Context, disabled: tuple[str, ...]) -> None:
    """Serve one large language model on mixed, interruptible GPUs as one endpoint."""
    ctx.obj = disabled
    if disabled:
        ctx.with_resource(_left_out(disabled))


@contextmanager
def _left_out(disabled: tuple[str, ...]) -> Iterator[None]:
    """Have what this process starts leave these plugins out as well."""
    from shuntserve_core.registry import DISABLE_VARIABLE

    before = os.environ.get(DISABLE_VARIABLE, "")
    os.environ[DISABLE_VARIABLE] = ",".join(filter(None, (before, *disabled)))
    try:
        yield
    finally:
        os.environ[DISABLE_VARIABLE] = before


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit status 2."""
    _fill_streams()
    try:
        cli.main(prog_name="shuntserve", standalone_mode=False)
        sys.stdout.flush()  # where it cannot be written, that is to be said here
    except click.ClickException as error:
        _end(_usage(error))
    except click.Abort as abort:
        if isinstance(abort.__cause__, EOFError):  # of some file: click takes it for Ctrl-D
            raise abort.__cause__ from None
        sys.exit(130)
    except UserError as error:
        _end(error)
    except BrokenPipeError:
        _leave_pipe()
    except OSError as error:
        told = users_own(error)
        if told is None:
            raise
        _drop_output()
        _end(told)


def _fill_streams() -> None:
    """Have a standard output and error, also where the caller has closed them."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(null, "w", closefd=False))


def _usage(error: click.ClickException) -> UserError:
    """What click has to say, in one line."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else "shuntserve"
    message = " ".join(error.format_message().split()).rstrip(".")
    return UserError(message, where=path, remedy=f"see {path} --help")


def _leave_pipe() -> None:
    """End as others do whose reader has gone."""
    _drop_output()
    sys.exit(1)


def _drop_output() -> None:
    """What could not be written is not tried again, with other words, when the interpreter ends."""
    with contextlib.suppress(OSError):  # no descriptor is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end(error: UserError) -> None:
    prefix = "" if error.where or isinstance(error, UserErrorGroup) else "shuntserve: "
    click.echo(f"{prefix}{error}", err=True)
    sys.exit(error.exit_code)
