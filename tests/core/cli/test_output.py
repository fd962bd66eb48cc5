"""With --json, standard output is one document, whatever prints."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

from shuntserve_core.cli import COMMANDS, cli
from shuntserve_core.cli.common import json_option, print_json


@click.command()
@json_option
def noisy(as_json: bool) -> None:
    """Prints in every way that there is."""
    print("python prints")  # noqa: T201
    os.write(1, b"a system call prints\n")
    ctypes.CDLL(None).printf(b"C prints, and writes when its buffer is full\n")
    subprocess.run(["echo", "a child prints"], check=True)
    if as_json:
        print_json({"made": "of words"})


def test_only_the_document_reaches_standard_output() -> None:
    code = "from tests.core.cli.test_output import noisy; noisy(['--json'])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(ended.stdout) == {"made": "of words"}
    for word in ("python", "a system call", "C", "a child"):
        assert f"{word} prints" in ended.stderr


def test_without_json_nothing_changes() -> None:
    code = "from tests.core.cli.test_output import noisy; noisy([])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.count("prints") == 4


def test_output_is_as_before_when_the_command_has_ended(
    capfd: pytest.CaptureFixture[str],
) -> None:
    noisy(["--json"], standalone_mode=False)
    print("afterwards")  # noqa: T201
    out, err = capfd.readouterr()
    document, _, rest = out.rpartition("}")
    assert json.loads(document + "}") == {"made": "of words"}
    assert rest.split() == ["afterwards"]
    assert err.count("prints") == 4


def test_a_runner_in_the_same_process_gets_the_document() -> None:
    result = CliRunner().invoke(noisy, ["--json"])
    assert json.loads(result.stdout) == {"made": "of words"}


def commands(group: click.Group, ctx: click.Context) -> Any:
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from commands(command, ctx)
        else:
            yield name, command


def test_every_json_option_keeps_standard_output_for_itself() -> None:
    with click.Context(cli) as ctx:
        found = [
            (name, option)
            for name, command in commands(cli, ctx)
            for option in command.params
            if "--json" in option.opts
        ]
    assert len(found) >= len(COMMANDS) // 2
    for name, option in found:
        assert option.callback is not None, name
        assert option.is_eager, name
